"""Rows of many keys held in the order of key, time and arrival, so that ranges of time are found by bisection."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.analysis.groups import Ids, RowPool
from headrace.model import Rows


class Timeline:
    """Held rows as parallel arrays: `key`, `time`, `number` (of the row in the pool: grows with arrival) and `used`, a
    flag for whoever holds it. A key of -1 stands for null, which equals no other."""

    def __init__(self, schema: pa.Schema) -> None:
        self._pool = RowPool(schema)
        self.key: Ids = np.empty(0, np.int64)
        self.time: Ids = np.empty(0, np.int64)
        self.number: Ids = np.empty(0, np.int64)
        self.used: npt.NDArray[np.bool_] = np.empty(0, np.bool_)

    def __len__(self) -> int:
        return len(self.key)

    @property
    def next_number(self) -> int:
        """The `number` of the next row inserted."""
        return len(self._pool)

    def insert(self, key: Ids, time: Ids, rows: Rows, used: npt.NDArray[np.bool_] | None = None) -> None:
        """Add rows; of equal key and time, they come after those that are there."""
        if not rows.num_rows:
            return
        number = self._pool.append(rows) + np.arange(rows.num_rows)
        order = np.lexsort((time, key))
        key, time, number = key[order], time[order], number[order]
        used = np.zeros(len(key), np.bool_) if used is None else used[order]
        if not len(self):
            self.key, self.time, self.number, self.used = key, time, number, used
            return
        places = self.search(key, time, "right")
        self.key = np.insert(self.key, places, key)
        self.time = np.insert(self.time, places, time)
        self.number = np.insert(self.number, places, number)
        self.used = np.insert(self.used, places, used)

    def search(self, key: Ids, time: Ids, side: Literal["left", "right"]) -> Ids:
        """Where (key, time) would stand: before (`left`) or after (`right`) the equal ones."""
        if not len(self) or not len(key):
            return np.zeros(len(key), np.int64)
        least = min(int(self.time.min()), int(time.min()))
        span = max(int(self.time.max()), int(time.max())) - least + 1
        if span * (max(int(self.key.max()), int(key.max())) + 2) < 2**62:
            return np.searchsorted(
                self.key * span + (self.time - least), key * span + (time - least), side=side
            )
        # Centuries of time and many keys don't fit into one number: ranks of the times held do.
        known = np.unique(self.time)
        low = np.searchsorted(known, time, side="left")
        wanted = 2 * low + (np.searchsorted(known, time, side="right") > low)
        held = 2 * np.searchsorted(known, self.time) + 1
        width = 2 * len(known) + 2
        return np.searchsorted(self.key * width + held, key * width + wanted, side=side)

    def rows(self, places: Ids, missing: npt.NDArray[np.bool_] | None = None) -> Rows:
        """The rows at these places; all null where `missing`."""
        if missing is None or not missing.any():
            return self._pool.take(self.number[places])
        there = ~missing
        taken = self._pool.take(self.number[places[there]])
        return taken.take(pa.array(np.cumsum(there) - 1, mask=missing))

    def keep(self, kept: npt.NDArray[np.bool_]) -> None:
        """Forget all rows but these."""
        self.key, self.time, self.number, self.used = (
            self.key[kept], self.time[kept], self.number[kept], self.used[kept],
        )  # fmt: skip
        if len(self._pool) > 2 * len(self) + 1024:
            numbers = np.sort(self.number)
            self._pool.keep(numbers)
            self.number = np.searchsorted(numbers, self.number)

    def rename(self, new: Ids) -> None:
        """Give keys other numbers: `new` by old."""
        self.key = np.where(self.key < 0, -1, new[self.key])
        order = np.lexsort((self.number, self.time, self.key))
        self.key, self.time, self.number, self.used = (
            self.key[order], self.time[order], self.number[order], self.used[order],
        )  # fmt: skip

    def by_arrival(self) -> Ids:
        """All places, in the order of arrival."""
        return np.argsort(self.number, kind="stable")
