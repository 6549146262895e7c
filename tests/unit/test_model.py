"""Rows, spans, partitions and schemas as values."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.model import DEAD_LETTERS, Reject, Span, conform, dead_letters, partition_of, split, unify

KEYS = st.lists(
    st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=30
)


@given(KEYS, st.integers(1, 8))
@settings(max_examples=50)
def test_rows_of_one_key_stay_together_and_in_order(keys: list[str | None], partitions: int) -> None:
    rows = pa.RecordBatch.from_pydict(
        {"k": pa.array(keys, pa.string()), "n": pa.array(range(len(keys)), pa.int64())}
    )
    parts = split(rows, ("k",), partitions)
    assert sorted(n for part in parts.values() for n in part.column("n").to_pylist()) == list(
        range(len(keys))
    )
    homes: dict[str | None, int] = {}
    for number, part in parts.items():
        assert part.column("n").to_pylist() == sorted(part.column("n").to_pylist())
        for key in part.column("k").to_pylist():
            assert homes.setdefault(key, number) == number


def test_the_partition_of_a_key_never_changes() -> None:
    rows = pa.RecordBatch.from_pydict({"k": ["sensor-1", "sensor-2", "", "é", None]})
    assert partition_of(rows, ("k",), 7).tolist() == [6, 6, 0, 4, 0]


@pytest.mark.parametrize(("start", "end"), [(-1, 0), (3, 2)])
def test_a_span_is_half_open_and_never_turned_around(start: int, end: int) -> None:
    with pytest.raises(ValueError):
        Span(start, end)
    assert len(Span(3, 3)) == 0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.null(), pa.string(), pa.string()),
        (pa.string(), pa.null(), pa.string()),
        (
            pa.struct([("a", pa.int64())]),
            pa.struct([("b", pa.string())]),
            pa.struct([("a", pa.int64()), ("b", pa.string())]),
        ),
        (pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.float64())),
    ],
)
def test_types_that_grow_together(old: pa.DataType, new: pa.DataType, expected: pa.DataType) -> None:
    assert unify(pa.schema([("x", old)]), pa.schema([("x", new)])).field("x").type == expected


def test_types_that_contradict_name_the_field() -> None:
    have = pa.schema([pa.field("payload", pa.struct([("x", pa.string())]))])
    with pytest.raises(PlanError, match=r"payload\.x: is string, and double does not fit"):
        unify(have, pa.schema([pa.field("payload", pa.struct([("x", pa.float64())]))]))


def test_new_fields_follow_the_policy() -> None:
    have, new = pa.schema([("a", pa.int64())]), pa.schema([pa.field("b", pa.int64(), nullable=False)])
    assert unify(have, new).field("b").nullable
    assert unify(have, new, on_new_field="discard").names == ["a"]
    with pytest.raises(PlanError, match="b: unknown field"):
        unify(have, new, on_new_field="freeze")


def test_conform_fills_drops_orders_and_casts() -> None:
    rows = pa.RecordBatch.from_pydict({"b": [1], "x": [2], "p": [{"u": 1}]})
    schema = pa.schema(
        [("a", pa.string()), ("b", pa.float64()), ("p", pa.struct([("v", pa.string()), ("u", pa.int64())]))]
    )
    assert conform(rows, schema).to_pylist() == [{"a": None, "b": 1.0, "p": {"v": None, "u": 1}}]


def test_any_text_can_be_kept_as_a_dead_letter() -> None:
    rows = dead_letters(
        [Reject(b"\xff\x00", "c", "bad \ud800 text", "s\udfff")],
        now_us=5,
        topic="t",
        component="c",
        places=[(1, 2)],
    )
    assert rows.schema.equals(DEAD_LETTERS)
    row = rows.to_pylist()[0]
    assert (row["raw"], row["reason"], row["partition"], row["offset"]) == (
        b"\xff\x00",
        "bad \ufffd\ufffd\ufffd text",
        1,
        2,
    )
