"""Which keys were seen within a stretch of event time: what `dedupe` and `sample` share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.groups import Ids, KeyIndex, grown

_NEVER_US = -(2**62)
_ROUNDS = 8  # vectorised; a key that passes more often in one batch is finished row by row
_TIME = "state:seen_us"


class Seen:
    """Remembers by key the latest event time that passed, until the watermark makes it pointless.

    A row passes when its key isn't remembered within `within_us` of its time, before or after. On-time rows pass or
    not in the same way however they are cut into batches. Beyond `max_keys`, the keys seen longest ago are forgotten.
    """

    def __init__(self, types: Sequence[pa.DataType], within_us: int, max_keys: int) -> None:
        self._types, self._within_us, self._max_keys = tuple(types), within_us, max_keys
        self._keys = KeyIndex(types)
        self._seen: Ids = np.full(64, _NEVER_US, np.int64)
        self._first: Ids = np.zeros(
            64, np.int64
        )  # scratch: first candidate row by key, valid only where just written
        self._watermark_us = _NEVER_US
        self._tidy_at = 1024

    def passes(self, columns: Sequence[pa.Array], times: Ids) -> npt.NDArray[np.bool_]:
        """Which rows pass, in order; they are remembered."""
        ids = self._keys.encode(columns, len(times)).of_rows()
        self._seen = grown(self._seen, len(self._keys), _NEVER_US)
        self._first = grown(self._first, len(self._keys), 0)
        touched = np.unique(ids)
        expired = touched[self._seen[touched] + self._within_us <= self._watermark_us]
        self._seen[expired] = _NEVER_US
        passed = np.zeros(len(ids), np.bool_)
        left = np.arange(len(ids))
        for _ in range(_ROUNDS):
            new = left[np.abs(times[left] - self._seen[ids[left]]) >= self._within_us]
            if not len(new):
                return passed
            self._first[ids[new[::-1]]] = new[::-1]  # the last write, that is the first row, stays
            chosen = new[self._first[ids[new]] == new]
            passed[chosen] = True
            self._seen[ids[chosen]] = np.maximum(self._seen[ids[chosen]], times[chosen])
            left = left[np.isin(ids[left], ids[new])]
            left = left[left > self._first[ids[left]]]
        # Row by row: only for a few keys with very many rows further apart than `within`.
        for row in left.tolist():
            at, key = int(times[row]), ids[row]
            if abs(at - int(self._seen[key])) >= self._within_us:
                passed[row] = True
                self._seen[key] = max(at, int(self._seen[key]))
        return passed

    def advance(self, watermark_us: int) -> None:
        """Forget what no on-time row can meet any more, and what is beyond the bound."""
        self._watermark_us = max(self._watermark_us, watermark_us)
        if len(self._keys) <= min(self._tidy_at, self._max_keys):
            return
        live = self._live()
        if len(live) > self._max_keys:
            oldest_first = live[np.argsort(self._seen[live], kind="stable")]
            live = np.sort(oldest_first[-self._max_keys :])
        elif len(live) * 2 > len(self._keys) and len(self._keys) <= self._max_keys:
            self._tidy_at = 2 * len(self._keys)
            return
        self._keys.keep(live)
        self._seen = grown(self._seen[live], 64, _NEVER_US)
        self._first = np.zeros(len(self._seen), np.int64)
        self._tidy_at = 2 * len(live) + 1024

    def _live(self) -> Ids:
        return np.flatnonzero(self._seen[: len(self._keys)] + self._within_us > self._watermark_us)

    def save(self, names: Sequence[str]) -> pa.Table:
        """One row a key: the key under `names`, and when it was seen."""
        live = self._live()
        columns = dict(zip(names, self._keys.values(live), strict=True))
        return pa.table({**columns, _TIME: pa.array(self._seen[live])})

    def load(self, state: pa.Table, names: Sequence[str]) -> None:
        """Take over rows of one or more `save`s; a key that is in several counts as seen at the latest."""
        if not state.num_rows:
            return
        rows = state.combine_chunks()
        columns = [
            pc.cast(rows.column(n).combine_chunks(), t) for n, t in zip(names, self._types, strict=True)
        ]
        ids = self._keys.encode(columns, rows.num_rows).of_rows()
        self._seen = grown(self._seen, len(self._keys), _NEVER_US)
        self._first = grown(self._first, len(self._keys), 0)
        np.maximum.at(self._seen, ids, rows.column(_TIME).to_numpy())
