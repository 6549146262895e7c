"""What every sink must do, as checks that run against the real target.

    from headrace.testing import sink_conformance as conformance

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_mine(check, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        check(conformance.Case(Mine.example(), read_back))

`read_back(sink, topic)` reads the target as another program would, and gives the `n` of every row there, in any order,
as often as it is there. Rows carry it as the number in `source_id` (`s17`) and as `payload.n`. Each check wants a target of
its own: relative paths in `example()` and a fresh working directory give one.
"""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import headrace.sinks
from headrace.component import Batching, Rows, Sink, Topic, Writer
from headrace.model import EVENTS, TIMESTAMP

TOPIC = Topic("events", EVENTS, partitions=3, key=("source_id",))
_T0 = 1_700_000_000_000_000


@dataclass(frozen=True)
class Case:
    """A sink to check, and how to read what arrived in its target."""

    sink: Sink
    read_back: Callable[[Sink, Topic], Iterable[int]]

    def open(self) -> Writer:
        return self.sink.open(TOPIC, name="conformance")

    def found(self) -> list[int]:
        return sorted(self.read_back(self.sink, TOPIC))


def sinks() -> list[type[Sink]]:
    """Every sink of the package."""
    found: dict[str, type[Sink]] = {}
    for module in pkgutil.iter_modules(headrace.sinks.__path__):
        for value in vars(importlib.import_module(f"headrace.sinks.{module.name}")).values():
            if (
                isinstance(value, type)
                and issubclass(value, Sink)
                and value.__module__ == f"headrace.sinks.{module.name}"
            ):
                found[module.name] = value
    return [found[name] for name in sorted(found)]


def rows(start: int, end: int, *, wide: bool = False) -> Rows:
    """Events `start` to `end`; `wide` ones have more fields, nested too."""
    numbers = range(start, end)
    payload: list[dict[str, object]] = [{"n": n, "type": "probe"} for n in numbers]
    if wide:
        payload = [{**p, "location": "here", "more": {"x": 1.5, "tags": ["a"]}} for p in payload]
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array([f"s{n}" for n in numbers], pa.string()),
            pa.array([_T0 + n * 1_000 for n in numbers], TIMESTAMP),
            pa.array([None] * len(numbers), TIMESTAMP),
            pa.array(["reading"] * len(numbers), pa.string()),
            pa.array(payload) if payload else pa.array([], pa.struct([("n", pa.int64())])),
        ],
        names=EVENTS.names,
    )
    return batch.append_column("site", pa.array(["x"] * len(numbers), pa.string())) if wide else batch


# -- checks ----------------------------------------------------------------------------------------


def an_example_is_there(case: Case) -> None:
    """It has an example that passes its own check, can reach its target, and says how it wants its rows."""
    case.sink.check()
    case.sink.connect()
    batching = case.sink.batching()
    assert isinstance(batching, Batching)
    assert 1 <= batching.rows <= batching.max_rows


def rows_arrive(case: Case) -> None:
    writer = case.open()
    assert writer.committed(0) == 0
    writer.write(0, rows(0, 5), 5)
    writer.close()
    assert case.found() == list(range(5))


def partitions_have_positions_of_their_own(case: Case) -> None:
    writer = case.open()
    for partition in range(3):
        start = partition * 100
        writer.write(partition, rows(start, start + partition + 1), partition + 1)
    writer.close()
    assert case.found() == [0, 100, 101, 200, 201, 202]
    _positions(case, [1, 2, 3])


def rows_written_again_are_there_once(case: Case) -> None:
    writer = case.open()
    for _ in range(2):
        writer.write(1, rows(0, 10), 10)
    writer.close()
    again = case.open()  # crash after the commit, before anybody heard of it
    again.write(1, rows(0, 10), 10)
    again.write(1, rows(4, 15), 15)  # the next batch is cut differently
    again.close()
    found = case.found()
    assert (found if case.sink.exactly_once else sorted(set(found))) == list(range(15))
    _positions(case, [0, 15, 0])


def a_dropped_writer_leaves_a_whole_target(case: Case) -> None:
    case.open().write(0, rows(0, 7), 7)  # never closed
    writer = case.open()
    assert writer.committed(0) == (7 if case.sink.exactly_once else 0)
    writer.write(0, rows(7, 9), 9)
    writer.close()
    assert case.found() == list(range(9))


def no_rows_change_nothing(case: Case) -> None:
    writer = case.open()
    writer.write(0, rows(0, 0), 0)
    writer.write(0, rows(0, 3), 3)
    writer.write(0, rows(0, 0), 5)
    writer.close()
    assert case.found() == [0, 1, 2]
    if case.sink.exactly_once:
        assert case.open().committed(0) in (3, 5)


def new_fields_do_not_stop_it(case: Case) -> None:
    writer = case.open()
    writer.write(0, rows(0, 3), 3)
    writer.write(0, rows(3, 6, wide=True), 6)
    writer.write(0, rows(6, 9), 9)  # an older producer
    writer.close()
    assert case.found() == list(range(9))


def a_part_of_a_larger_batch_is_that_part(case: Case) -> None:
    writer = case.open()
    writer.write(0, rows(0, 20).slice(5, 4), 4)
    writer.close()
    assert case.found() == [5, 6, 7, 8]


def a_reader_never_sees_half_a_batch(case: Case) -> None:
    if not case.sink.exactly_once:
        return
    size, batches = 200, 8
    done = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            writer = case.open()
            for i in range(batches):
                writer.write(0, rows(i * size, (i + 1) * size), (i + 1) * size)
            writer.close()
        except BaseException as error:  # noqa: BLE001  raised again below
            failures.append(error)
        finally:
            done.set()

    case.open().close()
    thread = threading.Thread(target=write)
    thread.start()
    seen: Sequence[int] = []
    while not done.is_set():
        seen = case.found()
        assert len(seen) % size == 0, f"{len(seen)} rows, in batches of {size}"
        assert len(set(seen)) == len(seen)
    thread.join()
    if failures:
        raise failures[0]
    assert case.found() == list(range(size * batches))


def a_killed_process_leaves_every_row_once(case: Case) -> None:
    """A process that writes is killed at two moments; each time the next goes on from what the target says."""
    if not case.sink.exactly_once:
        return
    context = multiprocessing.get_context("spawn")
    for run in range(2):
        before = len(case.found()) if run else 0
        process = context.Process(target=_write_for_ever, args=(case.sink,), daemon=True)
        process.start()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.is_alive() and len(case.found()) < before + 30:
            time.sleep(0.02)
        alive = process.is_alive()
        process.kill()
        process.join()
        process.close()
        assert alive, "the writing process ended by itself"
        writer = case.open()
        position = writer.committed(0)
        assert case.found() == list(range(position))
        writer.write(0, rows(position, position + 3), position + 3)
        writer.close()
        assert case.found() == list(range(position + 3))


CHECKS: tuple[Callable[[Case], None], ...] = (
    an_example_is_there,
    rows_arrive,
    partitions_have_positions_of_their_own,
    rows_written_again_are_there_once,
    a_dropped_writer_leaves_a_whole_target,
    no_rows_change_nothing,
    new_fields_do_not_stop_it,
    a_part_of_a_larger_batch_is_that_part,
    a_reader_never_sees_half_a_batch,
    a_killed_process_leaves_every_row_once,
)


def _write_for_ever(sink: Sink) -> None:
    """Body of the process that gets killed. Stops by itself when nobody kills it."""
    writer = sink.open(TOPIC, name="conformance")
    at = writer.committed(0)
    for _ in range(100_000):
        writer.write(0, rows(at, at + 10), at + 10)
        at += 10
        if not Path.cwd().exists():
            return


def _positions(case: Case, expected: list[int]) -> None:
    if case.sink.exactly_once:
        writer = case.open()
        assert [writer.committed(partition) for partition in range(3)] == expected
        writer.close()
