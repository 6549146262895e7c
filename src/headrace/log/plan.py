"""Plan: what one group of drafts changes, checked in full before the first statement, then written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.errors import FencedError
from headrace.log.database import Topics
from headrace.log.draft import Append, Draft, epoch_to_json, fence
from headrace.log.frame import Frame
from headrace.log.schema import Fitted, Stored, find, settings
from headrace.model import Epoch, Rows, Span, concat

_MERGE_ROWS = 16_384
_MERGE_BYTES = 2**20

Key = tuple[int, int]
"""(topic id, partition)."""


@dataclass
class _Changes:
    """Of one draft, until it is known that all of it can be committed."""

    grown: dict[str, Stored] = field(default_factory=dict)
    ends: dict[Key, int] = field(default_factory=dict)
    pieces: list[tuple[Key, Stored, Frame]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    last: dict[tuple[str, int], int] = field(default_factory=dict)


class Plan:
    """Built on the state at the start of a write transaction: topics, and next offsets as far as they are known."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        topics: Mapping[str, Stored],
        ends: Mapping[Key, int],
        now_us: int,
    ) -> None:
        self._connection = connection
        self._topics = dict(topics)
        self._known_ends = ends
        self._now_us = now_us
        self._grown: dict[str, Stored] = {}
        self._pieces: dict[Key, list[Frame]] = {}
        self._bases: dict[Key, int] = {}
        self._names: dict[Key, Stored] = {}
        self._cursors: dict[str, str] = {}
        self._positions: dict[tuple[str, str, int], int] = {}
        self._epochs: list[tuple[str, int, Epoch, str]] = []
        self._forgets: list[tuple[str, int, int]] = []
        self._last: dict[tuple[str, int], int] = {}
        self.ends: dict[Key, int] = {}
        self.spans: list[tuple[Draft, list[Span]]] = []
        self.placed: list[tuple[Key, int, Frame]] = []
        self.bytes = 0

    def add(self, draft: Draft, fit: Callable[[Append, Stored], Fitted]) -> None:
        """Take a draft in, or raise (PlanError, FencedError) and leave the plan as it was."""
        changes = _Changes()
        for append in draft.appends:
            stored = changes.grown.get(append.topic) or find(self._topics, append.topic, append.partition)
            find({append.topic: stored}, append.topic, append.partition)
            fitted = fit(append, stored)
            if fitted.after is not stored:
                changes.grown[append.topic] = fitted.after
            key = (stored.id, append.partition)
            start = changes.ends.get(key)
            if start is None:
                start = self._end(key)
            changes.ends[key] = start + append.rows.num_rows
            changes.spans.append(Span(start, changes.ends[key]))
            changes.pieces += [(key, fitted.after, frame) for frame in append.frames]
        for _, topic, partition in draft.positions:
            find(self._topics, topic, partition)
        for pipeline, worker, epoch, _ in draft.epochs:
            last = changes.last.get((pipeline, worker), self._last_epoch(pipeline, worker))
            refusal = fence(last, epoch.number, pipeline, worker)
            if refusal:
                raise FencedError(refusal)
            changes.last[pipeline, worker] = epoch.number
        self._take(draft, changes)

    def _take(self, draft: Draft, changes: _Changes) -> None:
        self._topics.update(changes.grown)
        self._grown.update(changes.grown)
        for key, stored, frame in changes.pieces:
            self._bases.setdefault(key, self._end(key))
            self._pieces.setdefault(key, []).append(frame)
            self._names[key] = stored
        self.ends.update(changes.ends)
        self._last.update(changes.last)
        self._cursors.update(draft.cursors)
        self._positions.update(draft.positions)
        self._epochs += draft.epochs
        self._forgets += draft.forgets
        self.spans.append((draft, changes.spans))

    def _end(self, key: Key) -> int:
        end = self.ends.get(key)
        if end is None:
            end = self._known_ends.get(key)
        if end is None:
            end = next_offset(self._connection, key)
        return end

    def _last_epoch(self, pipeline: str, worker: int) -> int | None:
        if (pipeline, worker) in self._last:
            return self._last[pipeline, worker]
        found = self._connection.execute(
            "SELECT number FROM counts WHERE pipeline = ? AND worker = ?", (pipeline, worker)
        ).fetchone()
        return None if found is None else int(found[0])

    def write(self, topics: Topics) -> None:
        """All statements. Any error is of the disk, and takes the whole group back."""
        run, run_many = self._connection.execute, self._connection.executemany
        for stored in self._grown.values():
            topics.write(self._connection, stored, settings(stored.topic))
        for key, pieces in self._pieces.items():
            self._write_frames(key, pieces)
        if self._cursors:
            run_many("INSERT OR REPLACE INTO cursors VALUES (?, ?)", self._cursors.items())
        if self._positions:
            run_many(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)",
                [(*key, at) for key, at in self._positions.items()],
            )
        for pipeline, worker, epoch, counts in self._epochs:
            text = epoch_to_json(epoch)
            run("INSERT INTO epochs VALUES (?, ?, ?, ?)", (pipeline, worker, epoch.number, text))
            run(
                "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?)",
                (pipeline, worker, epoch.number, text, counts),
            )
        if self._forgets:
            run_many("DELETE FROM epochs WHERE pipeline = ? AND worker = ? AND number < ?", self._forgets)

    def _write_frames(self, key: Key, pieces: list[Frame]) -> None:
        base = self._bases[key]
        for frame in _merge(pieces, self._names[key]):
            data, count = frame.encode(), frame.rows.num_rows
            written = self._connection.execute("INSERT INTO frames (data) VALUES (?)", (data,))
            self._connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *key,
                    base,
                    count,
                    self._now_us,
                    data.nbytes,
                    frame.rows.nbytes,
                    frame.crc,
                    written.lastrowid,
                ),
            )
            self.placed.append((key, base, frame))
            self.bytes += data.nbytes
            base += count


def _merge(frames: list[Frame], stored: Stored) -> list[Frame]:
    """Neighbours that are small and not encoded yet as one: a frame costs a few hundred bytes and several pages."""
    if len(frames) == 1:
        return frames
    merged: list[Frame] = []
    run: list[Rows] = []
    count = size = 0

    def end_run() -> None:
        nonlocal count, size
        if run:
            same = all(rows.schema.equals(run[0].schema) for rows in run[1:])
            merged.append(Frame(concat(run, run[0].schema if same else stored.topic.schema), size))
            run.clear()
        count = size = 0

    for frame in frames:
        rows = frame.rows
        if frame.data is not None or count + rows.num_rows > _MERGE_ROWS or size + frame.size > _MERGE_BYTES:
            end_run()
        if frame.data is not None:
            merged.append(frame)
        else:
            run.append(rows)
            count, size = count + rows.num_rows, size + frame.size
    end_run()
    return merged


def next_offset(connection: sqlite3.Connection, key: Key) -> int:
    """The next offset of a partition, also of one that retention has emptied."""
    last = connection.execute(
        "SELECT base + rows FROM batches WHERE topic = ? AND partition = ? ORDER BY base DESC LIMIT 1", key
    ).fetchone()
    if last is None:
        last = connection.execute("SELECT next FROM ends WHERE topic = ? AND partition = ?", key).fetchone()
    return 0 if last is None else int(last[0])
