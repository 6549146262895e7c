"""What every source has to keep to, as checks that run on its `example()`.

    @pytest.mark.parametrize(("kind", "check"), cases())
    def test_source(kind, check):
        run(kind, check)

For a source outside the package: `for check in CHECKS.values(): check(MySource.example())`. A source that can't keep to
something is listed in GAPS with the reason; `run` fails once the gap is closed and still listed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

import headrace.sources
from headrace.component import Arrival, Cursor, Source, kind_of
from headrace.model import concat, unify

MOST_ROWS = 3_000
MOST_SECONDS = 10.0
IDLE_SECONDS = 1.0
_SLACK_SECONDS = 1.0  # for a machine that is busy with other things
_LATE = ("received_at",)  # when the row came in, not what it says: another reading gives another time


def sources() -> dict[str, type[Source]]:
    """Every source of the package by kind. Raises TypeError for a module that could be named as a kind but has none."""
    found: dict[str, type[Source]] = {}
    names = [module.name for module in pkgutil.iter_modules(headrace.sources.__path__)]
    for name in names:
        module = importlib.import_module(f"headrace.sources.{name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Source) and value.__module__ == module.__name__
        ]
        helper = any(name.startswith(f"{other}_") for other in names)
        if not own and not helper:
            raise TypeError(
                f"headrace.sources.{name} has no source; a helper module is named after its source"
            )
        for cls in own:
            found[kind_of(cls)] = cls
    return found


def cases() -> list[tuple[str, str]]:
    """(kind, check) of everything there is to run."""
    return [(kind, check) for kind in sources() for check in CHECKS]


def run(kind: str, check: str) -> None:
    """One check of one source; a listed gap has to fail. Raises AssertionError."""
    example = sources()[kind].example()  # without one it raises: a source without example() is not done
    reason = GAPS.get((kind, check))
    if reason is None:
        CHECKS[check](example)
        return
    try:
        CHECKS[check](example)
    except AssertionError:
        return
    raise AssertionError(f"{kind} now passes {check}: take it out of GAPS (it was there because: {reason})")


# -- checks ----------------------------------------------------------------------------------------


def making_touches_nothing(source: Source) -> None:
    """Making a source, asking for its shape, and calling `read` without `next` reach neither disk nor network."""
    cls = type(source)
    assert cls.example() == source, f"{cls.__name__}.example() differs from one call to the next"
    # In a process of its own: an audit hook can't be taken out again, and slows down all that comes after.
    done = subprocess.run(  # noqa: S603  this interpreter, on a fixed text
        [sys.executable, "-c", _MAKING, cls.__module__, cls.__qualname__, *sys.path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"making {cls.__name__} touches the world: {done.stdout}{done.stderr}"


_MAKING = """
import importlib, sys
sys.path[:0] = sys.argv[3:]
cls = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
touching = {"open", "os.listdir", "os.scandir", "socket.__new__", "socket.connect", "subprocess.Popen", "sqlite3.connect"}
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments[:1])) if event in touching else None)
made = cls.example()
made.check()
made.schema(), made.topics()
readers = [made.read(shard, None) for shard in made.shards()]
touched = list(seen)
sys.exit(f"{touched}" if touched else 0)
"""


def shards_are_stable(source: Source) -> None:
    """At least one shard, each name once, the same whenever asked."""
    shards = list(source.shards())
    assert shards, "shards() is empty"
    assert len(set(shards)) == len(shards), f"shards() repeats a name: {shards}"
    assert list(source.shards()) == shards, "shards() changes from one call to the next"


def reading_is_a_generator(source: Source) -> None:
    """`read` gives a generator, so that what follows a `yield` runs only on resumption; reading without resuming takes
    nothing away: another reader from the same cursor sees the same first rows."""
    for shard in source.shards():
        first, second = _reading(source, shard, None), _reading(source, shard, None)
        assert inspect.isgenerator(first), (
            "read() is not a generator: code after its yield could not acknowledge"
        )
        assert inspect.isgenerator(second)
        with closing(first), closing(second):
            one, two = _with_rows(first), _with_rows(second)
            assert (one is None) == (two is None), "reading without resuming took rows away"


def idle_reading_yields(source: Source) -> None:
    """No more than a second passes between two arrivals, so that the source can be stopped."""
    for shard in source.shards():
        with closing(_reading(source, shard, None)) as arrivals:
            for _ in range(8):
                began = time.monotonic()
                if next(arrivals, None) is None:
                    break
                waited = time.monotonic() - began
                assert waited <= IDLE_SECONDS + _SLACK_SECONDS, f"{waited:.1f} s without a sign of life"


def closing_is_clean(source: Source) -> None:
    """GeneratorExit at any yield ends the reading: no error, no thread left, soon."""
    for shard in source.shards():
        for resumed in (0, 1, 3):
            threads = threading.active_count()
            arrivals = _reading(source, shard, None)
            for _ in range(resumed):
                next(arrivals, None)
            began = time.monotonic()
            arrivals.close()
            assert time.monotonic() - began <= IDLE_SECONDS + _SLACK_SECONDS, "closing takes too long"
            assert threading.active_count() <= threads, "a thread is left after closing"


def rows_fit_the_schema(source: Source) -> None:
    """Known columns have their declared types in every arrival; rows beside go to declared topics; rejects are complete."""
    schema, topics = source.schema(), source.topics()
    for shard in source.shards():
        for arrival in _some(source, shard, None):
            if arrival.rows is not None:
                arrival.rows.validate(full=True)
                unify(schema, arrival.rows.schema)  # raises PlanError for a type that contradicts
                missing = [
                    f.name for f in schema if not f.nullable and f.name not in arrival.rows.schema.names
                ]
                assert not missing, f"rows lack {missing}"
                for field in schema:
                    if not field.nullable:
                        assert not arrival.rows.column(field.name).null_count, (
                            f"{field.name} is null in a row"
                        )
            for topic, rows in arrival.beside.items():
                assert topic in topics, f"rows for {topic!r}, which topics() doesn't name"
                assert rows.schema.equals(topics[topic]), (
                    f"rows for {topic!r} have other columns than topics() says"
                )
            for reject in arrival.rejects:
                assert reject.code, "a reject without a code"
                assert reject.reason, "a reject without a reason"
                assert isinstance(reject.raw, bytes)


def cursors_are_json(source: Source) -> None:
    """A cursor is the same after a round trip through JSON, and is not changed by reading on."""
    for shard in source.shards():
        seen = []
        for arrival in _some(source, shard, None):
            if arrival.rows is not None or arrival.rejects:
                assert arrival.cursor is not None, "rows or rejects without a cursor"
            if arrival.cursor is not None:
                text = json.dumps(arrival.cursor)
                assert json.loads(text) == arrival.cursor, f"not plain JSON: {arrival.cursor!r}"
                seen.append((arrival.cursor, text))
        for cursor, text in seen:
            assert json.dumps(cursor) == text, "a cursor changed after it was yielded"


def replay_gives_the_same_rows(source: Source) -> None:
    """Reading again from any cursor gives the rows, rejects and rows beside that followed it."""
    for shard in source.shards():
        arrivals = list(_some(source, shard, None))
        cursors = [(i, a.cursor) for i, a in enumerate(arrivals) if a.cursor is not None]
        for i, cursor in dict([(-1, None), *cursors[:1], *cursors[-1:]]).items():
            before = arrivals[i + 1 :]
            again = list(_some(source, shard, json.loads(json.dumps(cursor))))
            for name, take in (("rows", _rows), ("rejects", _rejects), ("rows beside", _beside)):
                old, new = take(before), take(again)
                common = min(len(old), len(new))
                assert common or not old, f"no {name} after cursor {i} the second time"
                assert old[:common] == new[:common], f"other {name} after cursor {i} the second time"


CHECKS: dict[str, Callable[[Source], None]] = {
    check.__name__: check
    for check in (
        making_touches_nothing,
        shards_are_stable,
        reading_is_a_generator,
        idle_reading_yields,
        closing_is_clean,
        rows_fit_the_schema,
        cursors_are_json,
        replay_gives_the_same_rows,
    )
}
"""Every check by name."""

GAPS = {
    (
        "system_metrics",
        "replay_gives_the_same_rows",
    ): "what a machine did in the past can't be measured again",
}
"""(kind, check) that is known not to hold, with the reason."""


# -- reading ---------------------------------------------------------------------------------------


def _reading(source: Source, shard: str, cursor: Cursor) -> Any:
    return source.read(shard, cursor)


def _some(source: Source, shard: str, cursor: Cursor) -> Iterator[Arrival]:
    """Arrivals until there is nothing new, the end, or enough."""
    deadline = time.monotonic() + MOST_SECONDS
    rows = idle = 0
    with closing(_reading(source, shard, cursor)) as arrivals:
        for arrival in arrivals:
            yield arrival
            empty = arrival.cursor is None
            idle = idle + 1 if empty else 0
            rows += arrival.rows.num_rows if arrival.rows is not None else 0
            if idle >= 2 or rows >= MOST_ROWS or time.monotonic() > deadline:
                return


def _with_rows(arrivals: Any) -> Arrival | None:
    deadline = time.monotonic() + MOST_SECONDS
    arrival: Arrival
    for arrival in arrivals:
        if arrival.rows is not None and arrival.rows.num_rows:
            return arrival
        if arrival.cursor is None or time.monotonic() > deadline:
            return None
    return None


def _rows(arrivals: list[Arrival]) -> list[dict[str, Any]]:
    batches = [a.rows for a in arrivals if a.rows is not None]
    if not batches:
        return []
    schema = batches[0].schema
    for batch in batches[1:]:
        schema = unify(schema, batch.schema)
    rows: list[dict[str, Any]] = concat(batches, schema).to_pylist()
    # Two readings may be cut at other places, and then know other fields: a null is no difference.
    return [_without_nulls({name: value for name, value in row.items() if name not in _LATE}) for row in rows]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def _rejects(arrivals: list[Arrival]) -> list[tuple[bytes, str]]:
    return [(reject.raw, reject.code) for arrival in arrivals for reject in arrival.rejects]


def _beside(arrivals: list[Arrival]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for arrival in arrivals:
        for topic, rows in arrival.beside.items():
            found += [{"topic": topic, **row} for row in pa.Table.from_batches([rows]).to_pylist()]
    return found
