"""Whole columns from CSV, Arrow or log lines to the rows of a topic, by the same rules as JSON.

A column of a type that a field can't hold refuses the body as a whole; a value refuses its row only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import PlanError
from headrace.formats import timestamps
from headrace.formats.faults import FormatFaultError, Refused
from headrace.formats.fields import MAX_NAME, Kind, json_text
from headrace.formats.rows import ENVELOPE, MAX_SOURCE_ID, TYPE_KEYS, RowReader
from headrace.model import TIMESTAMP, OnNewField, Rows, conform, open_struct, unify

_NUMBERS = pa.list_(pa.float64())


class TableReader:
    """Columns of one body as rows. `refused` has the verdict on rows that can't be used, by index."""

    def __init__(self, reader: RowReader, *, policy: OnNewField, max_fields: int) -> None:
        self._reader = reader
        self._count = 0
        self._policy = policy
        self._max_fields = max_fields
        self._limits = reader.limits
        self.refused: dict[int, Refused] = {}
        self._ids: pa.Array | None = None

    def source_id(self, row: int) -> str | None:
        """Who sent a row, as far as is known."""
        found = self._ids[row].as_py() if self._ids is not None else None
        return found[:MAX_SOURCE_ID] if found else None

    def rows(
        self, columns: Mapping[str, pa.Array], count: int, refused: Mapping[int, Refused]
    ) -> Rows | None:
        """The rows that can be used; None when there is none. Raises FormatFaultError for columns that don't fit."""
        self._count = count
        self.refused.update(refused)
        if len(self.refused) == count:
            return None
        plan = self._reader.plan
        made = self._event(dict(columns)) if plan.envelope else self._struct(columns, plan.root, "", 1)
        missing = [name for name in plan.root.required if name not in made]
        if missing:
            raise FormatFaultError(f"there is no column {missing[0]!r}; there are {', '.join(columns)}")
        for name in plan.root.required:
            nulls = np.asarray(made[name].is_null()) if made[name].null_count else None
            if nulls is not None:
                self._refuse(nulls, "missing_field", f"{name} is missing")
        if (
            not plan.envelope
            and self._reader.at in made
            and pa.types.is_timestamp(made[self._reader.at].type)
        ):
            self._check_future(_microseconds(made[self._reader.at]))
        fields = [
            open_struct(list(array.type), name)
            if pa.types.is_struct(array.type)
            else pa.field(name, array.type)
            for name, array in made.items()
            if not (pa.types.is_struct(array.type) and array.type.num_fields == 0)
        ]
        arrays = [made[f.name] for f in fields]
        try:
            schema = unify(plan.out, pa.schema(fields))
        except PlanError as error:
            raise FormatFaultError(str(error)) from error
        if Kind(pa.struct(list(schema))).count() - 1 > max(self._max_fields, plan.count):
            raise FormatFaultError(f"the columns would take the topic over its {self._max_fields} fields")
        keep = np.ones(self._count, bool)
        keep[list(self.refused)] = False
        if not keep.any():
            return None
        rows = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        if self.refused:
            rows = rows.filter(pa.array(keep))
        return conform(rows, schema.with_metadata(plan.out.metadata))

    # -- the envelope ------------------------------------------------------------------------------

    def _event(self, columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
        naming = self._reader.naming
        now = pa.array(np.full(self._count, self._reader.now_us, np.int64), TIMESTAMP)
        out = {"source_id": self._source_ids(columns), "timestamp": now, "received_at": now}
        stamp = columns.pop(naming.time_key, None)
        if stamp is not None:
            out["timestamp"] = self._times(stamp, naming.time_key, now)
            self._check_future(_microseconds(out["timestamp"]))
        columns.pop("received_at", None)
        types = [key for key in TYPE_KEYS if key in columns]
        known = self._reader.plan.root.fields
        if types and "event_type" in known:
            out["event_type"] = self._value(columns.pop(types[0]), known["event_type"], types[0], 1)
        payload = columns.pop("payload", None)
        if payload is None:
            inside, columns = columns, {}
            if not inside:
                raise FormatFaultError("there is no column beside the envelope's own")
            out["payload"] = _struct_array(self._struct(inside, known["payload"], "payload", 2), self._count)
        elif not pa.types.is_struct(payload.type):
            raise FormatFaultError(f"payload: a struct is expected, not {payload.type}")
        else:
            out["payload"] = self._value(payload, known["payload"], "payload", 1)
            self._refuse_nulls(payload, "the row has no payload")
        beside = {name: array for name, array in columns.items() if name not in ENVELOPE}
        return out | self._struct(beside, self._reader.plan.root, "", 1)

    def _source_ids(self, columns: dict[str, pa.Array]) -> pa.Array:
        naming = self._reader.naming
        keys = [key for key in naming.source_keys if key in columns]
        if keys:
            ids = columns.pop(keys[0])
            if (
                pa.types.is_floating(ids.type)
                or pa.types.is_boolean(ids.type)
                or pa.types.is_nested(ids.type)
            ):
                raise FormatFaultError(f"{keys[0]}: a text is expected, not {ids.type}")
            ids = self._cast(ids, pa.string(), keys[0])
        elif naming.default_source:
            ids = pa.nulls(self._count, pa.string())
        else:
            raise FormatFaultError(f"there is no column sourceId; there are {', '.join(columns)}")
        if naming.default_source:
            ids = pc.fill_null(ids, pa.scalar(naming.default_source, pa.string()))
        lengths = np.asarray(pc.utf8_length(ids).fill_null(pa.scalar(0, pa.int32())))
        self._refuse(lengths == 0, "missing_field", "sourceId is missing or empty")
        self._refuse(
            lengths > MAX_SOURCE_ID, "too_large", f"sourceId has more than {MAX_SOURCE_ID} characters"
        )
        self._ids = ids
        return ids

    # -- values ------------------------------------------------------------------------------------

    def _struct(
        self, columns: Mapping[str, pa.Array], kind: Kind, path: str, depth: int
    ) -> dict[str, pa.Array]:
        if depth > self._limits.max_depth:
            raise FormatFaultError(f"{path} is nested deeper than {self._limits.max_depth}")
        out = {}
        for name, array in columns.items():
            where = f"{path}.{name}" if path else name
            known = kind.fields.get(name)
            if known is not None:
                out[name] = self._value(array, known, where, depth)
                continue
            if array.null_count == len(array) or self._policy == "discard":
                continue
            if not 0 < len(name) <= MAX_NAME:
                raise FormatFaultError(f"a column's name has 1 to {MAX_NAME} characters, not {len(name)}")
            if self._policy == "freeze":
                reason = f"{where} is not a field of this topic, and its on_new_field is freeze"
                self._refuse(np.asarray(array.is_valid()), "new_field", reason)
                continue
            new = self._value(array, _natural(array.type), where, depth)
            if not (pa.types.is_struct(new.type) and new.type.num_fields == 0):
                out[name] = new
        return out

    def _value(self, array: pa.Array, kind: Kind, path: str, depth: int) -> pa.Array:
        """A column as the topic's field holds it."""
        type_ = array.type
        if pa.types.is_dictionary(type_):
            array = array.dictionary_decode()
            type_ = array.type
        if pa.types.is_null(type_):
            return pa.nulls(len(array), kind.type)
        tag = kind.tag
        if tag == "struct" and pa.types.is_struct(type_):
            children = {f.name: child for f, child in zip(type_, array.flatten(), strict=True)}
            made = self._struct(children, kind, path, depth + 1)
            return _struct_array(made, len(array), array.is_null() if array.null_count else None)
        if tag == "number" and _is_number(type_):
            numbers = self._cast(array, pa.float64(), path)
            values = numbers.to_numpy(zero_copy_only=False)
            bad = ~np.isfinite(values) & np.asarray(numbers.is_valid())
            self._refuse(bad, "out_of_range", f"{path}: NaN, Infinity or a number out of range")
            return self._cast(numbers, kind.type, path)
        if tag == "text":
            return self._texts(array, kind, path)
        if tag == "time":
            return self._cast(self._times(array, path, None), kind.type, path)
        if tag == "list" and pa.types.is_list(type_) and kind.item is not None and kind.item.tag == "number":
            return self._cast(array, kind.type, path)
        if (
            type_.equals(kind.type)
            or (tag == "integer" and _is_number(type_))
            or (tag == "date" and pa.types.is_string(type_))
        ):
            return self._cast(array, kind.type, path)
        raise FormatFaultError(f"{path}: {kind.type} is expected, not {type_}")

    def _texts(self, array: pa.Array, kind: Kind, path: str) -> pa.Array:
        if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
            # Row loop: Arrow can't write nested values as JSON.
            values = array.to_pylist()
            texts = pa.array([None if v is None else json_text(_plain(v)) for v in values], pa.string())
        else:
            texts = self._cast(array, pa.string(), path)
        sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
        limit = self._limits.max_field_bytes
        self._refuse(sizes > limit, "too_large", f"{path} has more than {limit} bytes")
        return texts if texts.type.equals(kind.type) else self._cast(texts, kind.type, path)

    def _times(self, array: pa.Array, path: str, default: pa.Array | None) -> pa.Array:
        type_ = array.type
        if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
            us = pc.cast(
                pc.cast(
                    array, pa.timestamp("us", type_.tz if pa.types.is_timestamp(type_) else None), safe=False
                ),
                pa.int64(),
            )
            bad = np.asarray(us.is_valid()) & ~_within(us.fill_null(pa.scalar(0, pa.int64())))
        elif pa.types.is_string(type_) or _is_number(type_):
            valid = np.flatnonzero(np.asarray(array.is_valid()))
            us_found = np.zeros(len(array), np.int64)
            if len(valid):
                values = array.drop_null()
                us_found[valid] = timestamps.column(values.to_pylist())
                for i in valid[us_found[valid] < 0]:  # the few that only the row path can judge
                    try:
                        us_found[i] = timestamps.one(array[int(i)].as_py())
                    except Refused as refused:
                        self.refused.setdefault(int(i), Refused(refused.code, f"{path}: {refused.reason}"))
            us = pa.array(us_found, pa.int64(), mask=np.asarray(array.is_null()))
            bad = np.zeros(len(array), bool)
        else:
            raise FormatFaultError(f"{path}: a time is expected, not {type_}")
        self._refuse(bad, "bad_timestamp", f"{path} is not between 1970 and 2262")
        us = pc.cast(us, TIMESTAMP)
        return us if default is None else pc.coalesce(us, default)

    def _cast(self, array: pa.Array, type_: pa.DataType, path: str) -> pa.Array:
        try:
            return pc.cast(array, type_, safe=not pa.types.is_floating(type_))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise FormatFaultError(f"{path}: {type_} is expected: {error}") from error

    # -- verdicts ----------------------------------------------------------------------------------

    def _check_future(self, us: npt.NDArray[np.int64]) -> None:
        self._refuse(us > self._limits.latest_us, "future_timestamp", f"{self._reader.at} is in the future")

    def _refuse_nulls(self, array: pa.Array, reason: str) -> None:
        if array.null_count:
            self._refuse(np.asarray(array.is_null()), "missing_field", reason)

    def _refuse(self, bad: npt.NDArray[np.bool_], code: str, reason: str) -> None:
        for i in np.flatnonzero(bad):
            self.refused.setdefault(int(i), Refused(code, reason))


def _microseconds(times: pa.Array) -> npt.NDArray[np.int64]:
    ticks = pc.cast(pc.cast(times, pa.timestamp("us", times.type.tz), safe=False), pa.int64())
    return np.asarray(ticks.fill_null(pa.scalar(0, pa.int64())))


def _within(us: pa.Array) -> npt.NDArray[np.bool_]:
    values = np.asarray(us)
    return (values >= 0) & (values <= timestamps.LAST_US)


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _natural(type_: pa.DataType) -> Kind:
    """What a new field becomes, by the rules for JSON: numbers double, lists of numbers, the rest text."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if _is_number(type_):
        return Kind(pa.float64())
    if pa.types.is_boolean(type_):
        return Kind(type_)
    if pa.types.is_timestamp(type_):
        return Kind(TIMESTAMP)
    if pa.types.is_struct(type_):
        return Kind(pa.struct([]))
    if (pa.types.is_list(type_) or pa.types.is_large_list(type_)) and _is_number(type_.value_type):
        return Kind(_NUMBERS)
    return Kind(pa.string())


def _struct_array(columns: Mapping[str, pa.Array], count: int, mask: pa.Array | None = None) -> pa.Array:
    if not columns:
        return pa.array([{}] * count, pa.struct([]))
    fields = [pa.field(name, array.type) for name, array in columns.items()]
    return pa.StructArray.from_arrays(list(columns.values()), fields=fields, mask=mask)


def _plain(value: Any) -> Any:
    """A value that json.dumps takes."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def row_text(columns: Mapping[str, pa.Array]) -> Callable[[int], bytes]:
    """The JSON text of a row by index, for the reject of a row that came without text of its own."""
    return lambda i: json_text({name: _plain(array[i].as_py()) for name, array in columns.items()}).encode()
