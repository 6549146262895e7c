"""Joins against a loop in plain Python, over any cut, restart and rescaling, and a table of edges."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.component import TIMESTAMP, Operator, PlanError
from headrace.model import concat, empty, partition_of
from headrace.steps.join import Join
from headrace.units import Duration

S = 1_000_000
OURS = pa.schema([("k", pa.string()), ("n", pa.int64()), ("timestamp", TIMESTAMP)])
THEIRS = pa.schema([("k", pa.string()), ("m", pa.int64()), ("timestamp", TIMESTAMP)])
END = 2**60
STEPS = {
    "asof": Join(topic="t", on="k"),
    "asof left": Join(topic="t", on="k", how="left"),
    "asof within": Join(topic="t", on="k", how="left", within=Duration(4 * S)),
    "interval": Join(topic="t", on="k", kind="interval", within=Duration(3 * S)),
    "interval left": Join(topic="t", on="k", kind="interval", how="left", within=Duration(3 * S)),
    "interval before": Join(topic="t", on="k", kind="interval", how="left", before=Duration(5 * S), after=Duration(0)),
}  # fmt: skip


def batch(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def opened(step: Join) -> Operator:
    return step.bind({"t": THEIRS}).open(OURS)


def plain(rows: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """(n, time, m, their time) of each row, in seconds."""
    names = ("n", "timestamp", "m", "t_timestamp")
    columns = [rows.column(name) for name in names]
    columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in columns]
    return list(zip(*(c.to_pylist() for c in columns), strict=True))


def feed(operator: Operator, ours: list[Any], theirs: list[Any], watermark: int) -> list[tuple[Any, ...]]:
    if theirs:
        operator.side("t", batch(THEIRS, theirs))
    return plain(operator.process(batch(OURS, ours), watermark))


def by_loop(step: Join, ours: list[Any], theirs: list[Any]) -> list[tuple[Any, ...]]:
    found = []
    for key, n, t in ours:
        same = [] if key is None else [(m, u) for k, m, u in theirs if k == key]
        if step.kind == "asof":
            near = [(m, u) for m, u in same if u <= t and (step.within is None or t - u <= step.within.us)]
            newest = max((u for _, u in near), default=None)
            partners = [(m, u) for m, u in near if u == newest][-1:]
        else:
            before, after = ((span or step.within).us for span in (step.before, step.after))  # type: ignore[union-attr]
            partners = [(m, u) for m, u in same if t - before <= u <= t + after]
        found += [(n, t, m, u) for m, u in partners]
        if not partners and step.how == "left":
            found.append((n, t, None, None))
    return found


side_row = st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 15), st.booleans())
streams = st.lists(side_row, max_size=40)


def split(stream: list[Any]) -> tuple[list[Any], list[Any]]:
    numbered = [(k, i, t * S, ours) for i, (k, t, ours) in enumerate(stream)]
    return [r[:3] for r in numbered if r[3]], [r[:3] for r in numbered if not r[3]]


@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=50, deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 40), max_size=5), restart=st.booleans())
def test_joins_are_those_of_a_plain_loop_whatever_the_cut_and_over_restarts(
    kind: str, stream: list[Any], cuts: list[int], restart: bool
) -> None:
    step = STEPS[kind]
    operator, out, watermark = opened(step), [], -(2**62)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in [*pairwise(edges), (len(stream), len(stream))]:
        watermark = max(watermark, min((t * S for _, t, _ in stream[end:]), default=END))
        if begin == len(stream):
            watermark = END
        numbered = [(k, i, t * S, ours) for i, (k, t, ours) in enumerate(stream)][begin:end]
        epoch = feed(
            operator, [r[:3] for r in numbered if r[3]], [r[:3] for r in numbered if not r[3]], watermark
        )
        assert operator.aside() == []
        out += epoch
        if restart:
            state = operator.snapshot()
            operator = opened(step)
            operator.restore(state)
    expected = by_loop(step, *split(stream))
    if step.kind == "asof":
        assert out == sorted(expected, key=lambda r: (r[1], r[0]))  # n grows with arrival
    else:
        assert Counter(out) == Counter(expected)
    assert operator.snapshot().num_rows <= (0 if step.kind == "interval" or step.within else 2)


@pytest.mark.parametrize("kind", STEPS)
def test_state_divided_by_key_goes_on_alike(kind: str) -> None:
    step = STEPS[kind]
    ours = [(f"k{i % 5}", i, i * S) for i in range(20)]
    theirs = [(f"k{i % 7}", i, i * S) for i in range(20)]
    operator = opened(step)
    done = feed(operator, ours[:10], theirs[:12], 8 * S)
    state = operator.snapshot()
    done += feed(operator, ours[10:], theirs[12:], END)
    found = []
    for number in range(2):

        def mine(schema: pa.Schema, rows: list[Any], number: int = number) -> list[Any]:
            of = partition_of(batch(schema, rows), ["k"], 2)
            return [row for row, part in zip(rows, of.tolist(), strict=True) if part == number]

        part = opened(step)
        whole = state.combine_chunks().to_batches()[0]
        part.restore(state.filter(pa.array(partition_of(whole, ["k"], 2) == number)))
        found += feed(part, mine(OURS, ours[10:]), mine(THEIRS, theirs[12:]), END)
    assert Counter(done) == Counter(by_loop(step, ours, theirs))
    assert not Counter(found) - Counter(done)
    before = len(done) - len(found)
    assert Counter(found) == Counter(done[before:])


def test_a_row_is_held_until_the_watermark_has_passed_its_time() -> None:
    operator = opened(STEPS["asof left"])
    assert feed(operator, [("a", 1, 5)], [("a", 10, 1)], 5) == []
    assert feed(operator, [], [("a", 11, 5)], 6) == [(1, 5, 11, 5)]


def test_late_rows_of_both_sides_are_put_aside() -> None:
    for step in (Join(topic="t", on="k", late="late_ours"), STEPS["interval"]):
        operator = opened(step)
        feed(operator, [], [], 100)
        assert feed(operator, [("a", 1, 99), ("a", 2, None)], [("a", 1, 99)], 200) == []
        found = [
            (a.code, a.to, a.rows.num_rows, len(a.reasons), a.rows.schema.names[1]) for a in operator.aside()
        ]
        assert found == [("late", "", 1, 1, "m"), ("no_time", "", 1, 1, "n"), ("late", step.late, 1, 1, "n")]
        assert operator.aside() == []


def test_columns_that_clash_get_the_prefix_and_keys_are_there_once() -> None:
    theirs = pa.schema(
        [("sensor", pa.large_string()), ("n", pa.int32()), ("limit", pa.float64()), ("timestamp", TIMESTAMP)]
    )
    step = Join(topic="limits", on={"k": "sensor"}, how="left")
    assert (step.key(), step.reads()) == (("k",), ("limits",))
    out = step.bind({"limits": theirs}).output(OURS)
    assert out.names == ["k", "n", "timestamp", "limits_n", "limit", "limits_timestamp"]
    named = Join(topic="limits", on={"k": "sensor"}, prefix="their_").bind({"limits": theirs}).output(OURS)
    assert named.names[-1] == "their_timestamp"


def test_encoded_and_differing_key_types_are_compared_by_value() -> None:
    ours = pa.schema(
        [("k", pa.dictionary(pa.int8(), pa.string())), ("i", pa.int16()), ("timestamp", TIMESTAMP)]
    )
    theirs = pa.schema(
        [
            ("k", pa.string()),
            ("i", pa.int64()),
            ("tag", pa.dictionary(pa.int8(), pa.string())),
            ("timestamp", TIMESTAMP),
        ]
    )
    step = Join(topic="t", on=["k", "i"]).bind({"t": theirs})
    operator = step.open(ours)
    for i in range(3):
        operator.side("t", batch(theirs, [("x", 7, f"tag{i}", i * S), ("y", 7, "other", i * S)]))
        out = operator.process(batch(ours, [("x", 7, i * S)]), i * S + 1)
        assert out.schema.equals(step.output(ours))
        assert [(r["k"], r["i"], r["tag"]) for r in out.to_pylist()] == [("x", 7, f"tag{i}")]
        state = operator.snapshot()
        operator = step.open(ours)
        operator.restore(state)


def test_state_is_restored_into_schemas_that_have_grown() -> None:
    operator = opened(STEPS["asof left"])
    feed(operator, [("a", 1, 5 * S)], [("a", 10, 1 * S)], 2 * S)
    more = pa.schema([*OURS, ("extra", pa.float64())])
    grown = STEPS["asof left"].bind({"t": pa.schema([*THEIRS, ("unit", pa.string())])}).open(more)
    grown.restore(operator.snapshot())
    out = grown.process(empty(more), END)
    assert [(r["n"], r["m"], r["extra"], r["unit"]) for r in out.to_pylist()] == [(1, 10, None, None)]


def test_what_can_no_longer_match_is_forgotten() -> None:
    for step in STEPS.values():
        operator = opened(step)
        for number in range(50):
            keys = [f"k{number}-{i}" if step.within or step.before else f"k{i}" for i in range(100)]
            feed(
                operator,
                [(k, 1, number * 10 * S) for k in keys],
                [(k, 2, number * 10 * S) for k in keys],
                number * 10 * S,
            )
        assert operator.snapshot().num_rows <= 200
        assert len(operator._keys) < 3000  # type: ignore[attr-defined]
        assert len(operator._theirs) < 2000  # type: ignore[attr-defined]


def test_times_centuries_apart_are_no_trouble() -> None:
    theirs = [(f"k{i % 50}", i, (i // 50) * 2**57) for i in range(200)]
    ours = [(f"k{i}", i, 3 * 2**57 - 1) for i in range(50)]
    operator = opened(STEPS["asof"])
    assert [row[2] for row in feed(operator, ours, theirs, END)] == [100 + i for i in range(50)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on": []}, "on names no column"),
        ({"on": "k", "before": Duration(1)}, "belong to kind interval"),
        ({"on": "k", "kind": "interval"}, "needs within, or both before and after"),
        ({"on": "kk"}, "on names 'kk', which is no column; there are k, n, timestamp; did you mean 'k'?"),
        ({"on": {"k": "kk"}}, "on (topic t) names 'kk', which is no column; there are k, m, timestamp"),
        ({"on": {"k": "m"}}, "compares 'k', which is string, with their 'm', which is int64"),
        ({"on": "k", "at": "n"}, "at must name a timestamp column; 'n' is int64"),
        ({"on": "k", "their_at": "m"}, "their_at (topic t) must name a timestamp column; 'm' is int64"),
    ],
)
def test_mistakes_are_told_with_what_would_be_right(options: dict[str, Any], said: str) -> None:
    step = Join(**{"topic": "t", **options}).bind({"t": THEIRS})
    with pytest.raises(PlanError) as caught:
        step.output(OURS)
    assert said in str(caught.value)


def test_a_name_that_is_taken_even_with_the_prefix_is_a_mistake() -> None:
    ours = pa.schema([*OURS, ("t_timestamp", TIMESTAMP)])
    with pytest.raises(PlanError, match="set prefix"):
        Join(topic="t", on="k").bind({"t": THEIRS}).output(ours)
    with pytest.raises(PlanError, match="not known yet"):
        Join(topic="t", on="k").output(OURS)


def test_output_of_no_epoch_is_empty_but_typed() -> None:
    step = STEPS["interval left"].bind({"t": THEIRS})
    out = step.open(OURS).process(empty(OURS), 0)
    assert out.schema.equals(step.output(OURS))
    assert concat([out], out.schema).num_rows == 0
