"""Rows as JSON, one way everywhere: ISO-8601 times in UTC, NaN and infinities as null, bytes as base64."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

_encoder = msgspec.json.Encoder(decimal_format="number")
_YEARS_US = (
    -62_135_596_800_000_000,
    253_402_300_800_000_000,
)  # years 1 to 9999: what ISO-8601 writes with four digits


def to_json_rows(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Each row as a dict of plain JSON values."""
    return _plain(rows).to_pylist()  # type: ignore[no-any-return]


def to_json_columns(rows: pa.Table | pa.RecordBatch) -> dict[str, list[Any]]:
    """Each column as a list of plain JSON values: less to send than rows."""
    return _plain(rows).to_pydict()  # type: ignore[no-any-return]


def json_lines(rows: pa.Table | pa.RecordBatch) -> bytes:
    """Rows as NDJSON, with a line end after each."""
    return _encoder.encode_lines(_plain(rows).to_pylist())


def json_array(rows: pa.Table | pa.RecordBatch) -> bytes:
    """Rows as one JSON array of objects."""
    return _encoder.encode(_plain(rows).to_pylist())


def _plain(rows: pa.Table | pa.RecordBatch) -> pa.Table:
    table = pa.table(rows) if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
    columns = [
        _column(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0))
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _column(array: pa.Array) -> pa.Array:
    """The array in types whose Python values are JSON, by columns as far as Arrow can."""
    t = array.type
    types = pa.types
    if types.is_dictionary(t):
        return _column(array.dictionary_decode())
    if types.is_floating(t):
        bad = pc.invert(pc.is_finite(array))
        return pc.if_else(bad, pa.scalar(None, t), array) if pc.any(bad).as_py() else array
    if types.is_timestamp(t):
        return _iso(array)
    if types.is_struct(t):
        children = [_column(array.field(i)) for i in range(t.num_fields)]
        if not children:
            return array
        fields = [pa.field(f.name, child.type) for f, child in zip(t, children, strict=True)]
        return pa.StructArray.from_arrays(
            children, fields=fields, mask=array.is_null() if array.null_count else None
        )
    if types.is_list(t):
        return (
            pa.ListArray.from_arrays(
                array.offsets, _column(array.values), mask=array.is_null() if array.null_count else None
            )
            if (array.offset == 0)
            else _column(pa.concat_arrays([array, array.slice(0, 0)]))
        )
    if types.is_date(t) or types.is_time(t):
        return pc.cast(array, pa.string())
    if types.is_duration(t):
        return pc.cast(array, pa.int64())
    if types.is_decimal(t):
        return pc.cast(array, pa.float64()) if t.scale else _integers(array)
    if types.is_binary(t) or types.is_large_binary(t) or types.is_fixed_size_binary(t):
        # Row loop: Arrow has no base64, and binary columns are rare in answers.
        return pa.array(
            [None if v is None else base64.b64encode(v).decode() for v in array.to_pylist()], pa.string()
        )
    return array


def _iso(array: pa.Array) -> pa.Array:
    """Timestamps as `2024-02-29T12:00:00.000001Z`; without the fraction where a whole column has none."""
    stamps = pc.cast(array, pa.timestamp("us", tz=array.type.tz), safe=False)
    if stamps.type.tz is not None:
        stamps = pc.cast(stamps, pa.timestamp("us", tz="UTC"))
    micros = pc.cast(stamps, pa.int64())
    suffix = "Z" if stamps.type.tz is not None else ""
    # Beyond the years that ISO-8601 writes with four digits, the number itself is clearer: microseconds since 1970.
    outside = pc.or_(pc.less(micros, _YEARS_US[0]), pc.greater_equal(micros, _YEARS_US[1]))
    inside = pc.if_else(outside, pa.scalar(0, stamps.type), stamps)
    seconds = pc.multiply(pc.divide(micros, 1_000_000), 1_000_000)
    if pc.all(pc.or_(outside, pc.equal(seconds, micros)), min_count=0).as_py():
        inside = pc.cast(inside, pa.timestamp("s", tz=stamps.type.tz))
    text = pc.strftime(inside, format=f"%Y-%m-%dT%H:%M:%S{suffix}")
    return pc.if_else(outside, pc.cast(micros, pa.string()), text) if pc.any(outside).as_py() else text


def _integers(array: pa.Array) -> pa.Array:
    """Whole decimals (sums of integers) as integers where they fit."""
    try:
        return pc.cast(array, pa.int64())
    except pa.ArrowInvalid:
        return pc.cast(array, pa.string())
