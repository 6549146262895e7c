"""From one row with many fields to one row for each measured value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.component import Operator, PlanError, Rows, Step, option
from headrace.expression import Compiled, compile_all, evaluate, find_column


class Unpivot(Step, frozen=True, kw_only=True):
    """One row for each number in a struct: the columns of `keep`, then `metric` (text) and `value` (double).

    Numbers are integers, decimals, doubles, and booleans as 0 and 1; nested ones are named with dots, such as
    `battery.volt`. Null fields give no row, and neither do texts, times and lists. Rows come metric by metric, within a
    metric in the order of the input.

        - unpivot:                                  # events -> measurements
        - unpivot: {exclude: ["debug.*"], keep: [source_id, timestamp, event_type]}
    """

    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "expand"

    column: Annotated[str, option("the struct whose fields become rows")] = "payload"
    keep: Annotated[
        dict[str, str] | list[str],
        option("columns to hand on: names, or new name and SQL expression of each"),
    ] = msgspec.field(default_factory=lambda: {"sensor_id": "source_id", "timestamp": "timestamp"})
    include: Annotated[list[str], option("only metrics that match one of these globs; empty means all")] = (
        msgspec.field(default_factory=list)
    )
    exclude: Annotated[list[str], option("no metrics that match one of these globs")] = msgspec.field(
        default_factory=list
    )

    @classmethod
    def example(cls) -> Self:
        return cls()

    def output(self, schema: pa.Schema) -> pa.Schema:
        kept = self._kept(schema)
        self._leaves(schema)
        return _schema(kept)

    def open(self, schema: pa.Schema) -> Operator:
        kept = self._kept(schema)
        return _Unpivot(tuple(kept.values()), self._leaves(schema), _schema(kept))

    def _kept(self, schema: pa.Schema) -> dict[str, Compiled]:
        keep = self.keep
        named = (
            keep if isinstance(keep, dict) else {text.rpartition(".")[2].strip('"'): text for text in keep}
        )
        taken = [name for name in ("metric", "value") if name in named]
        if taken:
            raise PlanError(
                f"keep: {taken[0]!r} is the name of a column that this step adds; give the kept one another"
            )
        return compile_all(named, schema)

    def _leaves(self, schema: pa.Schema) -> tuple[_Leaf, ...]:
        found = find_column(schema, self.column.split("."))
        if found is None:
            return ()
        if not pa.types.is_struct(found.field.type):
            raise PlanError(f"column {self.column!r} is a {found.field.type}; a struct is expected")
        return tuple(
            leaf
            for leaf in _walk(found.field.type, "", (found.index, *found.children))
            if (not self.include or any(fnmatchcase(leaf.metric, glob) for glob in self.include))
            and not any(fnmatchcase(leaf.metric, glob) for glob in self.exclude)
        )


def _schema(kept: dict[str, Compiled]) -> pa.Schema:
    return pa.schema(
        [
            *(one.field.with_name(name) for name, one in kept.items()),
            pa.field("metric", pa.string(), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
        ]
    )


@dataclass(frozen=True, slots=True)
class _Leaf:
    metric: str
    path: tuple[int, ...]  # index of the column, then of the fields in it


def _walk(type_: pa.StructType, above: str, path: tuple[int, ...]) -> Iterator[_Leaf]:
    for number, field in enumerate(type_):
        name, here = above + field.name, (*path, number)
        if pa.types.is_struct(field.type):
            yield from _walk(field.type, name + ".", here)
        elif any(is_(field.type) for is_ in _NUMERIC):
            yield _Leaf(name, here)


_NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)


class _Unpivot(Operator):
    def __init__(self, kept: tuple[Compiled, ...], leaves: tuple[_Leaf, ...], schema: pa.Schema) -> None:
        self._kept, self._leaves, self._schema = kept, leaves, schema

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        kept = evaluate(self._kept, rows) if self._kept else []
        parts: list[list[pa.Array]] = [[] for _ in kept]
        values: list[pa.Array] = []
        counts: list[tuple[str, int]] = []
        for leaf in self._leaves:
            value = pc.struct_field(rows.column(leaf.path[0]), list(leaf.path[1:]))
            count = len(value) - value.null_count
            if not count:
                continue
            whole = count == len(value)
            present = None if whole else value.is_valid()
            value = value if whole else value.drop_null()
            values.append(value if pa.types.is_float64(value.type) else _double(value))
            counts.append((leaf.metric, count))
            for part, array in zip(parts, kept, strict=True):
                part.append(array if whole else array.filter(present))
        if not counts:
            return pa.RecordBatch.from_arrays(
                [pa.nulls(0, field.type) for field in self._schema], schema=self._schema
            )
        joined = [pa.concat_arrays(part) for part in parts]
        return pa.RecordBatch.from_arrays(
            [*joined, _metrics(counts), pa.concat_arrays(values)], schema=self._schema
        )


def _double(array: pa.Array) -> pa.Array:
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    return pc.cast(array, pa.float64(), safe=False)  # beyond 2**53 the nearest double


def _metrics(counts: list[tuple[str, int]]) -> pa.Array:
    """Each name `count` times. Laid out by hand: three times as fast as a dictionary cast to text."""
    names = [(name.encode(), count) for name, count in counts]
    lengths = np.repeat(np.array([len(name) for name, _ in names], np.int64), [count for _, count in names])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = pa.py_buffer(b"".join(name * count for name, count in names))
    if len(data) < 2**31:
        return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets.astype(np.int32)), data)
    raise PlanError("more than 2 GiB of metric names in one batch")
