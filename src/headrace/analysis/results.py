"""What a window step computes: its results, and the accumulators they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.analysis.aggregate import (
    Accumulator,
    Count,
    First,
    Last,
    Max,
    Min,
    Moments,
    Sum,
    Table,
    doubles,
)  # fmt: skip
from headrace.analysis.columns import Pick
from headrace.analysis.groups import Ids
from headrace.analysis.sketch import Distinct, Quantiles
from headrace.model import Rows


@dataclass(frozen=True)
class Result:
    """One aggregate: output name and type, what to compute of which column (None: of the rows)."""

    name: str
    kind: str
    column: Pick | None
    type: pa.DataType
    quantile: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a window step does to rows of the schema `input`. For sessions, `length_us` and `hop_us` are the gap."""

    input: pa.Schema
    schema: pa.Schema
    at: Pick
    keys: tuple[Pick, ...]
    results: tuple[Result, ...]
    length_us: int
    hop_us: int
    lateness_us: int = 0
    early_us: int = 0
    sessions: bool = False
    late_topic: str = ""

    def table(self) -> Table:
        """Accumulators for the results; those that several results need are there once."""
        accumulators: dict[tuple[str, str | None], Accumulator] = {}
        for result in self.results:
            column = result.column.name if result.column is not None else None
            for kind in _NEEDS[result.kind]:
                if (kind, column) not in accumulators:
                    accumulators[kind, column] = _accumulator(kind, result)
        return Table(accumulators)

    def columns(self, rows: Rows) -> dict[str, pa.Array]:
        """The columns that the accumulators take."""
        picks = {result.column.name: result.column for result in self.results if result.column is not None}
        return {name: found.of(rows) for name, found in picks.items()}

    def values(self, table: Table, groups: Ids) -> list[pa.Array]:
        """The results of these groups, all different, in the order of the output columns."""
        wanted: dict[str, list[float]] = {}
        for result in self.results:
            if result.column is not None and result.kind == "quantile":
                wanted.setdefault(result.column.name, []).append(result.quantile)
        quantiles: dict[tuple[str, float], npt.NDArray[np.float64]] = {}
        for column, shares in wanted.items():
            sketch = table.accumulators["quantile", column]
            assert isinstance(sketch, Quantiles)
            found = sketch.result(groups, shares)
            quantiles.update({(column, share): values for share, values in zip(shares, found, strict=True)})
        return [_value(result, table, groups, quantiles) for result in self.results]


_NEEDS = {
    "count": ("count",),
    "sum": ("count", "sum"),
    "mean": ("count", "sum"),
    "min": ("count", "min"),
    "max": ("count", "max"),
    "stddev": ("stddev",),
    "first": ("first",),
    "last": ("last",),
    "distinct": ("distinct",),
    "quantile": ("quantile",),
}
_KINDS: Mapping[str, type[Accumulator]] = {
    "count": Count, "sum": Sum, "min": Min, "max": Max, "stddev": Moments, "distinct": Distinct, "quantile": Quantiles,
}  # fmt: skip


def _accumulator(kind: str, result: Result) -> Accumulator:
    if kind in ("first", "last"):
        return (First if kind == "first" else Last)(result.type)
    return _KINDS[kind]()


def _value(
    result: Result, table: Table, groups: Ids, quantiles: Mapping[tuple[str, float], npt.NDArray[np.float64]]
) -> pa.Array:
    column = result.column.name if result.column is not None else None
    if result.kind == "quantile":
        return doubles(quantiles[column or "", result.quantile])
    if result.kind in ("sum", "min", "max", "mean"):
        counter = table.accumulators["count", column]
        assert isinstance(counter, Count)
        count = counter.result(groups)
        kind = "sum" if result.kind == "mean" else result.kind
        values = table.accumulators[kind, column].data[kind][groups].astype(np.float64)
        if result.kind == "mean":
            values = values / np.maximum(count, 1)
        return doubles(values, count == 0)
    accumulator = table.accumulators[result.kind, column]
    if isinstance(accumulator, Moments):
        with np.errstate(all="ignore"):
            return doubles(accumulator.result(groups))
    assert isinstance(accumulator, (Count, Distinct, First, Last))
    found = accumulator.result(groups)
    return pa.array(found) if isinstance(found, np.ndarray) else found
