"""Keep some of the rows, and always the same ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.columns import Pick, pick_key, pick_time, times
from headrace.analysis.groups import Ids, KeyIndex, grown
from headrace.analysis.seen import Seen
from headrace.component import Aside, Duration, Operator, PlanError, Rows, Step, option

Hashes = npt.NDArray[np.uint64]


class Sample(Step, frozen=True, kw_only=True):
    """Keep a share of the rows or keys, every n-th row, or the first row of each stretch of time.

    Nothing is random: the same rows give the same sample, on every machine. Columns stay as they are; rows left out
    count as filtered. Give exactly one of:

    - `share`: with `by`, all rows of that share of the keys; without, that share of the rows, by their content.
    - `every`: the first, then every n-th row; for each key if there is `by`.
    - `first_per`: the first row to arrive of each such stretch of event time; for each key if there is `by`.

        - sample: {share: 0.01, by: source_id}
        - sample: {first_per: 1m, by: [sensor_id, metric]}
    """

    shorthand: ClassVar[str] = "share"
    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "filter"

    share: Annotated[float | None, option("part of the rows or keys to keep, 0 to 1", ge=0, le=1)] = None
    every: Annotated[int | None, option("keep one row in so many", ge=1)] = None
    first_per: Annotated[Duration | None, option("keep one row in each such stretch of event time")] = None
    by: Annotated[str | list[str], option("key columns; paths such as payload.id too")] = msgspec.field(
        default_factory=list
    )
    at: Annotated[str, option("event-time column, for first_per", min_length=1)] = "timestamp"
    max_keys: Annotated[int, option("most keys remembered by every and first_per", ge=1, le=50_000_000)] = (
        1_000_000
    )

    @classmethod
    def example(cls) -> Self:
        return cls(every=3, by="source_id")

    def check(self) -> None:
        if sum(option_ is not None for option_ in (self.share, self.every, self.first_per)) != 1:
            raise PlanError("give exactly one of share, every and first_per")
        if self.first_per is not None and self.first_per.us == 0:
            raise PlanError("first_per: must be longer than 0s")
        if len(set(self._by())) < len(self._by()):
            raise PlanError("by: a column is named twice")

    def key(self) -> Sequence[str] | None:
        return None if self.share is not None else self._by()

    def _by(self) -> tuple[str, ...]:
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    def output(self, schema: pa.Schema) -> pa.Schema:
        self._keys(schema)
        return schema

    def open(self, schema: pa.Schema) -> Operator:
        keys = self._keys(schema)
        if self.share is not None:
            return _Share(self.share, keys)
        if self.every is not None:
            return _Every(self.every, keys, self.max_keys)
        assert self.first_per is not None
        return _FirstPer(self.first_per.us, keys, pick_time(schema, self.at, step="sample"), self.max_keys)

    def _keys(self, schema: pa.Schema) -> list[Pick]:
        self.check()
        if self.first_per is not None:
            pick_time(schema, self.at, step="sample")
        return [pick_key(schema, path, step="sample") for path in self._by()]


class _Share(Operator):
    def __init__(self, share: float, keys: list[Pick]) -> None:
        self._share, self._keys = share, keys

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        columns = [key.of(rows) for key in self._keys] or rows.columns
        total = np.full(rows.num_rows, np.uint64(0x9E3779B97F4A7C15))
        for column in columns:
            total = _mixed(total * np.uint64(31) + _hashes(column))
        kept = (total >> np.uint64(11)).astype(np.float64) / 2.0**53 < self._share
        return rows.filter(pa.array(kept))


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def _hashes(array: pa.Array) -> Hashes:
    """A number for each value, the same for equal values on every machine and in every batch."""
    type_ = array.type
    if pa.types.is_struct(type_):
        total: Hashes = array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint64)
        for number in range(type_.num_fields):
            total = _mixed(total * np.uint64(31) + _hashes(pc.struct_field(array, number)))
        return total
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_) or pa.types.is_floating(type_):
        floating = pa.types.is_floating(type_)
        plain = pc.cast(pc.cast(array, pa.int8()) if pa.types.is_boolean(type_) else array,
                        pa.float64() if floating else pa.int64(), safe=False)  # fmt: skip
        valid = plain.is_valid().to_numpy(zero_copy_only=False)
        numbers = plain.fill_null(0).to_numpy() + (0.0 if floating else 0)  # -0.0 becomes 0.0
        return np.where(valid, _mixed(numbers.view(np.uint64)), np.uint64(7))
    if pa.types.is_timestamp(type_):
        return _hashes(pc.cast(pc.cast(array, pa.timestamp("us", tz="UTC"), safe=False), pa.int64()))
    if pa.types.is_nested(type_):  # lists and maps, rare in events: row by row
        return np.array([zlib.crc32(repr(value).encode()) for value in array.to_pylist()], np.uint64)
    encoded = array if pa.types.is_dictionary(type_) else pc.dictionary_encode(array, null_encoding="encode")
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    # Row loop over distinct values only: crc32 has no vectorised form here.
    texts = [
        None if v is None else v if isinstance(v, bytes) else str(v).encode()
        for v in encoded.dictionary.to_pylist()
    ]
    numbers = np.array([*(7 if text is None else zlib.crc32(text) for text in texts), 7], np.uint64)
    of_rows: Hashes = numbers[codes]
    return of_rows


class _Every(Operator):
    """State by key: rows since the last one kept."""

    def __init__(self, every: int, keys: list[Pick], max_keys: int) -> None:
        self._every, self._picks, self._max_keys = every, keys, max_keys
        self._names = [key.short for key in keys]
        self._keys = KeyIndex([key.type for key in keys])
        self._counts: Ids = np.zeros(64, np.int64)

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        if not rows.num_rows:
            return rows
        ids = self._keys.encode([key.of(rows) for key in self._picks], rows.num_rows).of_rows()
        self._counts = grown(self._counts, len(self._keys), 0)
        order = np.argsort(ids, kind="stable")
        sorted_ids = ids[order]
        begins = np.flatnonzero(np.r_[True, sorted_ids[1:] != sorted_ids[:-1]])
        sizes = np.diff(np.r_[begins, len(ids)])
        rank = np.arange(len(ids)) - np.repeat(begins, sizes)
        kept = np.zeros(len(ids), np.bool_)
        kept[order] = (self._counts[sorted_ids] + rank) % self._every == 0
        self._counts[sorted_ids[begins]] = (self._counts[sorted_ids[begins]] + sizes) % self._every
        if self._picks and len(self._keys) > self._max_keys:  # the keys known longest begin anew
            newest = np.arange(len(self._keys) - self._max_keys, len(self._keys))
            self._keys.keep(newest)
            self._counts = grown(self._counts[newest], 64, 0)
        return rows.filter(pa.array(kept))

    def snapshot(self) -> pa.Table:
        ids = np.arange(len(self._keys))
        columns = dict(zip(self._names, self._keys.values(ids), strict=True))
        return pa.table({**columns, "state:count": pa.array(self._counts[: len(ids)])})

    def restore(self, state: pa.Table) -> None:
        if not state.num_rows:
            return
        columns = [pc.cast(state.column(key.short).combine_chunks(), key.type) for key in self._picks]
        ids = self._keys.encode(columns, state.num_rows).of_rows()
        self._counts = grown(self._counts, len(self._keys), 0)
        np.maximum.at(self._counts, ids, state.column("state:count").to_numpy())


class _FirstPer(Operator):
    def __init__(self, length_us: int, keys: list[Pick], at: Pick, max_keys: int) -> None:
        self._length_us, self._picks, self._at = length_us, keys, at
        self._names = [*(key.short for key in keys), "state:stretch_us"]
        self._seen = Seen([*(key.type for key in keys), pa.int64()], length_us, max_keys)
        self._aside: list[Aside] = []

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        self._aside = []
        if rows.num_rows:
            stamps, bad = times(self._at.of(rows))
            if bad is not None:
                reason = f"sample: {self._at.name} is missing or out of range"
                self._aside = [Aside(rows.filter(pa.array(bad)), "no_time", [reason] * int(bad.sum()))]
                rows, stamps = rows.filter(pa.array(~bad)), stamps[~bad]
            starts = stamps - stamps % self._length_us
            kept = self._seen.passes([*(key.of(rows) for key in self._picks), pa.array(starts)], starts)
            rows = rows.filter(pa.array(kept))
        self._seen.advance(watermark_us)
        return rows

    def aside(self) -> Sequence[Aside]:
        given, self._aside = self._aside, []
        return given

    def snapshot(self) -> pa.Table:
        return self._seen.save(self._names)

    def restore(self, state: pa.Table) -> None:
        self._seen.load(state, self._names)
