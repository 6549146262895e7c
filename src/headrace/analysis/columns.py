"""Find a column by name or dotted path, and take it out of rows as Arrow or NumPy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import PlanError
from headrace.model import OPEN, UNSEEN, Rows

MAX_TIME_US = 2**61
"""Event times beyond plus or minus 73,000 years can't be windowed without overflow; they count as missing."""

_OPEN_ROOT = "payload"  # left out of a schema until its first field is seen


@dataclass(frozen=True)
class Pick:
    """Where a column is in a schema. `steps` is empty for a field of an open struct that hasn't been seen yet:
    such a column is null, of type double, and so is one that never had a value (`unseen`)."""

    name: str
    type: pa.DataType
    steps: tuple[int, ...] = ()
    nullable: bool = True
    unseen: bool = False

    def field(self, name: str) -> pa.Field:
        """A field for its values."""
        return pa.field(name, self.type, self.nullable, metadata=UNSEEN if self.unseen else None)

    @property
    def short(self) -> str:
        """The last part of a dotted path."""
        return self.name if len(self.steps) == 1 else self.name.rpartition(".")[2]

    def of(self, rows: Rows) -> pa.Array:
        """The column, one value a row; null where a struct on the way is null."""
        if not self.steps:
            return pa.nulls(rows.num_rows, self.type)
        column = rows.column(self.steps[0])
        if len(self.steps) > 1:
            column = pc.struct_field(column, list(self.steps[1:]))
        # Views can't be filtered or taken from yet.
        return pc.cast(column, self.type) if _is_view(column.type) else column


def pick(schema: pa.Schema, path: str, *, step: str, option: str) -> Pick:
    """The column that `path` names: a column of exactly that name, or a field in nested structs.

    Raises PlanError naming the step, the option, what there is and the nearest name. `type` is the type of the
    values: a dictionary-encoded column counts as what it encodes.
    """
    if path in schema.names:
        field = schema.field(path)
        return Pick(
            path, plain(field.type), (schema.names.index(path),), field.nullable, pa.types.is_null(field.type)
        )
    first, *rest = path.split(".")
    if rest and first in schema.names:
        steps = [schema.names.index(first)]
        field = schema.field(first)
        for part in rest:
            if not pa.types.is_struct(field.type):
                raise PlanError(
                    f"{step}: {option} names {path!r}, but {field.name} is {field.type}, not a struct"
                )
            index = field.type.get_field_index(part)
            if index < 0:
                if field.metadata and field.metadata.get(b"headrace.open") == OPEN[b"headrace.open"]:
                    return Pick(path, pa.float64(), unseen=True)
                raise _missing(schema, path, step, option)
            steps.append(index)
            field = field.type.field(index)
        return Pick(path, plain(field.type), tuple(steps), unseen=pa.types.is_null(field.type))
    if rest and first == _OPEN_ROOT:
        return Pick(path, pa.float64(), unseen=True)
    raise _missing(schema, path, step, option)


def plain(type_: pa.DataType) -> pa.DataType:
    """The type of the values: what a dictionary encodes, one type for all kinds of string, double for null, float
    for half floats."""
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    if pa.types.is_null(type_):
        return pa.float64()
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    return pa.float32() if pa.types.is_float16(type_) else type_


def _is_view(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(type_) or pa.types.is_binary_view(type_))


def comparable(type_: pa.DataType) -> bool:
    """Whether values of this type can be told apart and put in order."""
    return not (pa.types.is_nested(type_) or pa.types.is_interval(type_))


def paths(schema: pa.Schema) -> list[str]:
    """All names that `pick` would find."""

    def walk(fields: Iterator[pa.Field], before: str) -> Iterator[str]:
        for field in fields:
            yield before + field.name
            if pa.types.is_struct(field.type):
                yield from walk(iter(field.type), f"{before}{field.name}.")

    return list(walk(iter(schema), ""))


def _missing(schema: pa.Schema, path: str, step: str, option: str) -> PlanError:
    known = paths(schema)
    near = difflib.get_close_matches(path, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
    return PlanError(
        f"{step}: {option} names {path!r}, which is no column; there are {shown or 'none'}{hint}"
    )


def numeric(type_: pa.DataType) -> bool:
    """Whether values of this type can be averaged."""
    return bool(
        pa.types.is_integer(type_)
        or pa.types.is_floating(type_)
        or pa.types.is_boolean(type_)
        or pa.types.is_decimal(type_)
    )


def floats(array: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers as float64; null becomes NaN. Integers beyond 2**53 lose their last digits."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    if not pa.types.is_float64(array.type):
        array = pc.cast(array, pa.float64(), safe=False)
    values: npt.NDArray[np.float64] = array.to_numpy(zero_copy_only=False)
    return values


def times(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Event times in microseconds, and which of them are missing or out of range (None: all are good)."""
    if not pa.types.is_timestamp(array.type) or array.type.unit != "us":
        array = pc.cast(array, pa.timestamp("us", tz="UTC"), safe=False)
    bad = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    stamps = array.view(pa.int64())
    values: npt.NDArray[np.int64] = (stamps.fill_null(0) if bad is not None else stamps).to_numpy()
    if len(values) and (values.max() >= MAX_TIME_US or values.min() <= -MAX_TIME_US):
        beyond = (values >= MAX_TIME_US) | (values <= -MAX_TIME_US)
        bad = beyond if bad is None else bad | beyond
    return values, bad


def pick_time(schema: pa.Schema, path: str, *, step: str, option: str = "at") -> Pick:
    """The event-time column; raises PlanError unless it holds timestamps."""
    found = pick(schema, path, step=step, option=option)
    if not pa.types.is_timestamp(found.type):
        raise PlanError(f"{step}: {option} must name a timestamp column; {path!r} is {found.type}")
    return found


def pick_number(schema: pa.Schema, path: str, *, step: str, option: str) -> Pick:
    """A column of numbers; raises PlanError for anything else."""
    found = pick(schema, path, step=step, option=option)
    if not numeric(found.type):
        raise PlanError(f"{step}: {option} needs numbers; {path!r} is {found.type}")
    return found


def pick_key(schema: pa.Schema, path: str, *, step: str, option: str = "by") -> Pick:
    """A column to group by; raises PlanError for structs, lists, maps and intervals."""
    found = pick(schema, path, step=step, option=option)
    if not comparable(found.type):
        raise PlanError(f"{step}: {option} can't be {path!r}, which is {found.type}; name a field inside it")
    return found


def stored(array: pa.Array | None, type_: pa.DataType, rows: int) -> pa.Array:
    """A column of saved state in the type it has now: a field that was not there yet is null."""
    if array is None or array.null_count == rows:
        return pa.nulls(rows, type_)
    return array if array.type.equals(type_) else pc.cast(array, type_)
