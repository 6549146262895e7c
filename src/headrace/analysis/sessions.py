"""Session windows: rows of a key that follow each other within less than a gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.analysis.aggregate import Bools
from headrace.analysis.groups import Ids, grown, running_max
from headrace.analysis.results import Plan
from headrace.analysis.windows import Windows, clip_us
from headrace.model import TIMESTAMP, Rows


@dataclass(frozen=True, slots=True)
class Sessions:
    """`of` is the session of each interval given; `key`, `start` and `last` (time of the last row) are by session."""

    of: Ids
    key: Ids
    start: Ids
    last: Ids


def sessions(key: Ids, start: Ids, last: Ids, gap_us: int) -> Sessions:
    """Join intervals `[start, last]` (rows have both equal) of equal keys whose distance is less than `gap_us`.

    Sessions are numbered by key and start.
    """
    count = len(key)
    order = np.lexsort((start, key))
    key, start, last = key[order], start[order], last[order]
    new_key = np.ones(count, np.bool_)
    new_key[1:] = key[1:] != key[:-1]
    reached = running_max(new_key, last)
    begins = new_key.copy()
    begins[1:] |= start[1:] - reached[:-1] >= gap_us
    of = np.empty(count, np.int64)
    of[order] = np.cumsum(begins) - 1
    firsts = np.flatnonzero(begins)
    ends = np.append(firsts[1:], count) - 1 if count else firsts
    return Sessions(of, key[firsts], start[firsts], reached[ends])


class SessionWindows(Windows):
    """Session windows: a group is one session; sessions that a row joins are merged."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._key: Ids = np.empty(64, np.int64)
        self._start: Ids = np.empty(64, np.int64)
        self._last: Ids = np.empty(64, np.int64)

    def add(self, rows: Rows, times: Ids, before_us: int) -> Bools | None:
        count = rows.num_rows
        key = self.encode(rows).of_rows()
        touched = np.zeros(len(self.keys), np.bool_)
        touched[key] = True
        alive = self.living()
        old = alive[touched[self._key[alive]]]
        found = sessions(
            np.concatenate((key, self._key[old])),
            np.concatenate((times, self._start[old])),
            np.concatenate((times, self._last[old])),
            self.plan.length_us,
        )
        row_of, old_of = found.of[:count], found.of[count:]
        group = np.full(len(found.key), -1, np.int64)
        group[old_of[::-1]] = old[::-1]  # a session that joins several goes on in the oldest group
        over = found.last + self.plan.length_us + self.plan.lateness_us <= self.floor_of(found.key, before_us)
        over &= group < 0
        fresh = np.flatnonzero((group < 0) & ~over)
        group[fresh] = np.arange(self.count, self.count + len(fresh))
        self._reserve(self.count + len(fresh))
        held = np.flatnonzero(group >= 0)
        numbers = group[held]
        self._key[numbers], self._start[numbers], self._last[numbers] = (
            found.key[held],
            found.start[held],
            found.last[held],
        )
        joined = group[old_of] != old
        if joined.any():
            self.table.merge(group[old_of][joined], self.table, old[joined])
            self.end(old[joined])
        late = over[row_of]
        if not late.any():
            self.feed(rows, times, group[row_of])
            return None
        kept = np.flatnonzero(~late)
        if len(kept):
            self.feed(rows.take(pa.array(kept)), times[kept], group[row_of[kept]])
        return late

    def due(self, before_us: int, watermark_us: int) -> Iterator[Rows]:
        groups = self.living()
        limit = clip_us(watermark_us - self.plan.length_us - self.plan.lateness_us)
        groups = groups[self._last[groups] <= limit]
        if len(groups):
            yield self._session_output(groups, final=True)
            self.end(groups)

    def provisional(self, watermark_us: int) -> Iterator[Rows]:
        groups = self.living()
        groups = groups[self.changed[groups]]
        if len(groups):
            yield self._session_output(groups, final=False)

    def _session_output(self, groups: Ids, *, final: bool) -> Rows:
        end = self._last[groups] + self.plan.length_us
        return self.output(self.table, groups, self._key[groups], self._start[groups], end, final=final)

    def _reserve(self, count: int) -> None:
        self._key, self._start, self._last = (
            grown(array, count) for array in (self._key, self._start, self._last)
        )
        self.begin(count)

    def group_key(self, groups: Ids) -> Ids:
        return self._key[groups]

    def keep_groups(self, groups: Ids, keys: Ids) -> None:
        start, last = self._start[groups], self._last[groups]
        self._key, self._start, self._last = keys, start, last

    def save_groups(self, groups: Ids) -> dict[str, pa.Array]:
        return {
            "window_start": pa.array(self._start[groups]).cast(TIMESTAMP),
            "state:last": pa.array(self._last[groups]),
        }

    def load_groups(self, keys: Ids, state: pa.Table) -> Ids:
        count = len(keys)
        self._reserve(count)
        self._key[:count] = keys
        self._start[:count] = state.column("window_start").cast(pa.int64()).to_numpy()
        self._last[:count] = state.column("state:last").to_numpy()
        return np.arange(count)
