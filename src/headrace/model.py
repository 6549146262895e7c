"""The nouns as values: Rows, Span, Topic, Epoch, Reject. No I/O and no state in here."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import PlanError
from headrace.units import Duration, Size

Rows: TypeAlias = pa.RecordBatch
"""The only unit of data in motion: one Arrow record batch. An event is one row."""

Cursor: TypeAlias = Any
"""Where a source stands out there: plain JSON (None, numbers, strings, lists, string-keyed dicts)."""

OnNewField: TypeAlias = Literal["evolve", "freeze", "discard"]

TIMESTAMP = pa.timestamp("us", tz="UTC")
"""The type of every time column."""

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(), "text": pa.string(), "int": pa.int64(), "int64": pa.int64(), "long": pa.int64(),
    "int32": pa.int32(), "double": pa.float64(), "float": pa.float64(), "bool": pa.bool_(), "boolean": pa.bool_(),
    "timestamp": TIMESTAMP, "binary": pa.binary(),
}  # fmt: skip
"""Names of types, as a configuration declares columns with."""

OPEN = {b"headrace.open": b"1"}
"""Field metadata of a struct whose fields come from outside: a reference to a field that hasn't been
seen yet is null of type double instead of an error."""

UNSEEN = {b"headrace.unseen": b"1"}
"""Field metadata, within a pipeline, of a column taken from a field that hasn't been seen yet: doubles, all null. In a
topic such a column has the type null (`pipeline.settled`), so that the first value may bring any type."""


def open_struct(fields: Sequence[pa.Field] = (), name: str = "payload") -> pa.Field:
    """A nullable struct field that may grow. Arrow files can't hold a struct without fields, so an
    empty one is left out of a schema until its first field is seen (`is_open_root` names it)."""
    return pa.field(name, pa.struct(list(fields)), metadata=OPEN)


def type_named(name: str, column: str) -> pa.DataType:
    """The type of a column declared by name. Raises PlanError saying which names there are."""
    if name not in TYPES:
        raise PlanError(f"{column}: there is no type {name!r}; there are {', '.join(TYPES)}")
    return TYPES[name]


EVENTS = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("received_at", TIMESTAMP),
        pa.field("event_type", pa.string()),
        open_struct(),
    ]
)
"""The envelope: who, when (event time), when accepted, what kind, and the payload."""

DEAD_LETTERS = pa.schema(
    [
        pa.field("timestamp", TIMESTAMP, nullable=False),  # when it was put aside
        pa.field("topic", pa.string(), nullable=False),  # where the row was going, or was
        pa.field(
            "component", pa.string(), nullable=False
        ),  # who put it aside, such as `http` or `pipelines.heat[0]`
        pa.field("code", pa.string(), nullable=False),  # the cause, from a short fixed list: groups
        pa.field("reason", pa.string(), nullable=False),  # the cause in words
        pa.field("source_id", pa.string()),  # as far as it could be read
        pa.field("raw", pa.binary(), nullable=False),  # the original bytes, or the row as JSON
        pa.field("partition", pa.int32()),  # where the row was in `topic`; null when it never got in
        pa.field("offset", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Half-open range of offsets `[start, end)` of one partition; `end` is always the next offset."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a span needs 0 <= start <= end, not [{self.start}, {self.end})")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


@dataclass(frozen=True)
class Topic:
    """A named sequence of rows with one schema, cut into partitions.

    `key` names the columns whose hash chooses the partition; without a key, rows are spread by batch.
    `at` is the event-time column. `retention` and `max_size` bound what the log keeps; rows that a
    registered reader still needs are kept beyond both.
    """

    name: str
    schema: pa.Schema
    partitions: int = 1
    key: tuple[str, ...] = ()
    at: str = "timestamp"
    on_new_field: OnNewField = "evolve"
    max_fields: int = 500
    retention: Duration = Duration(7 * 86_400_000_000)
    max_size: Size = Size(2 * 2**30)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that could not be used, on its way to the dead letters. `row` is its index in what was sent."""

    raw: bytes
    code: str
    reason: str
    source_id: str | None = None
    row: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a pushed body; all of it is durable. `rejects` are in the dead letters.

    `duplicate`: the Idempotency-Key was seen before; the counts are those of the first time, nothing was stored again.
    """

    accepted: int
    rejected: int = 0
    rejects: Sequence[Reject] = ()
    duplicate: bool = False

    @property
    def total(self) -> int:
        return self.accepted + self.rejected


@dataclass(frozen=True, slots=True)
class Epoch:
    """One micro-batch of one pipeline worker, recorded in the transaction that commits its outputs.

    Running it again on the same spans with the same `now_us` and `watermark_us` gives the same rows.
    """

    number: int
    spans: Mapping[tuple[str, int], Span] = field(default_factory=dict)  # (topic, partition) -> rows read
    now_us: int = 0
    watermark_us: int = -(2**62)  # event time below which nothing more is expected, after these rows


def dead_letters(
    rejects: Sequence[Reject],
    *,
    now_us: int,
    topic: str,
    component: str,
    places: Sequence[tuple[int, int]] | None = None,
) -> Rows:
    """Rejects as rows of `dead_letters`. `places` are (partition, offset) of each, when they were in a topic."""
    count = len(rejects)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([now_us] * count, TIMESTAMP),
            pa.array([topic] * count, pa.string()),
            pa.array([component] * count, pa.string()),
            pa.array([reject.code for reject in rejects], pa.string()),
            pa.array([_storable(reject.reason) for reject in rejects], pa.string()),
            pa.array([None if r.source_id is None else _storable(r.source_id) for r in rejects], pa.string()),
            pa.array([reject.raw for reject in rejects], pa.binary()),
            pa.array([place[0] for place in places] if places else [None] * count, pa.int32()),
            pa.array([place[1] for place in places] if places else [None] * count, pa.int64()),
        ],
        schema=DEAD_LETTERS,
    )


def as_json(rows: Rows) -> list[bytes]:
    """Each row as a JSON object, for the dead letters. A row loop: only rows that failed come here."""
    return [msgspec.json.encode(_plain(row)) for row in rows.to_pylist()]


def _plain(value: Any) -> Any:
    """Python values of an Arrow row as JSON has them: times as ISO 8601, bytes as text, NaN as null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates become U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


# -- schemas ---------------------------------------------------------------------------------------


def unify(
    schema: pa.Schema, incoming: pa.Schema, *, on_new_field: OnNewField = "evolve", where: str = ""
) -> pa.Schema:
    """`schema` grown by the fields of `incoming` that it lacks (nested structs too), as nullable fields.

    Numbers widen (int64 to double, int32 to int64); null takes the other's type; anything else that
    differs raises PlanError, and so does a new field under `freeze`. Under `discard`, `schema` comes
    back without the new fields.
    """
    fields = _unify_fields(list(schema), list(incoming), on_new_field, where)
    return pa.schema(fields, metadata=schema.metadata)


def _unify_fields(
    have: list[pa.Field], incoming: list[pa.Field], policy: OnNewField, where: str
) -> list[pa.Field]:
    merged = {f.name: f for f in have}
    for new in incoming:
        path = f"{where}.{new.name}" if where else new.name
        old = merged.get(new.name)
        if old is None:
            if policy == "freeze":
                raise PlanError(
                    f"{path}: unknown field, and on_new_field is freeze; known are {', '.join(merged)}"
                )
            if policy == "evolve":
                merged[new.name] = new.with_nullable(True)
        elif not old.type.equals(new.type):
            merged[new.name] = old.with_type(_unify_types(old.type, new.type, policy, path))
    return list(merged.values())


def _unify_types(old: pa.DataType, new: pa.DataType, policy: OnNewField, path: str) -> pa.DataType:
    if old.equals(new) or pa.types.is_null(new):
        return old
    if pa.types.is_null(old):
        return new
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        return pa.struct(_unify_fields(list(old), list(new), policy, path))
    if pa.types.is_list(old) and pa.types.is_list(new):
        return pa.list_(_unify_types(old.value_type, new.value_type, policy, path))
    if pa.types.is_integer(old) and pa.types.is_integer(new):
        if old.bit_width >= new.bit_width:
            return old
        signed = pa.types.is_signed_integer(old) and pa.types.is_unsigned_integer(new)
        return pa.int64() if signed else new  # what was stored must fit: no uint64 over negative numbers
    if (pa.types.is_floating(old) or pa.types.is_integer(old)) and (
        pa.types.is_floating(new) or pa.types.is_integer(new)
    ):
        return pa.float64()
    if pa.types.is_timestamp(old) and pa.types.is_timestamp(new):
        return old
    if pa.types.is_dictionary(new) and new.value_type.equals(old):
        return old
    raise PlanError(f"{path}: is {old}, and {new} does not fit")


def conform(rows: Rows, schema: pa.Schema) -> Rows:
    """`rows` in the columns, order and types of `schema`: missing fields are null, unknown ones dropped."""
    if rows.schema.equals(schema):
        return rows
    names = set(rows.schema.names)
    arrays = [
        _conform(rows.column(f.name), f.type) if f.name in names else pa.nulls(rows.num_rows, f.type)
        for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema) if arrays else rows.select([])


def _conform(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if array.type.equals(type_):
        return array
    if pa.types.is_struct(type_) and pa.types.is_struct(array.type):
        have = {f.name: i for i, f in enumerate(array.type)}
        children = [
            _conform(array.field(have[f.name]), f.type) if f.name in have else pa.nulls(len(array), f.type)
            for f in type_
        ]
        mask = array.is_null() if array.null_count else None
        if not children:
            return pa.array([None if null else {} for null in array.is_null().to_pylist()], type_)
        return pa.StructArray.from_arrays(children, fields=list(type_), mask=mask)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), type_)
    return pc.cast(
        array, options=pc.CastOptions(type_, allow_float_truncate=not _truncates(array.type, type_))
    )


def _truncates(have: pa.DataType, want: pa.DataType) -> bool:
    """Whether a cast would cut decimals off somewhere. Without that, integers beyond 2^53 may become doubles:
    rows stored as int64 must stay readable after their field has grown to double."""
    if pa.types.is_list(have) and pa.types.is_list(want):
        return _truncates(have.value_type, want.value_type)
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        fields = {f.name: f.type for f in have}
        return any(_truncates(fields[f.name], f.type) for f in want if f.name in fields)
    return bool(not pa.types.is_integer(have) and pa.types.is_integer(want))


def fitting(rows: Rows, schema: pa.Schema) -> npt.NDArray[np.bool_]:
    """Which rows have values only in fields that `schema` has, so that `conform` loses nothing of them."""
    return _fitting(
        list(zip(rows.schema, rows.columns, strict=True)), {f.name: f for f in schema}, rows.num_rows
    )


def _fitting(
    columns: Sequence[tuple[pa.Field, pa.Array]], known: Mapping[str, pa.Field], count: int
) -> npt.NDArray[np.bool_]:
    fits = np.ones(count, bool)
    for f, array in columns:
        if f.name not in known:
            fits &= array.is_null().to_numpy(zero_copy_only=False)
        elif pa.types.is_struct(f.type) and pa.types.is_struct(known[f.name].type):
            children = [(child, pc.struct_field(array, [child.name])) for child in f.type]
            fits &= _fitting(children, {child.name: child for child in known[f.name].type}, count)
    return fits


def concat(batches: Sequence[Rows], schema: pa.Schema) -> Rows:
    """All batches as one, in `schema`."""
    conformed = [conform(rows, schema) for rows in batches if rows.num_rows]
    if len(conformed) == 1:
        return conformed[0]
    if not conformed:
        return empty(schema)
    return pa.concat_batches(conformed)


def empty(schema: pa.Schema) -> Rows:
    """No rows of `schema`."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)


# -- partitions ------------------------------------------------------------------------------------


def partition_of(rows: Rows, key: Sequence[str], partitions: int) -> npt.NDArray[np.int32]:
    """Partition number of each row: CRC-32 of the key's text, the same on every machine and version."""
    if partitions == 1 or not key:
        return np.zeros(rows.num_rows, np.int32)
    total = np.zeros(rows.num_rows, np.uint64)
    for name in key:
        encoded = pc.dictionary_encode(pc.cast(rows.column(name), pa.string()), null_encoding="encode")
        # Row loop over distinct keys only: crc32 has no vectorised form here.
        hashes = np.array(
            [zlib.crc32(text.encode()) if text is not None else 0 for text in encoded.dictionary.to_pylist()],
            np.uint64,
        )
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        total = total * np.uint64(31) + hashes[codes]
    return (total % np.uint64(partitions)).astype(np.int32)


def split(rows: Rows, key: Sequence[str], partitions: int) -> dict[int, Rows]:
    """Rows by partition; rows of one key stay in their order. Partitions without rows are absent."""
    if not rows.num_rows:
        return {}
    if partitions == 1 or not key:
        return {0: rows}
    of = partition_of(rows, key, partitions)
    present = np.unique(of)
    if len(present) == 1:
        return {int(present[0]): rows}
    return {int(p): rows.take(pa.array(np.flatnonzero(of == p))) for p in present}
