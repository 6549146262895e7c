"""Laws of the window step: cuts into epochs, restarts and rescaling change nothing."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.component import TIMESTAMP, Operator
from headrace.model import concat, partition_of
from headrace.steps.window import Window
from headrace.units import Duration

S = 1_000_000
SCHEMA = pa.schema(
    [("k", pa.string()), ("n", pa.int64()), ("v", pa.float64()), ("s", pa.string()), ("timestamp", TIMESTAMP)]
)
RESULTS: dict[str, Any] = {
    "count": "*", "sum": "v", "min": "v", "max": "v", "avg": "v", "stddev": "v",
    "first": "s", "last": "s", "distinct": "s", "p50": "v", "p99": "v",
}  # fmt: skip
STEPS = {
    "tumbling": Window(length=Duration(10 * S), by=["k", "n"], **RESULTS),
    "hopping": Window(length=Duration(15 * S), hop=Duration(5 * S), by=["k", "n"], **RESULTS),
    "session": Window(gap=Duration(4 * S), by=["k", "n"], **RESULTS),
    "lateness": Window(length=Duration(10 * S), by=["k", "n"], allowed_lateness=Duration(7 * S), **RESULTS),
}

row = st.tuples(
    st.sampled_from(["a", "b", "c", None]),
    st.sampled_from([0, 1, None]),
    st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan"))),
    st.sampled_from(["x", "y", "z", None]),
    st.integers(-40 * S, 40 * S),
)
streams = st.lists(row, max_size=60)


def batch(given_rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*given_rows, strict=True)) or [()] * len(SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def on_time(stream: list[tuple[Any, ...]], cuts: list[int]) -> list[tuple[pa.RecordBatch, int]]:
    """Epochs after which the watermark is as high as it may be without a later row being late."""
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    epochs = []
    for begin, end in pairwise(edges):
        epochs.append((batch(stream[begin:end]), min((r[-1] for r in stream[end:]), default=41 * S)))
    return epochs


def collect(
    step: Window, epochs: list[tuple[pa.RecordBatch, int]], *, restart: bool = False
) -> pa.RecordBatch:
    operator = step.open(SCHEMA)
    out, reached = [], -(2**62)
    for rows, watermark in [*epochs, (batch([]), 2**60)]:
        reached = max(reached, watermark)
        out.append(operator.process(rows, reached))
        assert operator.aside() == []
        if restart:
            state = operator.snapshot()
            operator = step.open(SCHEMA)
            operator.restore(state)
    return concat(out, step.output(SCHEMA))


def same(left: pa.RecordBatch, right: pa.RecordBatch, *, exact: bool) -> None:
    """Equal rows; sessions may add their values in another order."""
    assert left.schema.equals(right.schema)
    order = [("window_end", "ascending"), ("k", "ascending"), ("n", "ascending")]
    left, right = left.take(pc.sort_indices(left, order)), right.take(pc.sort_indices(right, order))
    for name in left.schema.names:
        if exact or not pa.types.is_floating(left.schema.field(name).type):
            assert left.column(name).equals(right.column(name)), name
        else:
            a, b = (c.column(name).to_numpy(zero_copy_only=False) for c in (left, right))
            # A spread far below the values themselves is known to a part of the values only.
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=40, deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_any_cut_into_epochs_and_any_restart_gives_the_same_windows(
    kind: str, stream: list[Any], cuts: list[int]
) -> None:
    step = STEPS[kind]
    whole = collect(step, on_time(stream, []))
    cut = on_time(stream, cuts)
    same(whole, collect(step, cut), exact=kind != "session")
    same(whole, collect(step, cut, restart=True), exact=kind != "session")


@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=40, deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 60), max_size=3))
def test_windows_hold_the_rows_that_a_plain_loop_puts_there(
    kind: str, stream: list[Any], cuts: list[int]
) -> None:
    step = STEPS[kind]
    expected: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    if step.gap is not None:
        sessions: dict[tuple[Any, Any], list[list[Any]]] = defaultdict(list)
        for r in sorted(stream, key=lambda r: r[-1]):
            of_key = sessions[r[0], r[1]]
            if of_key and r[-1] - of_key[-1][-1][-1] < step.gap.us:
                of_key[-1].append(r)
            else:
                of_key.append([r])
        for key, found in sessions.items():
            for session in found:
                expected[*key, session[0][-1], session[-1][-1] + step.gap.us] = session
    else:
        assert step.length is not None
        hop = (step.hop or step.length).us
        for r in stream:
            start = r[-1] // hop * hop
            while start > r[-1] - step.length.us:
                expected[r[0], r[1], start, start + step.length.us].append(r)
                start -= hop
    out = collect(step, on_time(stream, cuts))
    times = [out.column(name).cast(pa.int64()).to_pylist() for name in ("window_start", "window_end")]
    found_rows = {
        (o["k"], o["n"], start, end): o for o, start, end in zip(out.to_pylist(), *times, strict=True)
    }
    assert len(found_rows) == out.num_rows
    assert found_rows.keys() == expected.keys()
    for key, rows_in in expected.items():
        o = found_rows[key]
        values = [r[2] for r in rows_in if r[2] is not None and r[2] == r[2]]
        texts = {r[3] for r in rows_in if r[3] is not None}
        assert o["count"] == len(rows_in)
        assert o["distinct"] == len(texts)
        assert o["min"] == min(values, default=None)
        assert o["max"] == max(values, default=None)
        timed = [r for r in sorted(rows_in, key=lambda r: r[-1]) if r[3] is not None]
        if texts and len({r[-1] for r in timed}) == len(timed):
            assert (o["first"], o["last"]) == (timed[0][3], timed[-1][3])
        if values:
            assert o["avg"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
            assert o["sum"] == pytest.approx(np.sum(values), rel=1e-9, abs=1e-6)
        if len(values) > 1:
            assert o["stddev"] == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-6)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            if values:
                room = 0.01 * max(abs(v) for v in values)
                assert o[name] == pytest.approx(np.quantile(values, share), abs=room + 1e-12)


@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=25, deadline=None)
@given(stream=streams, cut=st.integers(0, 60), parts=st.integers(2, 3))
def test_state_divided_by_key_and_put_together_again_gives_the_same_windows(
    kind: str, stream: list[Any], cut: int, parts: int
) -> None:
    step = STEPS[kind]
    epochs = on_time(stream, [cut])
    if len(epochs) < 2:
        return
    (first, reached), (rest, end) = epochs

    def share(rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
        return rows.filter(pa.array(partition_of(rows, ["k"], parts) == number))

    operator = step.open(SCHEMA)
    out = [operator.process(first, reached)]
    state = operator.snapshot()
    halves: list[Operator] = []
    for number in range(parts):
        whole = state.combine_chunks().to_batches()[0] if state.num_rows else None
        mine = (
            state.slice(0, 0)
            if whole is None
            else state.filter(pa.array(partition_of(whole, ["k"], parts) == number))
        )
        halves.append(step.open(SCHEMA))
        halves[-1].restore(mine)
        halves[-1].process(share(rest, number), reached)
    united = step.open(SCHEMA)
    united.restore(pa.concat_tables([half.snapshot() for half in halves], promote_options="default"))
    out.append(united.process(batch([]), max(end, reached)))
    out.append(united.process(batch([]), 2**60))
    same(collect(step, epochs), concat(out, step.output(SCHEMA)), exact=kind != "session")


def test_workers_with_different_watermarks_put_together_lose_nothing_and_repeat_nothing() -> None:
    step = Window(length=Duration(10 * S), hop=Duration(5 * S), by="k")
    schema = pa.schema([("k", pa.string()), ("timestamp", TIMESTAMP)])

    def rows(*given_rows: tuple[str, int]) -> pa.RecordBatch:
        keys, times = zip(*given_rows, strict=True) if given_rows else ((), ())
        return pa.RecordBatch.from_arrays(
            [pa.array(keys, pa.string()), pa.array([t * S for t in times], TIMESTAMP)], schema=schema
        )

    ahead, behind = step.open(schema), step.open(schema)
    assert ahead.process(rows(("a", 21)), 26 * S).num_rows == 1  # [15, 25) of a is out
    assert behind.process(rows(("b", 1)), 4 * S).num_rows == 0
    united = step.open(schema)
    united.restore(pa.concat_tables([ahead.snapshot(), behind.snapshot()]))
    out = united.process(rows(("b", 4), ("a", 14)), 100 * S)  # on time for b; late for a, which was further
    assert [aside.rows.column("k").to_pylist() for aside in united.aside()] == [["a"]]
    found = [(r["k"], r["window_start"].timestamp(), r["count"]) for r in out.to_pylist()]
    assert found == [("b", -5, 2), ("b", 0, 2), ("a", 20, 1)]


def test_an_empty_state_keeps_the_watermark() -> None:
    step = STEPS["tumbling"]
    operator, other = step.open(SCHEMA), step.open(SCHEMA)
    operator.process(batch([("a", 1, 1.0, "x", 0)]), 20 * S)
    state = operator.snapshot()
    assert state.num_rows == 0
    other.restore(state)
    assert other.process(batch([("a", 1, 1.0, "x", 0)]), 30 * S).num_rows == 0
    assert [aside.code for aside in other.aside()] == ["late"]
