"""Accumulators: running aggregates of many groups at once, one cell of an array for each group.

Rows are added in order, each to the cell of its group, so how a stream is cut into batches doesn't change a single
bit of sum, count, min, max, mean or standard deviation.

The standard deviation keeps, for each group, its first value K and the sums of x - K and (x - K)^2. As K is one of
the values, the sum of squares is at most (n + 1) times the squared deviations from the mean, so at most a factor of n
in rounding is lost, whatever the mean (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance",
shifted data). Two groups are merged by moving the sums of one to the K of the other, which is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.columns import floats
from headrace.analysis.groups import Ids, RowPool, grown

Bools = npt.NDArray[np.bool_]
Cells: TypeAlias = Mapping[str, tuple[type[np.generic], float]]


class Feed:
    """One column of a batch on its way into accumulators: rows without a value (null, NaN) are left out.

    `array` None stands for the rows themselves.
    """

    def __init__(self, array: pa.Array | None, groups: Ids, times: Ids) -> None:
        if array is not None and pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        self._array, self._groups, self._times = array, groups, times

    @cached_property
    def _floats(self) -> npt.NDArray[np.float64]:
        return floats(self._array)

    @cached_property
    def _present(self) -> Bools | None:
        """Which rows have a value; None when all do."""
        if self._array is None:
            return None
        if pa.types.is_floating(self._array.type):
            missing: Bools = np.isnan(self._floats)
        elif self._array.null_count:
            missing = pc.is_null(self._array).to_numpy(zero_copy_only=False)
        else:
            return None
        return ~missing if missing.any() else None

    @cached_property
    def groups(self) -> Ids:
        return self._groups if self._present is None else self._groups[self._present]

    @cached_property
    def times(self) -> Ids:
        return self._times if self._present is None else self._times[self._present]

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        return self._floats if self._present is None else self._floats[self._present]

    @cached_property
    def array(self) -> pa.Array:
        if self._present is None or self._array is None:
            return self._array
        return self._array.filter(pa.array(self._present))


class Accumulator:
    """Cells of all groups. `cells` names the arrays, with their type and what an empty group holds."""

    cells: ClassVar[Cells] = {}

    def __init__(self) -> None:
        self.size = 0
        self.data: dict[str, npt.NDArray[Any]] = {
            name: np.empty(0, dtype) for name, (dtype, _) in self.cells.items()
        }

    def blank(self) -> Accumulator:
        """One like this, without groups."""
        return type(self)()

    def resize(self, size: int) -> None:
        """Room for `size` groups; new ones are empty."""
        for name, (_, fill) in self.cells.items():
            self.data[name] = grown(self.data[name], size, fill)
        self.size = max(self.size, size)

    def add(self, feed: Feed) -> None:
        raise NotImplementedError

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        """Group `into[i]` takes in what group `groups[i]` of `other` (of the same kind) holds."""
        raise NotImplementedError

    def keep(self, groups: Ids) -> None:
        """Forget all groups but these, which become 0, 1, 2, ... in the order given."""
        for name, (dtype, fill) in self.cells.items():
            self.data[name] = grown(self.data[name][groups].astype(dtype), 64, fill)
        self.size = len(groups)

    def save(self, groups: Ids) -> dict[str, pa.Array]:
        """The state of these groups, by column."""
        return {name: pa.array(array[groups]) for name, array in self.data.items()}

    def load(self, state: Mapping[str, pa.Array], count: int) -> None:
        """Into an accumulator without groups: what `save` gave. What is missing stays empty."""
        self.resize(count)
        for name, (dtype, _) in self.cells.items():
            if name in state:
                self.data[name][:count] = state[name].to_numpy(zero_copy_only=False).astype(dtype)


class Count(Accumulator):
    """Rows, or rows that have a value."""

    cells: ClassVar[Cells] = {"n": (np.int64, 0)}

    def add(self, feed: Feed) -> None:
        np.add.at(self.data["n"], feed.groups, 1)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        np.add.at(self.data["n"], into, other.data["n"][groups])

    def result(self, groups: Ids) -> Ids:
        counts: Ids = self.data["n"][groups].astype(np.int64)
        return counts


class Sum(Accumulator):
    cells: ClassVar[Cells] = {"sum": (np.float64, 0.0)}

    def add(self, feed: Feed) -> None:
        np.add.at(self.data["sum"], feed.groups, feed.values)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        np.add.at(self.data["sum"], into, other.data["sum"][groups])


class Min(Accumulator):
    cells: ClassVar[Cells] = {"min": (np.float64, np.inf)}

    def add(self, feed: Feed) -> None:
        np.minimum.at(self.data["min"], feed.groups, feed.values)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        np.minimum.at(self.data["min"], into, other.data["min"][groups])


class Max(Accumulator):
    cells: ClassVar[Cells] = {"max": (np.float64, -np.inf)}

    def add(self, feed: Feed) -> None:
        np.maximum.at(self.data["max"], feed.groups, feed.values)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        np.maximum.at(self.data["max"], into, other.data["max"][groups])


class Moments(Accumulator):
    """For the standard deviation; see the top of this file."""

    cells: ClassVar[Cells] = {
        "n": (np.int64, 0),
        "shift": (np.float64, 0.0),
        "s1": (np.float64, 0.0),
        "s2": (np.float64, 0.0),
    }

    def add(self, feed: Feed) -> None:
        self._shift(feed.groups, feed.values)
        away = feed.values - self.data["shift"][feed.groups]
        np.add.at(self.data["n"], feed.groups, 1)
        np.add.at(self.data["s1"], feed.groups, away)
        np.add.at(self.data["s2"], feed.groups, away * away)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        filled = other.data["n"][groups] > 0
        into, groups = into[filled], groups[filled]
        n, shift, s1, s2 = (other.data[name][groups] for name in ("n", "shift", "s1", "s2"))
        self._shift(into, shift)
        move = shift - self.data["shift"][into]
        np.add.at(self.data["n"], into, n)
        np.add.at(self.data["s1"], into, s1 + n * move)
        np.add.at(self.data["s2"], into, s2 + 2 * move * s1 + n * move * move)

    def _shift(self, groups: Ids, values: npt.NDArray[np.generic]) -> None:
        """Give groups that are still empty their first value as K."""
        fresh = np.flatnonzero(self.data["n"][groups] == 0)[::-1]
        self.data["shift"][groups[fresh]] = values[
            fresh
        ]  # backwards: the first one is written last and stays

    def result(self, groups: Ids) -> npt.NDArray[np.float64]:
        """Sample standard deviation; NaN for fewer than two values."""
        n, s1, s2 = (self.data[name][groups].astype(np.float64) for name in ("n", "s1", "s2"))
        squares = np.maximum(s2 - s1 * s1 / np.maximum(n, 1), 0.0)
        return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


class _Edge(Accumulator):
    """The value at one end of event time. Values of any type stand in a pool, cells hold their number there."""

    def __init__(self, type_: pa.DataType) -> None:
        super().__init__()
        self._schema = pa.schema([pa.field("value", type_)])
        self._pool = RowPool(self._schema)

    def blank(self) -> Accumulator:
        return type(self)(self._schema.field(0).type)

    def add(self, feed: Feed) -> None:
        self._offer(feed.groups, feed.times, feed.array)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        assert isinstance(other, _Edge)
        numbers = other.data["ref"][groups].astype(np.int64)
        filled = numbers >= 0
        times = other.data["time"][groups][filled].astype(np.int64)
        self._offer(into[filled], times, other._pool.take(numbers[filled]).column(0))

    def _winners(self, groups: Ids, times: Ids) -> Ids:
        """Rows that may replace what their group holds, the one to be kept last."""
        raise NotImplementedError

    def _offer(self, groups: Ids, times: Ids, array: pa.Array) -> None:
        rows = self._winners(groups, times)
        if not len(rows):
            return
        refs = self.data["ref"]
        refs[groups[rows]] = -2 - rows
        rows = rows[refs[groups[rows]] == -2 - rows]
        values = array.take(pa.array(rows))
        if not values.type.equals(self._schema.field(0).type):
            values = pc.cast(values, self._schema.field(0).type)
        start = self._pool.append(pa.RecordBatch.from_arrays([values], schema=self._schema))
        refs[groups[rows]] = np.arange(start, start + len(rows))
        if len(self._pool) > 2 * self.size + 1024:
            self._tidy()

    def _tidy(self) -> None:
        """Drop values that no group holds any more."""
        refs = self.data["ref"]
        held = np.flatnonzero(refs[: self.size] >= 0)
        self._pool.keep(refs[held].astype(np.int64))
        refs[held] = np.arange(len(held))

    def keep(self, groups: Ids) -> None:
        super().keep(groups)
        self._tidy()

    def result(self, groups: Ids) -> pa.Array:
        refs = self.data["ref"][groups].astype(np.int64)
        held = refs >= 0
        if held.all():
            return self._pool.take(refs).column(0)
        if not held.any():
            return pa.nulls(len(groups), self._schema.field(0).type)
        place = np.cumsum(held) - 1
        return self._pool.take(refs[held]).column(0).take(pa.array(place, mask=~held))

    def save(self, groups: Ids) -> dict[str, pa.Array]:
        return {"time": pa.array(self.data["time"][groups]), "value": self.result(groups)}

    def load(self, state: Mapping[str, pa.Array], count: int) -> None:
        self.resize(count)
        if "value" in state:
            held = np.flatnonzero(~state["value"].is_null().to_numpy(zero_copy_only=False))
            times = state["time"].to_numpy()[held].astype(np.int64)
            self._offer(held, times, state["value"].take(pa.array(held)))


class First(_Edge):
    """The earliest value in event time; of equal times the first to arrive."""

    cells: ClassVar[Cells] = {"time": (np.int64, 2**63 - 1), "ref": (np.int64, -1)}

    def _winners(self, groups: Ids, times: Ids) -> Ids:
        held = self.data["time"]
        before = held[groups]
        np.minimum.at(held, groups, times)
        now = held[groups]
        return np.flatnonzero((times == now) & (before > now))[::-1]


class Last(_Edge):
    """The latest value in event time; of equal times the last to arrive."""

    cells: ClassVar[Cells] = {"time": (np.int64, -(2**63)), "ref": (np.int64, -1)}

    def _winners(self, groups: Ids, times: Ids) -> Ids:
        held = self.data["time"]
        np.maximum.at(held, groups, times)
        return np.flatnonzero(times == held[groups])


class Table:
    """Several accumulators over the same groups, each fed from one column (None: from the rows themselves)."""

    def __init__(self, accumulators: Mapping[tuple[str, str | None], Accumulator]) -> None:
        self.accumulators = dict(accumulators)

    def blank(self, size: int) -> Table:
        """One like this, with `size` empty groups."""
        table = Table({key: accumulator.blank() for key, accumulator in self.accumulators.items()})
        table.resize(size)
        return table

    def resize(self, size: int) -> None:
        for accumulator in self.accumulators.values():
            accumulator.resize(size)

    def add(self, groups: Ids, times: Ids, columns: Mapping[str, pa.Array]) -> None:
        """Add rows: their groups, event times and the columns that the accumulators want."""
        feeds = {name: Feed(array, groups, times) for name, array in columns.items()}
        whole = Feed(None, groups, times)
        with np.errstate(all="ignore"):  # infinities give NaN, which comes out as null
            for (_, column), accumulator in self.accumulators.items():
                accumulator.add(whole if column is None else feeds[column])

    def merge(self, into: Ids, other: Table, groups: Ids) -> None:
        with np.errstate(all="ignore"):
            for key, accumulator in self.accumulators.items():
                accumulator.merge(into, other.accumulators[key], groups)

    def keep(self, groups: Ids) -> None:
        for accumulator in self.accumulators.values():
            accumulator.keep(groups)

    def save(self, groups: Ids) -> dict[str, pa.Array]:
        """State columns, named `state:KIND(COLUMN).CELL`."""
        return {
            f"state:{kind}({column or '*'}).{cell}": array
            for (kind, column), accumulator in self.accumulators.items()
            for cell, array in accumulator.save(groups).items()
        }

    def load(self, state: Mapping[str, pa.Array], count: int) -> None:
        """Into a table without groups: what `save` gave for `count` groups."""
        for (kind, column), accumulator in self.accumulators.items():
            prefix = f"state:{kind}({column or '*'})."
            cells = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
            accumulator.load(cells, count)


def doubles(values: npt.NDArray[np.generic], missing: Bools | None = None) -> pa.Array:
    """float64 with null for NaN and for what is missing."""
    values = values.astype(np.float64)
    bad = np.isnan(values)
    return pa.array(values, mask=bad if missing is None else bad | missing)
