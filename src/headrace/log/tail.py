"""Tail: the rows appended last, decoded, so that who reads right behind an append needn't decode them again."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from headrace.log.frame import Frame
from headrace.model import Rows, Span

Key = tuple[int, int]
"""(topic id, partition)."""


class Tail:
    """The last `max_bytes` of batches that this process appended. It never asks the disk: a span that is not wholly
    here is None, and so is one that another process has appended to in between."""

    def __init__(self, max_bytes: int = 32 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._order: deque[tuple[Key, int, int]] = deque()  # (partition, base, bytes), oldest first
        self._bases: dict[Key, list[int]] = {}
        self._rows: dict[Key, list[Rows]] = {}
        self._bytes = 0

    def add(self, placed: Sequence[tuple[Key, int, Frame]]) -> None:
        """Batches just committed, each with its first offset."""
        with self._mutex:
            for key, base, frame in placed:
                self._bases.setdefault(key, []).append(base)
                self._rows.setdefault(key, []).append(frame.rows)
                self._order.append((key, base, frame.size))
                self._bytes += frame.size
            while self._bytes > self._max_bytes:
                key, base, size = self._order.popleft()
                self._bytes -= size
                bases = self._bases[key]
                if bases and bases[0] == base:  # `drop` may have been faster
                    del bases[0]
                    del self._rows[key][0]

    def read(self, key: Key, span: Span) -> list[Rows] | None:
        """The rows of a span as appended, or None."""
        with self._mutex:
            bases = self._bases.get(key)
            if not bases or bases[0] > span.start:
                return None
            rows = self._rows[key]
            at = bisect_right(bases, span.start) - 1
            found, offset = [], span.start
            while offset < span.end:
                if at == len(bases):
                    return None
                skip = offset - bases[at]
                if not 0 <= skip < rows[at].num_rows:
                    return None
                piece = rows[at].slice(skip, span.end - offset)
                found.append(piece)
                offset += piece.num_rows
                at += 1
            return found

    def drop(self, key: Key, before: int) -> None:
        """Forget what retention has deleted."""
        with self._mutex:
            bases = self._bases.get(key, [])
            count = bisect_right(bases, before - 1)
            del bases[:count]
            del self._rows.get(key, [])[:count]
