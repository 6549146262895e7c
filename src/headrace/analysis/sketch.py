"""Mergeable sketches of many groups at once: quantiles within 1 %, and distinct counts.

**Quantiles**: DDSketch (Masson, Rim, Lee 2019): values are counted in buckets whose bounds grow by a constant factor,
so any value is known to 1 % of itself. A group that needs more than 4,096 buckets (values over more than 35 orders of
magnitude) gets buckets of double width, as in UDDSketch (Epicoco et al. 2020): 2 %, then 4 %. The result depends only
on the set of values, not on their order or on how they were cut into batches.

**Distinct**: the hashes themselves up to 2,048 different values, so counts are exact; beyond, the 1,024 smallest
hashes (KMV, Bar-Yossef et al. 2002), with a standard error of 3.1 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.aggregate import Accumulator, Cells, Feed
from headrace.analysis.groups import Ids, PairIndex, expand

Floats = npt.NDArray[np.float64]

ERROR = 0.0099  # relative; a little under 1 % leaves room for rounding in the logarithm
MAX_BUCKETS = 4096
EXACT_DISTINCT = 2048
_KMV = 1024
_LOG_GAMMA = float(np.log((1 + ERROR) / (1 - ERROR)))
_ZERO = 40_000  # buckets of positive numbers are 1 .. 80,000 around this, those of negative ones mirror them
_LARGEST = float(np.finfo(np.float64).max)


def bucket(values: Floats) -> Ids:
    """Bucket of each number, in the order of the numbers: negative, 0 for zero, positive. Infinities count as the
    largest number."""
    size = np.minimum(np.abs(values), _LARGEST)
    with np.errstate(divide="ignore"):
        index = np.ceil(np.log(size) / _LOG_GAMMA)
    code = np.where(size == 0, 0, index + _ZERO).astype(np.int64)
    return np.where(values < 0, -code, code)


def _wider(codes: Ids, times: Ids) -> Ids:
    """Buckets after doubling their width `times` times."""
    index = np.abs(codes) - _ZERO
    doubled = -((-index) >> times) + _ZERO
    return np.where(codes == 0, 0, np.sign(codes) * doubled)


def _middle(codes: Ids, level: Ids) -> Floats:
    """The value that is within the relative error of all values of a bucket."""
    log_gamma = _LOG_GAMMA * (1 << level)
    with np.errstate(over="ignore"):
        size = np.exp((np.abs(codes) - _ZERO) * log_gamma) * (2 / (1 + np.exp(log_gamma)))
    return np.where(codes == 0, 0.0, np.sign(codes) * np.minimum(size, _LARGEST))


class _Bins(Accumulator):
    """Groups that each hold a set of int64 codes, as (group, code) pairs in one index."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = PairIndex()

    def _by_group(self, groups: Ids) -> tuple[Ids, Ids]:
        """Ids of the pairs of these groups one after the other, ordered by code, and how many each has."""
        if not len(groups):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        owner, code = self.pairs.first[: self.pairs.count], self.pairs.second[: self.pairs.count]
        wanted = np.zeros(max(self.size, 1), np.bool_)
        wanted[groups] = True
        mine = np.flatnonzero(wanted[owner])
        mine = mine[np.lexsort((code[mine], owner[mine]))]
        starts = np.searchsorted(owner[mine], groups)
        lengths = np.searchsorted(owner[mine], groups, side="right") - starts
        return mine[expand(starts, lengths)], lengths

    def _renumbered(self, groups: Ids) -> Ids:
        """Keep the pairs of these groups only, under their new numbers; gives the old ids of the pairs kept."""
        new = np.full(max(self.size, 1), -1, np.int64)
        new[groups] = np.arange(len(groups))
        owner = new[self.pairs.first[: self.pairs.count]]
        kept = np.flatnonzero(owner >= 0)
        self.pairs.keep(kept, owner[kept])
        return kept


class Quantiles(_Bins):
    """Any quantile of each group. `level` is how often the width of its buckets was doubled."""

    cells: ClassVar[Cells] = {
        "level": (np.int64, 0),
        "bins": (np.int64, 0),
        "min": (np.float64, np.inf),
        "max": (np.float64, -np.inf),
    }

    def __init__(self) -> None:
        super().__init__()
        self._weights: Ids = np.zeros(64, np.int64)

    def add(self, feed: Feed) -> None:
        np.minimum.at(self.data["min"], feed.groups, feed.values)
        np.maximum.at(self.data["max"], feed.groups, feed.values)
        self._count(feed.groups, bucket(feed.values), 1)

    def _count(self, groups: Ids, codes: Ids, weights: Ids | int) -> None:
        level = self.data["level"][groups].astype(np.int64)
        if level.any():
            codes = _wider(codes, level)
        self._put(groups, codes, weights)
        self._limit(groups)

    def _limit(self, groups: Ids) -> None:
        """Widen the buckets of those of these groups that have too many."""
        while len(over := np.unique(groups[self.data["bins"][groups] > MAX_BUCKETS])):
            self._widen(over, 1)

    def _put(self, groups: Ids, codes: Ids, weights: Ids | int) -> None:
        before = self.pairs.count
        ids = self.pairs.find_or_add(groups, codes)
        if self.pairs.count > len(self._weights):
            larger = np.zeros(max(self.pairs.count, 2 * len(self._weights)), np.int64)
            larger[:before] = self._weights[:before]
            self._weights = larger
        np.add.at(self._weights, ids, weights)
        np.add.at(self.data["bins"], self.pairs.first[before : self.pairs.count], 1)

    def _widen(self, groups: Ids, times: Ids | int) -> None:
        """Double the width of the buckets of these groups so many times."""
        more = np.zeros(self.size, np.int64)
        more[groups] = times
        self.data["level"][: self.size] += more
        owner, code = self.pairs.first[: self.pairs.count], self.pairs.second[: self.pairs.count]
        weights, code = self._weights[: self.pairs.count], _wider(code, more[owner])
        self.pairs, self._weights = PairIndex(), np.zeros(64, np.int64)
        self.data["bins"][:] = 0
        self._put(owner, code, weights)

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        assert isinstance(other, Quantiles)
        np.minimum.at(self.data["min"], into, other.data["min"][groups])
        np.maximum.at(self.data["max"], into, other.data["max"][groups])
        level = self.data["level"].astype(np.int64)
        np.maximum.at(level, into, other.data["level"][groups].astype(np.int64))
        raised = np.flatnonzero(level > self.data["level"])
        if len(raised):
            self._widen(raised, (level - self.data["level"])[raised])
        used, which = np.unique(groups, return_inverse=True)
        bins, lengths = other._by_group(used)
        starts = np.cumsum(lengths) - lengths
        bins = bins[expand(starts[which], lengths[which])]
        target, source = np.repeat(into, lengths[which]), np.repeat(groups, lengths[which])
        lag = self.data["level"][target] - other.data["level"][source]
        codes = _wider(other.pairs.second[bins], np.maximum(lag, 0).astype(np.int64))
        self._put(target, codes, other._weights[bins])
        self._limit(into)

    def keep(self, groups: Ids) -> None:
        self._weights = self._weights[self._renumbered(groups)]
        super().keep(groups)

    def result(self, groups: Ids, quantiles: Sequence[float]) -> list[Floats]:
        """Values of each quantile (0 to 1), between the two nearest ranks as NumPy's default does; NaN for a group
        without values. `groups` are all different."""
        bins, lengths = self._by_group(groups)
        level = np.repeat(self.data["level"][groups].astype(np.int64), lengths)
        middle = _middle(self.pairs.second[bins], level)
        reached = np.cumsum(self._weights[bins])
        ends = np.cumsum(lengths)
        total_before = np.concatenate(([0], reached))[ends - lengths]
        n = np.concatenate(([0], reached))[ends] - total_before
        empty = n == 0
        if not len(bins):
            return [np.full(len(groups), np.nan) for _ in quantiles]
        least, most = self.data["min"][groups], self.data["max"][groups]
        results = []
        for quantile in quantiles:
            rank = quantile * np.maximum(n - 1, 0)
            low = np.floor(rank).astype(np.int64)
            value = [
                middle[np.minimum(np.searchsorted(reached, total_before + r, side="right"), len(middle) - 1)]
                for r in (low, np.minimum(low + 1, np.maximum(n - 1, 0)))
            ]
            share = rank - low
            between = np.clip(value[0] * (1 - share) + value[1] * share, least, most)
            results.append(np.where(empty, np.nan, between))
        return results

    def save(self, groups: Ids) -> dict[str, pa.Array]:
        bins, lengths = self._by_group(groups)
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
        return {
            **{name: pa.array(self.data[name][groups]) for name in ("level", "min", "max")},
            "buckets": pa.ListArray.from_arrays(offsets, pa.array(self.pairs.second[bins])),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(self._weights[bins])),
        }

    def load(self, state: Mapping[str, pa.Array], count: int) -> None:
        super().load({name: state[name] for name in ("level", "min", "max") if name in state}, count)
        if "buckets" in state:
            groups = np.repeat(np.arange(count), _lengths(state["buckets"]))
            codes = state["buckets"].flatten().to_numpy(zero_copy_only=False).astype(np.int64)
            self._put(
                groups, codes, state["counts"].flatten().to_numpy(zero_copy_only=False).astype(np.int64)
            )


class Distinct(_Bins):
    """Number of different values of each group. `bound` is the hash from which on hashes are no longer kept."""

    cells: ClassVar[Cells] = {"bound": (np.int64, 2**63 - 1), "kept": (np.int64, 0)}

    def add(self, feed: Feed) -> None:
        self._hold(feed.groups, hashes(feed.array))

    def _hold(self, groups: Ids, hashed: Ids) -> None:
        low = hashed < self.data["bound"][groups]
        if not low.all():
            groups, hashed = groups[low], hashed[low]
        before = self.pairs.count
        self.pairs.find_or_add(groups, hashed)
        np.add.at(self.data["kept"], self.pairs.first[before : self.pairs.count], 1)
        over = np.unique(groups[self.data["kept"][groups] > EXACT_DISTINCT])
        if len(over):
            self._prune(over)

    def _prune(self, over: Ids) -> None:
        """Keep the smallest hashes of these groups only."""
        bins, lengths = self._by_group(over)
        within = expand(np.zeros(len(over), np.int64), lengths)
        gone = np.zeros(self.pairs.count, np.bool_)
        gone[bins[within >= _KMV]] = True
        self.data["bound"][over] = self.pairs.second[bins[within == _KMV]]
        self.data["kept"][over] = _KMV
        self.pairs.keep(np.flatnonzero(~gone))

    def merge(self, into: Ids, other: Accumulator, groups: Ids) -> None:
        assert isinstance(other, Distinct)
        np.minimum.at(self.data["bound"], into, other.data["bound"][groups])
        used, which = np.unique(groups, return_inverse=True)
        bins, lengths = other._by_group(used)
        starts = np.cumsum(lengths) - lengths
        self._hold(
            np.repeat(into, lengths[which]), other.pairs.second[bins[expand(starts[which], lengths[which])]]
        )

    def keep(self, groups: Ids) -> None:
        self._renumbered(groups)
        super().keep(groups)

    def result(self, groups: Ids) -> Ids:
        """The counts; `groups` are all different."""
        bins, lengths = self._by_group(groups)
        counts = lengths.astype(np.int64)
        many = np.flatnonzero((self.data["bound"][groups] < 2**63 - 1) & (lengths >= _KMV))
        if len(many):
            starts = np.cumsum(lengths) - lengths
            kth = self.pairs.second[bins[starts[many] + _KMV - 1]].astype(np.float64)
            counts[many] = np.rint((_KMV - 1) / ((kth + 2.0**63) / 2.0**64)).astype(np.int64)
        return counts

    def save(self, groups: Ids) -> dict[str, pa.Array]:
        bins, lengths = self._by_group(groups)
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
        held = pa.ListArray.from_arrays(offsets, pa.array(self.pairs.second[bins]))
        return {"bound": pa.array(self.data["bound"][groups]), "hashes": held}

    def load(self, state: Mapping[str, pa.Array], count: int) -> None:
        super().load({name: state[name] for name in ("bound",) if name in state}, count)
        if "hashes" in state:
            groups = np.repeat(np.arange(count), _lengths(state["hashes"]))
            self._hold(groups, state["hashes"].flatten().to_numpy(zero_copy_only=False).astype(np.int64))


def _lengths(lists: pa.Array) -> Ids:
    lengths: Ids = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


# -- hashes ----------------------------------------------------------------------------------------


def hashes(array: pa.Array) -> Ids:
    """64-bit hash of each value, none of them null: the same on every machine, in every version, and for equal
    numbers of different types."""
    encoded = pc.dictionary_encode(array)
    hashed: Ids = _hash_values(encoded.dictionary)[encoded.indices.to_numpy()]
    return hashed


def _hash_values(array: pa.Array) -> Ids:
    type_ = array.type
    if pa.types.is_floating(type_):
        values = pc.cast(array, pa.float64()).to_numpy()
        with np.errstate(invalid="ignore"):
            whole = (values == np.floor(values)) & (np.abs(values) < 2.0**63)
            bits = np.where(whole, np.where(whole, values, 0).astype(np.int64), values.view(np.int64))
        return _mix(bits.view(np.uint64))
    if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        if pa.types.is_uint64(type_):
            return _mix(array.to_numpy())
        return _mix(pc.cast(array, pa.int64()).to_numpy().view(np.uint64))
    if pa.types.is_temporal(type_) and type_.bit_width in (32, 64):
        whole_type = pa.int64() if type_.bit_width == 64 else pa.int32()
        return _mix(pc.cast(array.view(whole_type), pa.int64()).to_numpy().view(np.uint64))
    if not pa.types.is_large_binary(type_):
        array = pc.cast(array if _texts(type_) else pc.cast(array, pa.string()), pa.large_binary())
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(offsets)
    data = (
        np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
        if data_buffer
        else np.empty(0, np.uint8)
    )
    # Multilinear hashing (Lemire, Kaser 2014): each byte times a random number that belongs to its place.
    place = expand(np.zeros(len(lengths), np.int64), lengths)
    products = (data.astype(np.uint64) + np.uint64(1)) * _places(int(lengths.max(initial=1)))[place]
    running = np.concatenate((np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)))
    starts = offsets - offsets[0]
    return _mix((running[starts[1:]] - running[starts[:-1]]) ^ lengths.astype(np.uint64))


def _texts(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_fixed_size_binary(type_)
    )


def _places(length: int) -> npt.NDArray[np.uint64]:
    """A fixed random odd number for each place in a text."""
    if length <= 1024:
        return _short_places()
    return _random(length)


@cache
def _short_places() -> npt.NDArray[np.uint64]:
    return _random(1024)


def _random(length: int) -> npt.NDArray[np.uint64]:
    steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(steps).view(np.uint64) | np.uint64(1)


def _mix(bits: npt.NDArray[np.uint64]) -> Ids:
    """splitmix64's last steps (Steele, Lea, Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (bits ^ (bits >> np.uint64(31))).view(np.int64)
