"""Tumbling and hopping windows: rows go to panes of one hop, and a window merges its panes when it closes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.aggregate import Bools
from headrace.analysis.groups import Coded, Ids, PairIndex, expand, pair
from headrace.analysis.results import Plan
from headrace.analysis.windows import NEVER_US, Windows, clip_us
from headrace.model import TIMESTAMP, Rows

_EXPANDED = 2_000_000  # contributions of panes to windows that are merged at a time


class PaneWindows(Windows):
    """Tumbling and hopping windows. Rows are added to panes of one hop; a window merges its panes when it closes."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._groups = PairIndex()  # (key, pane)
        self._panes = plan.length_us // plan.hop_us  # in a window
        self._oldest = 2**62  # no pane alive is older

    def _closed(self, watermark_us: int) -> int:
        """The number of the last window that is out at this watermark; window w begins panes - 1 panes before pane w
        and ends with it."""
        return (watermark_us - self.plan.lateness_us) // self.plan.hop_us - 1

    def add(self, rows: Rows, times: Ids, before_us: int) -> Bools | None:
        pane = times // self.plan.hop_us
        late: Bools | None = pane <= clip_us(self._closed(before_us) - self._panes + 1)
        assert late is not None
        if late.any():
            kept = np.flatnonzero(~late)
            rows, times, pane = rows.take(pa.array(kept)), times[kept], pane[kept]
        else:
            late = None
        if not len(pane):
            return late
        keys = self.encode(rows)
        if self.floors is not None:
            if self.floors.max(initial=NEVER_US) <= before_us:
                self.floors = None
            else:
                floor = self.floor_of(keys.of_rows(), before_us)
                behind = pane <= (floor - self.plan.lateness_us) // self.plan.hop_us - self._panes
                if behind.any():
                    on_time = np.flatnonzero(~behind)
                    place = np.arange(len(behind)) if late is None else np.flatnonzero(~late)
                    late = np.zeros(len(pane), np.bool_) if late is None else late
                    late[place[behind]] = True
                    rows, times, pane = rows.take(pa.array(on_time)), times[on_time], pane[on_time]
                    keys = Coded(keys.codes[on_time], keys.ids)
        if not len(pane):
            return late
        first, last = int(pane.min()), int(pane.max())
        if last - first < 2 * len(pane) + 64:
            panes = Coded(pane - first, np.arange(first, last + 1))
        else:
            panes = Coded(np.arange(len(pane)), pane)
        groups = pair(self._groups, keys, panes).of_rows()
        self.begin(self._groups.count)
        self._oldest = min(self._oldest, first)
        self.feed(rows, times, groups)
        return late

    def due(self, before_us: int, watermark_us: int) -> Iterator[Rows]:
        out, closing = clip_us(self._closed(before_us)), clip_us(self._closed(watermark_us))
        if closing <= out or closing < self._oldest:
            return
        groups = self.living()
        pane = self._groups.second[groups]
        if self._panes == 1:
            done = groups[pane <= closing]
            if len(done):
                yield self._pane_output(done, final=True)
        else:
            done = groups[pane <= closing - self._panes + 1]
            touched = pane <= closing
            yield from self._merged(groups[touched], out + 1, closing, before_us, final=True)
        self.end(done)
        self._oldest = int(self._groups.second[self.living()].min(initial=2**62))

    def provisional(self, watermark_us: int) -> Iterator[Rows]:
        groups = self.living()
        if self._panes == 1:
            groups = groups[self.changed[groups]]
            if len(groups):
                yield self._pane_output(groups, final=False)
        elif len(groups) and self.changed[groups].any():
            pane = self._groups.second[groups]
            last = int(pane.max()) + self._panes - 1
            yield from self._merged(
                groups, clip_us(self._closed(watermark_us)) + 1, last, watermark_us, final=False
            )

    def _pane_output(self, groups: Ids, *, final: bool) -> Rows:
        start = self._groups.second[groups] * self.plan.hop_us
        key = self._groups.first[groups]
        return self.output(self.table, groups, key, start, start + self.plan.hop_us, final=final)

    def _merged(self, groups: Ids, low: int, high: int, before_us: int, *, final: bool) -> Iterator[Rows]:
        """Results of the windows `low` to `high` (inclusive) that these groups have a part in, in pieces."""
        pane = self._groups.second[groups]
        groups = groups[np.argsort(pane, kind="stable")]  # so that sums go by time, however the groups came
        pane, key = self._groups.second[groups], self._groups.first[groups]
        begin = np.maximum(pane, low)
        if self.floors is not None:
            floor = self.floor_of(key, before_us)
            begin = np.maximum(begin, (floor - self.plan.lateness_us) // self.plan.hop_us)
        stop = np.minimum(pane + self._panes - 1, high)
        lengths = np.maximum(stop - begin + 1, 0)
        total = int(lengths.sum())
        if not total:
            return
        low, high = int(begin[lengths > 0].min()), int(stop[lengths > 0].max())
        if total > _EXPANDED and high > low:
            middle = (low + high) // 2
            yield from self._merged(groups, low, middle, before_us, final=final)
            yield from self._merged(groups, middle + 1, high, before_us, final=final)
            return
        source = np.repeat(np.arange(len(groups)), lengths)
        index = PairIndex()  # (key, window)
        into = index.find_or_add(key[source], expand(begin, lengths))
        merged = self.table.blank(index.count)
        merged.merge(into, self.table, groups[source])
        wanted = np.arange(index.count)
        if not final:
            touched = np.zeros(index.count, np.bool_)
            touched[into[self.changed[groups[source]]]] = True
            wanted = np.flatnonzero(touched)
        end = (index.second[wanted] + 1) * self.plan.hop_us
        yield self.output(merged, wanted, index.first[wanted], end - self.plan.length_us, end, final=final)

    def group_key(self, groups: Ids) -> Ids:
        return self._groups.first[groups]

    def keep_groups(self, groups: Ids, keys: Ids) -> None:
        self._groups.keep(groups, keys)

    def save_groups(self, groups: Ids) -> dict[str, pa.Array]:
        return {"window_start": pa.array(self._groups.second[groups] * self.plan.hop_us).cast(TIMESTAMP)}

    def load_groups(self, keys: Ids, state: pa.Table) -> Ids:
        start = pc.cast(state.column("window_start"), pa.int64()).to_numpy()
        pane = start // self.plan.hop_us
        groups = self._groups.find_or_add(keys, pane)
        self.begin(self._groups.count)
        self._oldest = int(pane.min())
        return groups
