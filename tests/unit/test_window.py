"""What the window step gives for tables of edges; laws are in test_window_laws.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.component import TIMESTAMP, Operator, PlanError
from headrace.model import EVENTS, open_struct
from headrace.steps.window import Window
from headrace.units import Duration

S = 1_000_000
SCHEMA = pa.schema([("k", pa.string()), ("v", pa.float64()), ("s", pa.string()), ("timestamp", TIMESTAMP)])


def seconds(text: str) -> Duration:
    return Duration.parse(text)


def rows(*given: tuple[Any, ...], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Rows as (k, v, s, time in seconds)."""
    columns = list(zip(*given, strict=True)) if given else [()] * len(schema)
    arrays = []
    for field, column in zip(schema, columns, strict=True):
        if field.name == "timestamp":
            column = tuple(None if t is None else round(t * S) for t in column)
        arrays.append(pa.array(column, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def run(operator: Operator, batch: pa.RecordBatch, watermark: float) -> list[tuple[Any, ...]]:
    out = operator.process(batch, round(watermark * S))
    for name in ("window_start", "window_end"):
        place = out.schema.names.index(name)
        out = out.set_column(place, name, out.column(name).cast(pa.int64()))
    return [
        tuple(value // S if name.startswith("window_") else value for name, value in row.items())
        for row in out.to_pylist()
    ]


def test_a_window_comes_out_once_when_the_watermark_reaches_its_end() -> None:
    operator = Window(length=seconds("10s"), by="k").open(SCHEMA)
    assert run(operator, rows(("a", 1, "x", 3), ("b", 1, "x", 9.999999), ("a", 1, "x", 10)), 9.999999) == []
    assert run(operator, rows(), 10) == [("a", 0, 10, 1), ("b", 0, 10, 1)]
    assert run(operator, rows(), 19) == []
    assert run(operator, rows(), 2**40) == [("a", 10, 20, 1)]
    assert run(operator, rows(), 2**41) == []


def test_windows_are_aligned_to_1970_also_before_it() -> None:
    operator = Window(length=seconds("10s"), by="k").open(SCHEMA)
    assert run(operator, rows(("a", 1, "x", -0.000001), ("a", 1, "x", -10), ("a", 1, "x", -10.5)), 0) == [
        ("a", -20, -10, 1),
        ("a", -10, 0, 2),
    ]


def test_a_window_before_1970_stays_open_until_its_end() -> None:
    operator = Window(length=seconds("10s"), by="k").open(SCHEMA)
    assert run(operator, rows(("a", 1, "x", -15)), -12) == []
    assert run(operator, rows(("a", 1, "x", -11)), -10) == [("a", -20, -10, 2)]


def test_results_are_in_the_order_of_end_and_key_with_the_null_key_last() -> None:
    operator = Window(length=seconds("10s"), by="k").open(SCHEMA)
    batch = rows(
        ("b", 1, "x", 12),
        (None, 1, "x", 1),
        ("b", 1, "x", 2),
        ("a", 1, "x", 11),
        (None, 1, "x", 3),
        ("", 1, "x", 1),
    )
    assert run(operator, batch, 30) == [
        ("", 0, 10, 1), ("b", 0, 10, 1), (None, 0, 10, 2), ("a", 10, 20, 1), ("b", 10, 20, 1),
    ]  # fmt: skip


def test_late_row_never_reopens_a_window() -> None:
    operator = Window(length=seconds("10s"), by="k", late="late_rows").open(SCHEMA)
    run(operator, rows(("a", 1, "x", 5)), 10)
    assert run(operator, rows(("a", 7, "late", 9.9), ("a", 1, "on time", 10)), 25) == [("a", 10, 20, 1)]
    (aside,) = operator.aside()
    assert (aside.code, aside.to, aside.rows.column("s").to_pylist()) == ("late", "late_rows", ["late"])
    assert aside.reasons == [
        "window: all its windows were out when it came; the watermark was 1970-01-01T00:00:10.000000Z"
    ]
    assert operator.aside() == []


def test_a_row_behind_the_watermark_counts_while_its_window_is_open() -> None:
    operator = Window(length=seconds("10s"), by="k", allowed_lateness=seconds("5s")).open(SCHEMA)
    assert run(operator, rows(("a", 1, "x", 5)), 14) == []
    assert run(operator, rows(("a", 1, "x", 1)), 15) == [("a", 0, 10, 2)]
    run(operator, rows(("a", 1, "x", 9)), 16)
    assert [aside.code for aside in operator.aside()] == ["late"]


def test_lateness_is_judged_by_the_watermark_before_the_epoch() -> None:
    operator = Window(length=seconds("10s"), by="k").open(SCHEMA)
    assert run(operator, rows(("a", 1, "x", 100), ("a", 1, "x", 1)), 100) == [("a", 0, 10, 1)]
    assert operator.aside() == []


def test_a_row_without_a_usable_time_is_put_aside() -> None:
    operator = Window(length=seconds("10s"), by="k").open(SCHEMA)
    far = pa.RecordBatch.from_arrays(
        [
            pa.array(["a"] * 3),
            pa.array([1.0] * 3),
            pa.array(["x"] * 3),
            pa.array([None, 2**62, 5], TIMESTAMP),
        ],
        schema=SCHEMA,
    )
    assert run(operator, far, 10) == [("a", 0, 10, 1)]
    (aside,) = operator.aside()
    assert (aside.code, aside.to, aside.rows.num_rows, len(aside.reasons)) == ("no_time", "", 2, 2)


def test_hopping_windows_overlap_and_merge_their_panes() -> None:
    operator = Window(length=seconds("10s"), hop=seconds("5s"), by="k", sum="v", count="*").open(SCHEMA)
    batch = rows(("a", 1, "x", 1), ("a", 10, "x", 6), ("a", 100, "x", 12))
    assert run(operator, batch, 10) == [("a", -5, 5, 1, 1.0), ("a", 0, 10, 2, 11.0)]
    assert run(operator, rows(("a", 1000, "x", 9)), 100) == [("a", 5, 15, 3, 1110.0), ("a", 10, 20, 1, 100.0)]
    assert operator.aside() == []  # one of the windows of the row at 9 s was still open
    assert operator.snapshot().num_rows == 0


def test_a_jump_of_the_watermark_gives_every_hopping_window() -> None:
    operator = Window(length=seconds("100s"), hop=seconds("1s"), by="k").open(SCHEMA)
    out = run(operator, rows(("a", 1, "x", 0), ("a", 1, "x", 50), ("a", 1, "x", 10**9)), 2 * 10**9)
    assert len(out) == 150 + 100
    assert [row[2] for row in out[:150]] == list(range(1, 151))
    assert [row[3] for row in out[:150]] == [1] * 50 + [2] * 50 + [1] * 50


def test_sessions_end_a_gap_after_their_last_row_and_merge_over_epochs() -> None:
    operator = Window(gap=seconds("10s"), by="k", count="*", first="s", last="s").open(SCHEMA)
    assert run(operator, rows(("a", 1, "first", 0), ("a", 1, "third", 18), ("b", 1, "alone", 3)), 5) == []
    assert run(operator, rows(("a", 1, "second", 9)), 13) == [("b", 3, 13, 1, "alone", "alone")]
    assert run(operator, rows(), 27.9) == []
    assert run(operator, rows(("a", 1, "next", 28)), 28) == [("a", 0, 28, 3, "first", "third")]
    assert run(operator, rows(), 38) == [("a", 28, 38, 1, "next", "next")]


def test_a_row_late_for_a_session_of_its_own_may_still_join_an_open_one() -> None:
    operator = Window(gap=seconds("10s"), by="k").open(SCHEMA)
    run(operator, rows(("a", 1, "x", 15)), 20)
    assert run(operator, rows(("a", 1, "joins", 8), ("b", 1, "late", 8)), 100) == [("a", 8, 25, 2)]
    (aside,) = operator.aside()
    assert aside.rows.column("s").to_pylist() == ["late"]


def test_every_function_over_one_window() -> None:
    step = Window(
        length=seconds("10s"),
        count="*", sum="v", min="v", max="v", avg="v", mean="v", stddev="v", first="s", last="s", distinct="s",
        p50="v", p99="v", aggregate={"n": "count(v)", "m": "median(v)", "p": "p99.9( v )"},
    )  # fmt: skip
    values = [4.0, None, 8.0, float("nan"), 6.0]
    texts = ["late", "early", None, "late", "mid"]
    batch = rows(*((None, v, s, t) for v, s, t in zip(values, texts, [5, 1, 2, 5, 3], strict=True)))
    (row,) = step.open(SCHEMA).process(batch, 10 * S).to_pylist()
    assert row["count"] == 5
    assert row["n"] == 3
    assert (row["sum"], row["min"], row["max"], row["avg"], row["mean"], row["stddev"]) == (
        18.0,
        4.0,
        8.0,
        6.0,
        6.0,
        2.0,
    )
    assert (row["first"], row["last"], row["distinct"]) == ("early", "late", 3)
    assert row["p50"] == row["m"] == pytest.approx(6.0, rel=0.01)
    assert row["p99"] == pytest.approx(7.96, rel=0.01)
    assert row["p"] <= 8.0


def test_aggregates_of_no_values_are_null_and_counts_zero() -> None:
    names = ("sum", "min", "max", "avg", "stddev", "first", "last", "p50")
    step = Window(
        length=seconds("10s"), by="k", distinct="v", aggregate={"n": "count(v)"}, **dict.fromkeys(names, "v")
    )
    (row,) = (
        step.open(SCHEMA)
        .process(rows(("a", None, None, 1), ("a", float("nan"), None, 1)), 10 * S)
        .to_pylist()
    )
    assert {name: row[name] for name in names} == dict.fromkeys(names)
    assert (row["distinct"], row["n"]) == (0, 0)


def test_one_value_has_no_standard_deviation_and_is_its_own_percentile() -> None:
    step = Window(length=seconds("10s"), stddev="v", p99="v")
    (row,) = step.open(SCHEMA).process(rows(("a", 42.0, None, 1)), 10 * S).to_pylist()
    assert row["stddev"] is None
    assert row["p99"] == 42.0


@pytest.mark.parametrize(
    "step",
    [
        Window(length=seconds("100s"), stddev="v"),
        Window(length=seconds("100s"), hop=seconds("1s"), stddev="v"),
    ],
)
def test_standard_deviation_survives_a_large_mean(step: Window) -> None:
    values = 1e9 + 1e-3 * np.random.default_rng(3).standard_normal(5000)
    batch = rows(*(("a", float(v), None, 100 + i / 50) for i, v in enumerate(values)))
    out = step.open(SCHEMA).process(batch, 2**60).to_pylist()
    full = next(row["stddev"] for row in out if row["window_start"].timestamp() == 100)
    assert full == pytest.approx(float(np.std(values - 1e9, ddof=1)), rel=1e-9)


def test_infinities_do_not_break_their_neighbours() -> None:
    step = Window(length=seconds("10s"), by="k", sum="v", max="v", stddev="v", p50="v")
    batch = rows(
        ("a", float("inf"), None, 1), ("a", float("-inf"), None, 1), ("b", 1.0, None, 1), ("b", 3.0, None, 1)
    )
    a, b = step.open(SCHEMA).process(batch, 10 * S).to_pylist()
    assert (a["sum"], a["max"], a["stddev"]) == (None, float("inf"), None)
    assert (b["sum"], b["max"]) == (4.0, 3.0)


def test_early_results_are_provisional_and_only_of_what_changed() -> None:
    operator = Window(length=seconds("10s"), by="k", early=seconds("2s")).open(SCHEMA)
    assert run(operator, rows(("a", 1, "x", 1), ("b", 1, "x", 1)), 1) == [
        ("a", 0, 10, 1, False),
        ("b", 0, 10, 1, False),
    ]
    assert run(operator, rows(("a", 1, "x", 1.5)), 1.9) == []
    assert run(operator, rows(), 2.5) == [("a", 0, 10, 2, False)]
    assert run(operator, rows(), 9) == []
    assert run(operator, rows(("c", 1, "x", 11)), 10) == [
        ("a", 0, 10, 2, True), ("b", 0, 10, 1, True), ("c", 10, 20, 1, False),
    ]  # fmt: skip


def test_early_results_of_hopping_and_session_windows() -> None:
    hopping = Window(length=seconds("10s"), hop=seconds("5s"), early=seconds("1s")).open(SCHEMA)
    assert run(hopping, rows((None, 1, "x", 6)), 7) == [(0, 10, 1, False), (5, 15, 1, False)]
    assert run(hopping, rows((None, 1, "x", 11)), 11) == [
        (0, 10, 1, True),
        (5, 15, 2, False),
        (10, 20, 1, False),
    ]
    session = Window(gap=seconds("5s"), early=seconds("1s")).open(SCHEMA)
    assert run(session, rows((None, 1, "x", 6)), 7) == [(6, 11, 1, False)]
    assert run(session, rows((None, 1, "x", 9)), 11) == [(6, 14, 2, False)]


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.int32(), [3, 1, None, 3]),
        (pa.bool_(), [True, False, None, True]),
        (pa.dictionary(pa.int8(), pa.string()), ["z", "y", None, "z"]),
        (pa.large_string(), ["z", "y", None, "z"]),
        (pa.float64(), [float("nan"), 1.0, None, float("nan")]),
        (pa.string_view(), ["z", "y", None, "z"]),
        (pa.float16(), [3.0, 1.0, None, 3.0]),
        (pa.uint64(), [2**64 - 1, 1, None, 2**64 - 1]),
        (pa.date32(), [3, 1, None, 3]),
        (TIMESTAMP, [3, 1, None, 3]),
        (pa.binary(), [b"z", b"\xff", None, b"z"]),
    ],
)
def test_keys_of_any_plain_type(type_: pa.DataType, values: list[Any]) -> None:
    schema = pa.schema([("key", type_), ("timestamp", TIMESTAMP)])
    step = Window(length=seconds("10s"), by=["key"], count="*", first="key", distinct="key")
    batch = pa.RecordBatch.from_arrays([pa.array(values, type_), pa.array([1] * 4, TIMESTAMP)], schema=schema)
    operator, other = step.open(schema), step.open(schema)
    operator.process(batch, 1)
    other.restore(operator.snapshot())
    out = other.process(batch, 10 * S)
    assert out.schema.equals(step.output(schema))
    assert sorted(out.column("count").to_pylist()) == [2, 2, 4]
    assert out.column("key").null_count == 1


def test_an_encoded_key_column_means_the_same_whatever_its_dictionary() -> None:
    schema = pa.schema([("k", pa.dictionary(pa.int32(), pa.string())), ("timestamp", TIMESTAMP)])
    operator = Window(length=seconds("10s"), by="k").open(schema)
    for codes, words in (
        ([0, 1, None], ["a", "b"]),
        ([1, 0, 2], ["a", "b", "a"]),
        ([900], [f"w{i}" for i in range(1000)]),
    ):
        keys = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(words))
        operator.process(
            pa.RecordBatch.from_arrays([keys, pa.array([1] * len(codes), TIMESTAMP)], schema=schema), 0
        )
    nothing = pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)
    out = operator.process(nothing, 10 * S)
    assert dict(zip(out.column("k").to_pylist(), out.column("count").to_pylist(), strict=True)) == {
        "a": 3,
        "b": 2,
        None: 1,
        "w900": 1,
    }


PAYLOAD = pa.struct([("room", pa.string()), ("temp", pa.float64())])


def test_a_full_dictionary_has_room_for_null() -> None:
    schema = pa.schema([("k", pa.dictionary(pa.int8(), pa.string())), ("timestamp", TIMESTAMP)])
    codes = pa.array([*range(128), None], pa.int8())
    keys = pa.DictionaryArray.from_arrays(codes, pa.array([f"w{i}" for i in range(128)]))
    batch = pa.RecordBatch.from_arrays([keys, pa.array([1] * 129, TIMESTAMP)], schema=schema)
    out = Window(length=seconds("10s"), by="k").open(schema).process(batch, 10 * S)
    assert (out.num_rows, out.column("k").null_count) == (129, 1)


def test_dotted_paths_go_into_structs_and_come_out_under_their_last_part() -> None:
    schema = pa.schema([("source_id", pa.string()), ("timestamp", TIMESTAMP), open_struct(list(PAYLOAD))])
    step = Window(length=seconds("10s"), by=["source_id", "payload.room"], avg="payload.temp")
    assert step.key() == ("source_id", "payload.room")
    payload = pa.array([{"room": "hall", "temp": 20.0}, {"room": "hall", "temp": 22.0}, None], PAYLOAD)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["s"] * 3), pa.array([1, 2, 3], TIMESTAMP), payload], schema=schema
    )
    out = step.open(schema).process(batch, 10 * S)
    assert out.schema.names == ["source_id", "room", "window_start", "window_end", "avg"]
    assert [(row["room"], row["avg"]) for row in out.to_pylist()] == [("hall", 21.0), (None, None)]


def test_a_field_of_an_open_struct_that_nobody_has_seen_is_null() -> None:
    step = Window(length=seconds("10s"), by=["payload.room"], avg="payload.temp")
    closed = pa.schema([f for f in EVENTS if f.name != "payload"])
    for schema in (closed, pa.schema([*closed, open_struct([pa.field("other", pa.int64())])])):
        out = step.output(schema)
        assert (out.field("room").type, out.field("avg").type) == (pa.float64(), pa.float64())


def test_state_is_restored_into_a_schema_that_has_grown() -> None:
    before = pa.schema([("timestamp", TIMESTAMP), open_struct([pa.field("n", pa.int64())])])
    after = pa.schema(
        [("timestamp", TIMESTAMP), open_struct([pa.field("n", pa.float64()), pa.field("room", pa.string())])]
    )
    step = Window(
        length=seconds("10s"),
        by="payload.room",
        sum="payload.n",
        last="payload.n",
        first="payload.room",
        distinct="payload.n",
    )
    operator, grown = step.open(before), step.open(after)
    one = pa.RecordBatch.from_arrays(
        [pa.array([1], TIMESTAMP), pa.array([{"n": 5}], before.field("payload").type)], schema=before
    )
    operator.process(one, 0)
    grown.restore(operator.snapshot())
    values = [{"n": 5.0, "room": None}, {"n": 2.5, "room": "hall"}]
    two = pa.RecordBatch.from_arrays(
        [pa.array([2, 3], TIMESTAMP), pa.array(values, after.field("payload").type)], schema=after
    )
    out = grown.process(two, 10 * S)
    assert out.schema.equals(step.output(after))
    found = [(r["room"], r["sum"], r["last"], r["first"], r["distinct"]) for r in out.to_pylist()]
    assert found == [("hall", 2.5, 2.5, "hall", 1), (None, 10.0, 5.0, None, 1)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give length"),
        ({"length": "10s", "gap": "5s"}, "one or the other"),
        ({"length": "10s", "hop": "3s"}, "multiple of hop"),
        ({"length": "0s"}, "longer than 0s"),
        ({"gap": "0s"}, "longer than 0s"),
        ({"length": "10s", "early": "0s"}, "early must be longer"),
        ({"length": "10s", "by": ["k", "k"]}, "by names a column twice"),
        ({"length": "10s", "by": "kk"}, "by names 'kk', which is no column; there are k, v, s, timestamp; did you mean 'k'?"),
        ({"length": "10s", "at": "v"}, "at must name a timestamp column; 'v' is double"),
        ({"length": "10s", "avg": "s"}, "avg needs numbers; 's' is string"),
        ({"length": "10s", "avg": "*"}, "avg needs a column, not '*'"),
        ({"length": "10s", "avg": "v.x"}, "'v.x', but v is double, not a struct"),
        ({"length": "10s", "aggregate": {"x": "avg value"}}, "isn't a call"),
        ({"length": "10s", "aggregate": {"x": "mode(v)"}}, "no function 'mode'; there are count, sum"),
        ({"length": "10s", "aggregate": {"x": "p101(v)"}}, "no function 'p101'"),
        ({"length": "10s", "aggregate": {"window_end": "avg(v)"}}, "two results would be named 'window_end'"),
        ({"length": "10s", "by": "k", "aggregate": {"k": "avg(v)"}}, "two results would be named 'k'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_what_would_be_right(options: dict[str, Any], said: str) -> None:
    for name in ("length", "gap", "hop", "early"):
        if name in options:
            options = {**options, name: seconds(options[name])}
    step = Window(**options)
    with pytest.raises(PlanError) as caught:
        step.output(SCHEMA)
    assert said in str(caught.value)


def test_keys_and_windows_that_are_gone_are_forgotten() -> None:
    operator = Window(length=seconds("1s"), by="k", first="s", p50="v", distinct="s").open(SCHEMA)
    for number in range(60):
        batch = rows(*((f"k{number}-{i}", float(i), f"s{i}", number) for i in range(200)))
        assert operator.process(batch, number * S).num_rows == (200 if number else 0)
    windows = operator._windows  # type: ignore[attr-defined]
    assert len(windows.keys) < 200 * 3 + 1024 + 200
    assert windows.count < 200 * 2 + 256 + 200
    assert len(windows.table.accumulators["first", "s"]._pool) < 4000
    assert operator.snapshot().num_rows == 200
