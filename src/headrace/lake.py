"""What the Delta sink and the query store must agree on: column types, table addresses, names of positions.

Delta has fewer types than Arrow: no unsigned integers, no times of day, no durations, no structs without
fields. `lake_schema` and `lake_rows` map the one to the other, always the same way, so that rows that are in
a table and rows that are still in the log can stand in one result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import PlanError
from headrace.model import TIMESTAMP, Rows, conform

_SMALLEST_SIGNED = {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.decimal128(20, 0)}


@dataclass(frozen=True)
class DeltaTableRef:
    """Where a topic's Delta table is, and the name of the sink that writes it (part of its positions' names)."""

    path: str
    storage_options: Mapping[str, str] = field(default_factory=dict)
    sink: str = ""


def table_uri(path: str, topic: str) -> str:
    """Address of a topic's table: `{topic}` in `path` is replaced, or the topic is a folder under `path`.

    Local paths come back absolute, so that a later change of the working directory doesn't matter.
    """
    full = path.replace("{topic}", topic) if "{topic}" in path else f"{path.rstrip('/')}/{topic}"
    return full if is_remote(full) else os.path.abspath(Path(full).expanduser())  # noqa: PTH100  keeps symlinks


def is_remote(uri: str) -> bool:
    """Whether an address names object storage rather than a local folder."""
    return "://" in uri


def app_id(sink: str, topic: str, partition: int) -> str:
    """The name under which a table's own transaction log keeps how far one partition got."""
    return f"headrace/{sink}/{topic}/{partition}"


# -- types -----------------------------------------------------------------------------------------


def lake_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` in Delta's types, everything nullable; columns that hold nothing (null, empty structs) are left out.

    Raises PlanError naming the column whose type has no place in Delta.
    """
    return pa.schema([mapped for f in schema if (mapped := _lake_field(f, f.name)) is not None])


def lake_rows(rows: Rows, schema: pa.Schema) -> Rows:
    """`rows` in exactly the columns, order and types of `schema`, which `lake_schema` gave for them or grew from it."""
    wanted = set(schema.names)
    columns = {f.name: _lake_array(rows.column(i)) for i, f in enumerate(rows.schema) if f.name in wanted}
    plain = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)) if columns else None
    if plain is None:
        return pa.RecordBatch.from_arrays([pa.nulls(rows.num_rows, f.type) for f in schema], schema=schema)
    return conform(plain, schema)


def widened(old: pa.Schema, new: pa.Schema) -> bool:
    """Whether a field that both have (nested ones too) has another type in `new`, so that stored files must be rewritten."""
    have = {f.name: f.type for f in old}
    return any(f.name in have and _type_changed(have[f.name], f.type) for f in new)


def _type_changed(old: pa.DataType, new: pa.DataType) -> bool:
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        have = {f.name: f.type for f in old}
        return any(f.name in have and _type_changed(have[f.name], f.type) for f in new)
    if pa.types.is_list(old) and pa.types.is_list(new):
        return _type_changed(old.value_type, new.value_type)
    return not old.equals(new)


def _lake_field(f: pa.Field, path: str) -> pa.Field | None:
    mapped = _lake_type(f.type, path)
    return None if mapped is None else pa.field(f.name, mapped)


def _lake_type(t: pa.DataType, path: str) -> pa.DataType | None:
    """The Delta type, None for one that holds nothing."""
    types = pa.types
    if types.is_null(t):
        return None
    if types.is_dictionary(t):
        return _lake_type(t.value_type, path)
    if types.is_struct(t):
        fields = [mapped for f in t if (mapped := _lake_field(f, f"{path}.{f.name}")) is not None]
        return pa.struct(fields) if fields else None
    if types.is_map(t):
        key, item = _lake_type(t.key_type, f"{path}.key"), _lake_type(t.item_type, f"{path}.value")
        return None if key is None or item is None else pa.map_(key, item)
    if types.is_list(t) or types.is_large_list(t) or types.is_fixed_size_list(t):
        item = _lake_type(t.value_type, f"{path}[]")
        return None if item is None else pa.list_(pa.field("element", item))
    if types.is_unsigned_integer(t):
        return _SMALLEST_SIGNED[t.bit_width]
    if types.is_float16(t):
        return pa.float32()
    if types.is_timestamp(t):
        return TIMESTAMP if t.tz is not None else pa.timestamp("us")
    if types.is_date(t):
        return pa.date32()
    if types.is_duration(t):
        return pa.int64()  # microseconds
    if types.is_time(t) or types.is_large_string(t) or types.is_string_view(t):
        return pa.string()
    if types.is_large_binary(t) or types.is_fixed_size_binary(t) or types.is_binary_view(t):
        return pa.binary()
    if (
        types.is_integer(t)
        or types.is_floating(t)
        or types.is_boolean(t)
        or types.is_string(t)
        or types.is_binary(t)
    ):
        return t
    if types.is_decimal(t) and t.precision <= 38:
        return pa.decimal128(t.precision, t.scale)
    raise PlanError(
        f"{path}: {t} can't be kept in a Delta table; derive a number, string or timestamp from it"
    )


def _lake_array(array: pa.Array) -> pa.Array:
    """An array in the type that `_lake_type` gives for it; untouched, without a copy, where that is its own."""
    t = array.type
    wanted = _lake_type(t, "")
    if wanted is None or t.equals(wanted):
        return array
    if pa.types.is_dictionary(t):
        return _lake_array(array.dictionary_decode())
    if pa.types.is_duration(t):
        return pc.cast(pc.cast(array, pa.duration("us"), safe=False), pa.int64())
    if pa.types.is_struct(t):
        # A field that holds nothing has no mapped type and goes; `field` ignores the parent's nulls, so they are kept apart.
        kept = [
            (f, _lake_array(array.field(i))) for i, f in enumerate(t) if _lake_type(f.type, "") is not None
        ]
        fields = [pa.field(f.name, child.type) for f, child in kept]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays([child for _, child in kept], fields=fields, mask=mask)
    return pc.cast(array, wanted, safe=False)
