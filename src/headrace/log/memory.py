"""The log in memory, for tests and simulation: every rule of the SQLite log, nothing kept when the process ends."""

from __future__ import annotations

import heapq
import json
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.clock import Clock, SystemClock
from headrace.errors import FencedError, PlanError, RetryableError
from headrace.log.draft import Draft, epoch_of, epoch_to_json, fence
from headrace.log.frame import bounded
from headrace.log.schema import Stored, find, fit, merge
from headrace.log.wake import Waiters
from headrace.model import Cursor, Epoch, Rows, Span, Topic, concat


@dataclass
class _Partition:
    """Batches in order, with the first offset and the time of each."""

    bases: list[int] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    at_us: list[int] = field(default_factory=list)
    end: int = 0

    @property
    def start(self) -> int:
        return self.bases[0] if self.bases else self.end


class MemoryLog:
    """A `Log` for one process."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._mutex = threading.RLock()
        self._waiters = Waiters(self._clock)
        self._topics: dict[str, Stored] = {}
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._cursors: dict[str, str] = {}
        self._positions: dict[tuple[str, str, int], int] = {}
        self._epochs: dict[tuple[str, int], dict[int, str]] = {}
        self._counts: dict[tuple[str, int], tuple[str, str]] = {}
        self._life = 0
        self._closed = False

    def crash(self) -> None:
        """As if the process had been killed and started again: what was committed stays, waits end, and transactions
        that were under way fail with RetryableError."""
        with self._mutex:
            self._life += 1
        self._waiters.end()

    # -- topics ------------------------------------------------------------------------------------

    def create(self, topic: Topic) -> Topic:
        with self._mutex:
            self._open()
            old = self._topics.get(topic.name)
            merged = merge(old.topic if old else None, topic)
            self._topics[topic.name] = Stored(0, merged, old.version + 1 if old else 1)
            for partition in range(merged.partitions):
                self._partitions.setdefault((topic.name, partition), _Partition())
            return merged

    def topics(self) -> Mapping[str, Topic]:
        with self._mutex:
            return {name: self._topics[name].topic for name in sorted(self._topics)}

    # -- writing -----------------------------------------------------------------------------------

    def append(
        self, topic: str, partition: int, rows: Rows, *, writer: str = "", cursor: Cursor = None
    ) -> Span:
        draft = self.transaction()
        draft.append(topic, partition, rows)
        if writer:
            draft.cursor(writer, cursor)
        self._commit(draft, self._life)
        return draft.spans[0]

    def transaction(self) -> Draft:
        life = self._life
        return Draft(lambda draft: self._commit(draft, life))

    def _commit(self, draft: Draft, life: int) -> None:
        with self._mutex:
            self._open()
            if life != self._life:
                raise RetryableError("log: the transaction was cut off by a crash; nothing of it was kept")
            # Everything is checked before anything is changed.
            grown: dict[str, Stored] = {}
            placed: list[tuple[tuple[str, int], Rows]] = []
            for append in draft.appends:
                stored = find({**self._topics, **grown}, append.topic, append.partition)
                fitted = fit(stored, append.rows)
                grown[append.topic] = fitted.after
                placed.append(((append.topic, append.partition), fitted.rows))
            for _, topic, partition in draft.positions:
                find(self._topics, topic, partition)
            last = {key: epoch_of(text).number for key, (text, _) in self._counts.items()}
            for pipeline, worker, epoch, _ in draft.epochs:
                refusal = fence(last.get((pipeline, worker)), epoch.number, pipeline, worker)
                if refusal:
                    raise FencedError(refusal)
                last[pipeline, worker] = epoch.number
            self._topics.update(grown)
            draft.placed([self._place(key, rows) for key, rows in placed])
            self._cursors.update(draft.cursors)
            self._positions.update(draft.positions)
            for pipeline, worker, epoch, counts in draft.epochs:
                text = epoch_to_json(epoch)
                self._epochs.setdefault((pipeline, worker), {})[epoch.number] = text
                self._counts[pipeline, worker] = (text, counts)
            for pipeline, worker, before in draft.forgets:
                kept = self._epochs.get((pipeline, worker), {})
                self._epochs[pipeline, worker] = {
                    number: text for number, text in kept.items() if number >= before
                }
        if placed:
            self._waiters.notify()

    def _place(self, key: tuple[str, int], rows: Rows) -> Span:
        part = self._partitions[key]
        span = Span(part.end, part.end + rows.num_rows)
        if rows.num_rows:
            part.bases.append(span.start)
            part.rows.append(rows)
            part.at_us.append(self._clock.now_us())
            part.end = span.end
        return span

    # -- reading -----------------------------------------------------------------------------------

    def _part(self, topic: str, partition: int) -> _Partition:
        self._open()
        find(self._topics, topic, partition)
        return self._partitions[topic, partition]

    def read(self, topic: str, partition: int, span: Span) -> Rows:
        with self._mutex:
            part = self._part(topic, partition)
            schema = self._topics[topic].topic.schema
            if len(span) and not part.start <= span.start < span.end <= part.end:
                raise PlanError(
                    f"topic {topic}, partition {partition}: {span} is not in the log; it holds {Span(part.start, part.end)}"
                )
            found = []
            if len(span):
                for at in range(bisect_right(part.bases, span.start) - 1, bisect_left(part.bases, span.end)):
                    skip = max(0, span.start - part.bases[at])
                    found.append(part.rows[at].slice(skip, span.end - part.bases[at] - skip))
        return concat(found, schema)

    def extent(self, topic: str, partition: int) -> Span:
        with self._mutex:
            part = self._part(topic, partition)
            return Span(part.start, part.end)

    def bounded(self, topic: str, partition: int, start: int, *, max_rows: int, max_bytes: int) -> Span:
        with self._mutex:
            part = self._part(topic, partition)
            first = max(0, bisect_right(part.bases, start) - 1)
            batches = zip(part.bases[first:], part.rows[first:], strict=True)
            end = bounded(
                ((base, rows.num_rows, rows.nbytes) for base, rows in batches), start, max_rows, max_bytes
            )
            if end == start < part.end:
                raise PlanError(
                    f"topic {topic}, partition {partition}: offset {start} is not in the log; it holds {Span(part.start, part.end)}"
                )
            return Span(start, end)

    def bytes(self, topic: str, partition: int) -> int:
        with self._mutex:
            return sum(rows.nbytes for rows in self._part(topic, partition).rows)

    def nearest(self, topic: str, partition: int, at_us: int) -> int:
        with self._mutex:
            part = self._part(topic, partition)
            return next(
                (base for base, at in zip(part.bases, part.at_us, strict=True) if at >= at_us), part.end
            )

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, positions: Mapping[tuple[str, int], int], timeout: float) -> bool:
        return self._waiters.wait(lambda: self._past(positions), timeout)

    def _past(self, positions: Mapping[tuple[str, int], int]) -> bool:
        with self._mutex:
            return not self._closed and any(
                key in self._partitions and self._partitions[key].end > offset
                for key, offset in positions.items()
            )

    def wake(self) -> None:
        self._waiters.end()

    # -- what is remembered ------------------------------------------------------------------------

    def cursor(self, writer: str) -> Cursor:
        with self._mutex:
            text = self._cursors.get(writer)
        return None if text is None else json.loads(text)

    def positions(self, reader: str) -> Mapping[tuple[str, int], int]:
        return self.readers().get(reader, {})

    def readers(self) -> Mapping[str, Mapping[tuple[str, int], int]]:
        found: dict[str, dict[tuple[str, int], int]] = {}
        with self._mutex:
            for (reader, topic, partition), offset in self._positions.items():
                found.setdefault(reader, {})[topic, partition] = offset
        return found

    def forget(self, reader: str) -> None:
        with self._mutex:
            self._positions = {key: offset for key, offset in self._positions.items() if key[0] != reader}

    def epochs(self, pipeline: str, worker: int) -> Sequence[Epoch]:
        with self._mutex:
            kept = self._epochs.get((pipeline, worker), {})
            return [epoch_of(kept[number]) for number in sorted(kept)]

    def counts(self) -> Mapping[tuple[str, int], tuple[Epoch, Mapping[str, int]]]:
        with self._mutex:
            return {
                key: (epoch_of(epoch), json.loads(counts)) for key, (epoch, counts) in self._counts.items()
            }

    # -- keeping it small --------------------------------------------------------------------------

    def retain(self, now_us: int) -> int:
        with self._mutex:
            self._open()
            return sum(self._retain(stored.topic, now_us) for stored in self._topics.values())

    def _retain(self, topic: Topic, now_us: int) -> int:
        parts = {number: self._partitions[topic.name, number] for number in range(topic.partitions)}
        excess = sum(rows.nbytes for part in parts.values() for rows in part.rows) - topic.max_size.bytes
        oldest = now_us - topic.retention.us
        deleted = 0
        heads = [(part.at_us[0], number) for number, part in parts.items() if part.bases]
        heapq.heapify(heads)
        while heads:
            at_us, number = heapq.heappop(heads)
            part = parts[number]
            wanted = min(
                (at for (_, name, p), at in self._positions.items() if (name, p) == (topic.name, number)),
                default=part.end,
            )
            too_much = excess > 0 and len(part.bases) > 1
            if not (at_us < oldest or too_much) or part.bases[0] + part.rows[0].num_rows > wanted:
                continue
            excess -= part.rows[0].nbytes
            deleted += part.rows[0].num_rows
            del part.bases[0], part.at_us[0], part.rows[0]
            if part.bases:
                heapq.heappush(heads, (part.at_us[0], number))
        return deleted

    def _open(self) -> None:
        if self._closed:
            raise RetryableError("the log is closed")

    def close(self) -> None:
        self._closed = True
        self._waiters.end()
