"""Keys as small integers: values to ids, pairs of ids to ids, in NumPy, without a Python loop over rows.

Python loops here are over the *distinct* values of a batch: they go through a dict, whose look-up is the
cheapest exact map from strings to numbers that keeps over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ids = npt.NDArray[np.int64]

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xD6E8FEB86659FD93))
_HALF = np.uint64(32)
_MERGE_BYTES = 256 * 2**20  # chunks above this are not merged: string offsets are 32 bits


def expand(starts: Ids, lengths: Ids) -> Ids:
    """The ranges `[start, start + length)` one after the other."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    numbers: Ids = np.arange(total, dtype=np.int64) + np.repeat(starts - before, lengths)
    return numbers


def running_max(begins: npt.NDArray[np.bool_], values: Ids) -> Ids:
    """Greatest value so far within each segment; `begins` marks the first row of each.

    One pass for all segments: the ranks of the values, raised by segment so that each starts above all before it.
    """
    count = len(values)
    by_value = np.argsort(values, kind="stable")
    rank = np.empty(count, np.int64)
    rank[by_value] = np.arange(count)
    floor = (np.cumsum(begins) - 1) * count
    reached: Ids = values[by_value[np.maximum.accumulate(floor + rank) - floor]]
    return reached


def compact(ids: Ids, size: int) -> tuple[Ids, Ids]:
    """The different ids (all below `size`) in order, and for each row the place of its id among them."""
    if size > 8 * len(ids) + 1024:
        used, place = np.unique(ids, return_inverse=True)
        return used, place
    present = np.zeros(size, np.bool_)
    present[ids] = True
    used = present.nonzero()[0]
    lookup = np.empty(size, np.int64)
    lookup[used] = np.arange(len(used))
    return used, lookup[ids]


def stable_order(small: Ids, size: int) -> Ids:
    """Rows sorted by a number below `size`, equal ones in their order; much faster when 16 bits hold it."""
    return np.argsort(small.astype(np.uint16) if size <= 2**16 else small, kind="stable")


def grown(array: npt.NDArray[Any], size: int, fill: float | None = None) -> npt.NDArray[Any]:
    """`array` with room for `size`, at least doubled if it was too small; new cells hold `fill`."""
    if size <= len(array):
        return array
    larger = np.empty(max(size, 2 * len(array), 64), array.dtype)
    larger[: len(array)] = array
    if fill is not None:
        larger[len(array) :] = fill
    return larger


class PairIndex:
    """Pairs of int64 -> ids 0, 1, 2, ...: a hash table with open addressing, held in arrays and probed for all
    rows at once. `first[:count]` and `second[:count]` are the pairs by id."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Ids = np.empty(64, np.int64)
        self.second: Ids = np.empty(64, np.int64)
        self._table = np.full(256, -1, np.int32)

    def find_or_add(self, first: Ids, second: Ids) -> Ids:
        """The id of each pair; new pairs get new ids."""
        cells = self._cells(first, second)
        found = self._table[cells].astype(np.int64)
        hit = (found >= 0) & (self.first[found] == first) & (self.second[found] == second)
        if hit.all():
            return found
        ids = found
        pending = (~hit).nonzero()[0]
        self._reserve(self.count + len(pending))
        a, b = first[pending], second[pending]
        cells = self._cells(a, b)
        mask = len(self._table) - 1
        while len(pending):
            table = self._table
            free = (table[cells] < 0).nonzero()[0]
            if len(free):
                # Equal pairs probe the same cells in the same round: the last to write claims the cell for all.
                table[cells[free]] = free
                won = free[table[cells[free]] == free]
                new = np.arange(self.count, self.count + len(won))
                table[cells[won]] = new
                self.first[new], self.second[new] = a[won], b[won]
                self.count += len(won)
            found = table[cells].astype(np.int64)
            same = (self.first[found] == a) & (self.second[found] == b)
            ids[pending[same]] = found[same]
            rest = ~same
            pending, a, b = pending[rest], a[rest], b[rest]
            cells = (cells[rest] + 1) & mask
        return ids

    def keep(self, ids: Ids, first: Ids | None = None) -> None:
        """Forget all pairs but these, which become 0, 1, 2, ... in the order given; `first` replaces their first
        halves."""
        first, second = self.first[ids] if first is None else first, self.second[ids]
        self.first, self.second = np.empty(max(64, len(ids)), np.int64), np.empty(max(64, len(ids)), np.int64)
        self.first[: len(ids)], self.second[: len(ids)] = first, second
        self.count = len(ids)
        self._rebuild(len(ids))

    def _cells(self, first: Ids, second: Ids) -> Ids:
        mixed = first.view(np.uint64) * _MIX[0]
        mixed += second.view(np.uint64) * _MIX[1]
        mixed ^= mixed >> _HALF
        mixed *= _MIX[2]
        mixed >>= np.uint64(65 - len(self._table).bit_length())
        return mixed.view(np.int64)

    def _reserve(self, count: int) -> None:
        self.first = grown(self.first, count)
        self.second = grown(self.second, count)
        if 2 * count > len(self._table):
            self._rebuild(count)

    def _rebuild(self, count: int) -> None:
        """A table with room for `count` pairs, filled with those there are (all different)."""
        self._table = np.full(max(256, 1 << (2 * count).bit_length()), -1, np.int32)
        mask = len(self._table) - 1
        pending = np.arange(self.count)
        cells = self._cells(self.first[: self.count], self.second[: self.count])
        while len(pending):
            free = self._table[cells] < 0
            self._table[cells[free]] = pending[free]
            rest = self._table[cells] != pending
            pending, cells = pending[rest], (cells[rest] + 1) & mask


class RowPool:
    """Rows by number, in chunks of growing size: appending and taking both stay cheap."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._chunks: list[pa.RecordBatch] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: pa.RecordBatch) -> int:
        """Add rows; gives the number of the first."""
        start = self._count
        if rows.num_rows:
            self._chunks.append(rows)
            self._count += rows.num_rows
            chunks = self._chunks
            while (
                len(chunks) > 1
                and chunks[-2].num_rows <= 2 * chunks[-1].num_rows
                and chunks[-1].nbytes + chunks[-2].nbytes < _MERGE_BYTES
            ):
                chunks[-2:] = [pa.concat_batches(chunks[-2:])]
        return start

    def take(self, numbers: Ids) -> pa.RecordBatch:
        """The rows of these numbers, in their order."""
        if len(self._chunks) == 1:
            return self._chunks[0].take(pa.array(numbers))
        if not self._chunks or not len(numbers):
            return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in self.schema], schema=self.schema)
        starts = np.cumsum([0, *(chunk.num_rows for chunk in self._chunks)])
        chunk_of = np.searchsorted(starts, numbers, side="right") - 1
        order = np.argsort(chunk_of, kind="stable")
        parts = []
        for i, chunk in enumerate(self._chunks):
            mine = order[chunk_of[order] == i]
            if len(mine):
                parts.append(chunk.take(pa.array(numbers[mine] - starts[i])))
        back = np.empty(len(numbers), np.int64)
        back[order] = np.arange(len(numbers))
        return pa.concat_batches(parts).take(pa.array(back))

    def keep(self, numbers: Ids) -> None:
        """Forget all rows but these, which become 0, 1, 2, ... in the order given."""
        rows = self.take(numbers)
        self._chunks = [rows] if rows.num_rows else []
        self._count = rows.num_rows


@dataclass(slots=True)
class Coded:
    """Values of rows as codes into `ids`: row i has the id `ids[codes[i]]`."""

    codes: Ids
    ids: Ids

    def of_rows(self) -> Ids:
        return self.ids[self.codes]


def pair(index: PairIndex, left: Coded, right: Coded) -> Coded:
    """The id of each row's pair. Small domains are looked up once for each combination that occurs."""
    rows = len(left.codes)
    width = len(right.ids)
    domain = len(left.ids) * width
    if domain > 2 * rows + 64:
        ids = index.find_or_add(left.of_rows(), right.of_rows())
        return Coded(np.arange(rows, dtype=np.int64), ids)
    combined = left.codes * width + right.codes
    present = np.zeros(domain, np.bool_)
    present[combined] = True
    used = present.nonzero()[0]
    lookup = np.zeros(domain, np.int64)
    lookup[used] = np.arange(len(used))
    return Coded(lookup[combined], index.find_or_add(left.ids[used // width], right.ids[used % width]))


class _Values:
    """Values of one column -> ids."""

    def __init__(self, type_: pa.DataType) -> None:
        self._schema = pa.schema([pa.field("value", type_)])
        self._ids: dict[object, int] = {}
        self._pool = RowPool(self._schema)

    def encode(self, array: pa.Array) -> Coded:
        """Null is a value of its own, and so is NaN."""
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode("encode")
        indices, dictionary = array.indices, array.dictionary
        if indices.null_count:
            dictionary = pa.concat_arrays([dictionary, pa.nulls(1, dictionary.type)])
            indices = indices.cast(pa.int64()).fill_null(len(dictionary) - 1)
        codes: Ids = indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if len(dictionary) > 4 * len(codes) + 64:  # a shared dictionary of which this batch uses a little
            used, codes = np.unique(codes, return_inverse=True)
            dictionary = dictionary.take(pa.array(used))
        dictionary = self._cast(dictionary)
        values = _hashable(dictionary)
        ids = np.fromiter(map(self._ids.get, values, repeat(-1)), np.int64, len(values))
        if ids.min(initial=0) < 0:
            fresh = []
            for i in (ids < 0).nonzero()[0].tolist():
                known = len(self._ids)
                ids[i] = self._ids.setdefault(values[i], known)
                if len(self._ids) > known:  # not when the dictionary holds a value twice
                    fresh.append(i)
            new = dictionary.take(pa.array(fresh, pa.int64()))
            self._pool.append(pa.RecordBatch.from_arrays([new], schema=self._schema))
        return Coded(codes, ids)

    def values(self, ids: Ids) -> pa.Array:
        return self._pool.take(ids).column(0)

    def _cast(self, array: pa.Array) -> pa.Array:
        type_ = self._schema.field(0).type
        return array if array.type.equals(type_) else pc.cast(array, type_)


def _hashable(array: pa.Array) -> list[object]:
    """Python values that are equal exactly when the Arrow values are."""
    if pa.types.is_temporal(array.type) and array.type.bit_width in (32, 64):
        array = array.view(pa.int64() if array.type.bit_width == 64 else pa.int32())
    values: list[object] = array.to_pylist()
    if pa.types.is_floating(array.type):
        return ["NaN" if value != value else value for value in values]
    return values


class KeyIndex:
    """Rows of key columns -> ids 0, 1, 2, ... Without columns, every row has the id 0."""

    def __init__(self, types: Sequence[pa.DataType]) -> None:
        self._types = tuple(types)
        self._columns = [_Values(type_) for type_ in types]
        self._pairs = [PairIndex() for _ in types[1:]]

    def __len__(self) -> int:
        if self._pairs:
            return self._pairs[-1].count
        return len(self._columns[0]._ids) if self._columns else 1

    def encode(self, columns: Sequence[pa.Array], rows: int) -> Coded:
        """The key of each of `rows` rows. Dictionary-encoded columns are taken as they are."""
        if not columns:
            return Coded(np.zeros(rows, np.int64), np.zeros(1, np.int64))
        coded = self._columns[0].encode(columns[0])
        for values, column, index in zip(self._columns[1:], columns[1:], self._pairs, strict=True):
            coded = pair(index, coded, values.encode(column))
        return coded

    def values(self, ids: Ids) -> list[pa.Array]:
        """The key columns of these ids."""
        arrays: list[pa.Array] = []
        for column, index in zip(self._columns[:0:-1], self._pairs[::-1], strict=True):
            arrays.append(column.values(index.second[ids]))
            ids = index.first[ids]
        if self._columns:
            arrays.append(self._columns[0].values(ids))
        return arrays[::-1]

    def keep(self, ids: Ids) -> Ids:
        """Forget all keys but these; gives the new id of each old one, -1 for those forgotten."""
        new = np.full(len(self), -1, np.int64)
        if not self._columns:
            new[:] = 0
            return new
        arrays = self.values(ids)
        fresh = KeyIndex(self._types)
        new[ids] = fresh.encode(arrays, len(ids)).of_rows()
        self._columns, self._pairs = fresh._columns, fresh._pairs
        return new
