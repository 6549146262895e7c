"""Moving averages of many keys at once.

Values of all keys stand one after the other in flat arrays, a *segment* for each key. A window's sum is put together from
sums of aligned blocks of 1, 2, 4, ... values (a segment tree), aligned by the value's number since its key began. So the
sum depends only on the values in the window: a value that has left, however large, leaves no trace, and how the
stream was cut into batches doesn't change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from headrace.analysis.groups import Ids

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_WIDE = 16  # keys from which one step of a recurrence is done for all of them at once


@dataclass(frozen=True, slots=True)
class _Level:
    """Blocks of 2**level values: their sums, plain and weighted 1, 2, 3, ... Block b of segment s (counted from
    number 0 of the key) stands at `offset[s] + b - first[s]`."""

    level: int
    plain: Floats
    ramp: Floats
    first: Ids
    offset: Ids


def _levels(values: Floats, lengths: Ids, numbers: Ids) -> Iterator[_Level]:
    """The tree from its leaves up. Blocks that stick out of their segment are incomplete; no window contains them."""
    segments = np.arange(len(lengths))
    here = _Level(0, values, values, numbers, np.cumsum(lengths) - lengths)
    while True:
        yield here
        of = np.repeat(segments, lengths)
        number = np.arange(len(here.plain)) - here.offset[of] + here.first[of]
        first = here.first >> 1
        lengths = ((here.first + lengths - 1) >> 1) - first + (lengths > 0)
        offset = np.cumsum(lengths) - lengths
        parent = offset[of] + (number >> 1) - first[of]
        plain, ramp = np.zeros(int(lengths.sum())), np.zeros(int(lengths.sum()))
        older, newer = (number & 1 == 0).nonzero()[0], (number & 1).nonzero()[0]
        plain[parent[older]] = here.plain[older]
        ramp[parent[older]] = here.ramp[older]
        plain[parent[newer]] += here.plain[newer]
        ramp[parent[newer]] += here.ramp[newer] + here.plain[newer] * float(1 << here.level)
        here = _Level(here.level + 1, plain, ramp, first, offset)


def window_sums(
    values: Floats, lengths: Ids, numbers: Ids, segment: Ids, begin: Ids, end: Ids
) -> tuple[Floats, Floats]:
    """Sums of the values `[begin, end)` of segments `segment`, and sums weighted 1, 2, 3, ... from `begin` on.

    Segment s has `lengths[s]` of the `values`, numbered from `numbers[s]`; `begin` and `end` are such numbers.
    """
    plain, weighted = np.zeros(len(begin)), np.zeros(len(begin))
    left, right = begin, end
    for blocks in _levels(values, lengths, numbers):
        open_ = left < right
        if not open_.any():
            break
        for rows, number in (
            ((open_ & (left & 1 == 1)).nonzero()[0], left),
            ((open_ & (right & 1 == 1)).nonzero()[0], right - 1),
        ):
            block, of = number[rows], segment[rows]
            place = blocks.offset[of] + block - blocks.first[of]
            plain[rows] += blocks.plain[place]
            before = (block << blocks.level) - begin[rows]
            weighted[rows] += blocks.ramp[place] + blocks.plain[place] * before
        left, right = (left + 1) >> 1, right >> 1
    return plain, weighted


def smooth(values: Floats, gains: Floats, fresh: Bools, begins: Ids, average: Floats) -> Floats:
    """Exponential smoothing: `a + gain * (value - a)`; a `fresh` value starts anew.

    Segments begin at `begins`; `average` is where each stands before its first value.
    """

    def wide(state: Floats, rows: Ids) -> Floats:
        return np.where(fresh[rows], values[rows], state + gains[rows] * (values[rows] - state))

    def narrow(state: float, rows: slice) -> Iterator[float]:
        steps = zip(values[rows].tolist(), gains[rows].tolist(), fresh[rows].tolist(), strict=True)
        return accumulate(steps, lambda a, s: s[0] if s[2] else a + s[1] * (s[0] - a), initial=state)

    return _recur(len(values), begins, average, wide, narrow)


def decayed_counts(decay: Floats, begins: Ids, count: Floats) -> Floats:
    """How many values an average holds when each fades by `decay` as the next comes: `1 + decay * n`."""

    def wide(state: Floats, rows: Ids) -> Floats:
        faded: Floats = state * decay[rows] + 1.0
        return faded

    def narrow(state: float, rows: slice) -> Iterator[float]:
        return accumulate(decay[rows].tolist(), lambda n, d: n * d + 1.0, initial=state)

    return _recur(len(decay), begins, count, wide, narrow)


def _recur(
    total: int,
    begins: Ids,
    state: Floats,
    wide: Callable[[Floats, Ids], Floats],
    narrow: Callable[[float, slice], Iterator[float]],
) -> Floats:
    """A recurrence along each segment: one position of all segments at a time while many are that long, then the
    rest of the long ones by themselves; over a single key it has no other form than a loop."""
    result = np.empty(total)
    ends = np.append(begins[1:], total)
    by_length = np.argsort(
        begins - ends, kind="stable"
    )  # the longest first: those still running are a prefix
    lengths = (ends - begins)[by_length]
    state = state[by_length]
    position = 0
    while (running := int(np.searchsorted(-lengths, -position))) >= _WIDE:
        rows = begins[by_length[:running]] + position
        state = wide(state[:running], rows)
        result[rows] = state
        position += 1
    for place in range(running):
        rest = slice(int(begins[by_length[place]]) + position, int(ends[by_length[place]]))
        result[rest] = list(narrow(float(state[place]), rest))[1:]
    return result


def first_after(lengths: Ids, times: Ids, segment: Ids, bounds: Ids) -> Ids:
    """For each bound, the place of the first time after it in its segment (or the segment's end). Times do not go back
    within a segment."""
    starts = np.cumsum(lengths) - lengths
    if not len(times) or not len(bounds):
        return starts[segment]
    least, most = min(int(times.min()), int(bounds.min())), max(int(times.max()), int(bounds.max()))
    span = most - least + 2
    if span * len(lengths) < 2**62:
        of = np.repeat(np.arange(len(lengths)), lengths)
        return np.searchsorted(of * span + (times - least), segment * span + (bounds - least), side="right")
    result = np.empty(len(bounds), np.int64)  # centuries apart: key by key
    order = np.argsort(segment, kind="stable")
    edges = np.searchsorted(segment[order], np.arange(len(lengths) + 1))
    for s, (low, high) in enumerate(pairwise(edges.tolist())):
        mine = order[low:high]
        here = times[starts[s] : starts[s] + lengths[s]]
        result[mine] = starts[s] + np.searchsorted(here, bounds[mine], side="right")
    return result
