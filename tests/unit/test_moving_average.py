"""Moving averages against a loop in plain Python, over any cut, restart and rescaling."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.component import TIMESTAMP, PlanError
from headrace.model import concat, partition_of
from headrace.steps.moving_average import MovingAverage
from headrace.units import Duration

S = 1_000_000
SCHEMA = pa.schema([("k", pa.string()), ("v", pa.float64()), ("timestamp", TIMESTAMP)])
EXPIRE = Duration(30 * S)
STEPS = {
    "simple": MovingAverage(value="v", by="k", count=3, expire=EXPIRE),
    "simple one": MovingAverage(value="v", by="k", count=1, expire=EXPIRE),
    "simple over": MovingAverage(value="v", by="k", over=Duration(5 * S), expire=EXPIRE),
    "simple both": MovingAverage(value="v", by="k", over=Duration(9 * S), count=4, expire=EXPIRE),
    "weighted": MovingAverage(value="v", by="k", kind="weighted", count=5, expire=EXPIRE),
    "weighted over": MovingAverage(value="v", by="k", kind="weighted", over=Duration(7 * S), expire=EXPIRE),
    "exponential": MovingAverage(value="v", by="k", kind="exponential", alpha=0.3, expire=EXPIRE),
    "half-life": MovingAverage(
        value="v", by="k", kind="exponential", half_life=Duration(4 * S), expire=EXPIRE
    ),
}


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def by_loop(step: MovingAverage, rows: list[tuple[Any, ...]]) -> list[float | None]:
    """What the docstring says, row by row."""
    histories: dict[Any, list[tuple[int, float]]] = {}
    averages: dict[Any, float] = {}
    found: list[float | None] = []
    for key, value, t in rows:
        history = histories.setdefault(key, [])
        if value is None or not math.isfinite(value):
            found.append(averages[key] if history and t - history[-1][0] < EXPIRE.us else None)
            continue
        t = max(t, history[-1][0]) if history else t
        if history and t - history[-1][0] >= EXPIRE.us:
            history.clear()
        history.append((t, value))
        inside = [v for when, v in history if step.over is None or when > t - step.over.us]
        inside = inside[-(step.count or 10_000) :]
        if step.kind == "simple":
            averages[key] = math.fsum(inside) / len(inside)
        elif step.kind == "weighted":
            averages[key] = math.fsum(v * (i + 1) for i, v in enumerate(inside)) / sum(range(len(inside) + 1))
        elif step.half_life is not None:
            weights = [0.5 ** ((t - when) / step.half_life.us) for when, _ in history]
            averages[key] = math.fsum(w * v for w, (_, v) in zip(weights, history, strict=True)) / math.fsum(
                weights
            )
        else:
            average = history[0][1]
            for _, v in history[1:]:
                average += (step.alpha or 0) * (v - average)
            averages[key] = average
        found.append(averages[key])
    return found


row = st.tuples(
    st.sampled_from(["a", "a", "b", "c", None]),
    st.one_of(st.floats(-1e6, 1e6), st.sampled_from([None, math.nan, math.inf])),
    st.integers(0, 20 * S),
)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Times that mostly grow, out of order by up to 20 s, with a silence long enough to expire here and there."""
    now, rows = 0, []
    for key, value, t in draw(st.lists(row, max_size=50)):
        now += draw(st.sampled_from([0, S, 3 * S, 3 * S, 45 * S]))
        rows.append((key, value, now + t))
    return rows


@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=40, deadline=None)
@given(stream=streams(), cuts=st.lists(st.integers(0, 50), max_size=5))
def test_averages_are_those_of_a_plain_loop_whatever_the_cut_and_over_restarts(
    kind: str, stream: list[Any], cuts: list[int]
) -> None:
    step = STEPS[kind]
    whole = step.open(SCHEMA).process(batch(stream), 0)
    expected = by_loop(step, stream)
    found = whole.column("moving_average").to_pylist()
    assert [f is None for f in found] == [e is None for e in expected]
    assert [f for f in found if f is not None] == pytest.approx(
        [e for e in expected if e is not None], rel=1e-9, abs=1e-6
    )
    operator, out, watermark = step.open(SCHEMA), [], -(2**62)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in pairwise(edges):
        watermark = max(watermark, min((t for _, _, t in stream[end:]), default=2**60))
        out.append(operator.process(batch(stream[begin:end]), watermark))
        state = operator.snapshot()
        operator = step.open(SCHEMA)
        operator.restore(state)
    together = concat(out, step.output(SCHEMA)).column("moving_average")
    assert together.equals(whole.column("moving_average"))  # to the last bit


@pytest.mark.parametrize("kind", STEPS)
def test_state_divided_by_key_goes_on_alike(kind: str) -> None:
    step = STEPS[kind]
    rows = [(f"k{i % 7}", float(i * i % 11), i * S // 4) for i in range(100)]
    first, second = batch(rows[:50]), batch(rows[50:])
    operator = step.open(SCHEMA)
    operator.process(first, 0)
    state = operator.snapshot()
    expected = operator.process(second, 0).to_pylist()
    found = []
    for number in range(2):
        part = step.open(SCHEMA)
        part.restore(state.filter(pa.array(partition_of(state.to_batches()[0], ["k"], 2) == number)))
        found += part.process(
            second.filter(pa.array(partition_of(second, ["k"], 2) == number)), 0
        ).to_pylist()
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("kind", STEPS)
def test_many_rows_of_few_keys_and_few_rows_of_many(kind: str) -> None:
    step = STEPS[kind]
    for keys in (2, 300):
        rows = [(f"k{i * 7919 % keys}", math.sin(i), i * 10_000) for i in range(2000)]
        found = step.open(SCHEMA).process(batch(rows), 0).column("moving_average").to_pylist()
        assert found == pytest.approx(by_loop(step, rows), rel=1e-9, abs=1e-9)


def test_a_value_that_has_left_leaves_no_trace() -> None:
    step = MovingAverage(value="v", by="k", count=2)
    out = step.open(SCHEMA).process(batch([("a", v, 0) for v in (1e300, 1.0, 3.0, math.inf, 5.0)]), 0)
    assert out.column("moving_average").to_pylist() == [1e300, 5e299, 2.0, 2.0, 4.0]


def test_times_centuries_apart_are_no_trouble() -> None:
    step = MovingAverage(value="v", by="k", over=Duration(5 * S), expire=Duration(2**60))
    rows = [(f"k{i % 100}", 1.0, (i % 5) * 2**57) for i in range(400)]
    assert set(step.open(SCHEMA).process(batch(rows), 0).column("moving_average").to_pylist()) == {1.0}


def test_a_row_without_a_time_is_put_aside() -> None:
    operator = MovingAverage(value="v", by="k", count=2).open(SCHEMA)
    assert operator.process(batch([("a", 1.0, None), ("a", 2.0, 1)]), 0).column(
        "moving_average"
    ).to_pylist() == [2.0]
    (aside,) = operator.aside()
    assert (aside.code, aside.rows.num_rows) == ("no_time", 1)
    assert operator.aside() == []


def test_keys_that_vanished_are_forgotten() -> None:
    for step in STEPS.values():
        operator = step.open(SCHEMA)
        for number in range(40):
            rows = [(f"k{number}-{i}", 1.0, number * 10 * S) for i in range(50)]
            operator.process(batch(rows), number * 10 * S)
        assert len(operator._keys) < 50 * 12  # type: ignore[attr-defined]
        assert operator.snapshot().num_rows < 50 * 12


def test_no_more_is_kept_than_a_window_needs() -> None:
    operator = MovingAverage(value="v", by="k", over=Duration(5 * S)).open(SCHEMA)
    for number in range(20):
        operator.process(batch([("a", 1.0, number * S + i) for i in range(1000)]), number * S)
    assert len(operator.snapshot().column("state:values")[0].as_py()) <= 5000
    operator = MovingAverage(value="v", by="k", over=Duration(5 * S)).open(SCHEMA)
    operator.process(batch([("a", 1.0, 0)] * 20_000), 0)
    assert len(operator.snapshot().column("state:values")[0].as_py()) < 10_000


def test_without_key_all_rows_share_one_average() -> None:
    step = MovingAverage(value="v", count=2, to="smooth")
    assert step.key() == ()
    out = step.open(SCHEMA).process(batch([("a", 1.0, 0), ("b", 3.0, 0)]), 0)
    assert out.column("smooth").to_pylist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs count or over"),
        ({"kind": "weighted"}, "a weighted average needs count or over"),
        ({"count": 2, "alpha": 0.1}, "belong to exponential, not to simple"),
        ({"kind": "exponential"}, "needs one of alpha, half_life and count"),
        ({"kind": "exponential", "alpha": 0.1, "count": 2}, "needs one of"),
        ({"kind": "exponential", "over": Duration(1)}, "give half_life in place of over"),
        ({"over": Duration(0)}, "over must be longer than 0s"),
        ({"count": 2, "expire": Duration(0)}, "expire must be longer than 0s"),
        ({"count": 2, "value": "k"}, "value needs numbers; 'k' is string"),
        (
            {"count": 2, "by": "vv"},
            "by names 'vv', which is no column; there are k, v, timestamp; did you mean 'v'?",
        ),
        ({"count": 2, "to": "v"}, "there is a column 'v' already"),
    ],
)
def test_mistakes_are_told_with_what_would_be_right(options: dict[str, Any], said: str) -> None:
    step = MovingAverage(**{"value": "v", **options})
    with pytest.raises(PlanError) as caught:
        step.output(SCHEMA)
    assert said in str(caught.value)
