"""The log in one SQLite file: crash safety that is well tested, and one transaction over rows, cursors and epochs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace.clock import Clock
from headrace.errors import CorruptLogError, PlanError
from headrace.log.checkpoint import Checkpointer
from headrace.log.commit import Committer
from headrace.log.database import Database, Topics
from headrace.log.draft import Draft, epoch_of
from headrace.log.frame import bounded, decode
from headrace.log.plan import Plan, next_offset
from headrace.log.retention import retain
from headrace.log.schema import Stored, find, merge, settings
from headrace.log.tail import Tail
from headrace.log.wake import Doorbell, Waiters
from headrace.model import Cursor, Epoch, Rows, Span, Topic, concat, empty

_COMMIT_PAGES = 5  # that a commit writes besides the frames: about, for the pace of checkpoints


class SqliteLog:
    """A `Log` in the file `path` and its companions `-wal`, `-shm`, `.lock`, and the folder `wake` beside it.

    Any number of threads and processes may have it open. `observe` is handed durations in seconds by metric name.
    Rows appended last stay decoded, up to `cache_bytes`.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        observe: Callable[[str, float], None] = lambda name, value: None,
        cache_bytes: int = 32 * 2**20,
    ) -> None:
        self._clock = clock
        self._database = Database(path)
        self._topics = Topics()
        self._tail = Tail(cache_bytes)
        self._waiters = Waiters(clock)
        self._bell = Doorbell(Path(path).parent / "wake", self._waiters.notify)
        self._committer = Committer(self._database, self._topics, self._tail, clock, observe, self._committed)
        self._checkpointer = Checkpointer(self._database, self._committer, clock, observe)
        self._closed = False

    def _committed(self, plan: Plan) -> None:
        if plan.placed:
            self._waiters.notify()
            self._bell.ring()
        self._checkpointer.grown(plan.bytes + _COMMIT_PAGES * self._database.page_bytes)

    # -- topics ------------------------------------------------------------------------------------

    def create(self, topic: Topic) -> Topic:
        with self._committer.alone(f"making topic {topic.name}") as (connection, topics):
            old = topics.get(topic.name)
            merged = merge(old.topic if old else None, topic)
            if (
                old is not None
                and old.topic.schema.equals(merged.schema)
                and settings(old.topic) == settings(merged)
            ):
                return old.topic
            if old is not None:
                stored = Stored(old.id, merged, old.version + 1)
            else:
                stored = Stored(1 + max((known.id for known in topics.values()), default=0), merged)
            self._topics.write(connection, stored, settings(merged))
        return merged

    def topics(self) -> Mapping[str, Topic]:
        with self._database.reader("reading topics") as connection:
            return {name: stored.topic for name, stored in self._topics.read(connection).items()}

    # -- writing -----------------------------------------------------------------------------------

    def append(
        self, topic: str, partition: int, rows: Rows, *, writer: str = "", cursor: Cursor = None
    ) -> Span:
        draft = Draft(self._committer.submit)
        draft.append(topic, partition, rows)
        if writer:
            draft.cursor(writer, cursor)
        self._committer.submit(draft)
        return draft.spans[0]

    def transaction(self) -> Draft:
        return Draft(self._committer.submit)

    # -- reading -----------------------------------------------------------------------------------

    def read(self, topic: str, partition: int, span: Span) -> Rows:
        with self._database.reader(f"reading {topic}[{partition}] {span}") as connection:
            stored = find(self._topics.read(connection), topic, partition)
            schema = stored.topic.schema
            if not len(span):
                return empty(schema)
            rows = self._tail.read((stored.id, partition), span)
            if rows is None:
                rows = self._stored(connection, stored, partition, span)
        return concat(rows, schema)

    def _stored(
        self, connection: sqlite3.Connection, stored: Stored, partition: int, span: Span
    ) -> list[Rows]:
        name, found, offset = stored.topic.name, [], span.start
        promised = next_offset(connection, (stored.id, partition))  # asked first: rows may come meanwhile
        for base, count, crc, data in connection.execute(
            "SELECT base, rows, crc, data FROM batches LEFT JOIN frames ON id = frame WHERE topic = ? AND partition = ? "
            "AND base < ? AND base >= coalesce((SELECT max(base) FROM batches WHERE topic = ? AND partition = ? AND base <= ?), 0) "
            "ORDER BY base",
            (stored.id, partition, span.end, stored.id, partition, span.start),
        ).fetchall():
            if base > offset:
                break
            if offset >= base + count:
                continue
            within = Span(base, base + count)
            if data is None:
                raise CorruptLogError(
                    f"topic {name}, partition {partition}, span {within}: the stored bytes are missing"
                )
            rows = decode(data, crc, topic=name, partition=partition, span=within)
            found.append(rows.slice(offset - base, span.end - offset))
            offset += found[-1].num_rows
        if offset < span.end:
            extent = self._extent(connection, stored, partition)
            if extent.start <= offset and span.end <= promised:
                raise CorruptLogError(
                    f"topic {name}, partition {partition}: rows {offset} and following are missing"
                )
            raise PlanError(
                f"topic {name}, partition {partition}: {span} is not in the log; it holds {extent}"
            )
        return found

    def extent(self, topic: str, partition: int) -> Span:
        with self._database.reader(f"reading the extent of {topic}[{partition}]") as connection:
            return self._extent(connection, find(self._topics.read(connection), topic, partition), partition)

    def _extent(self, connection: sqlite3.Connection, stored: Stored, partition: int) -> Span:
        key = (stored.id, partition)
        first = connection.execute(
            "SELECT base FROM batches WHERE topic = ? AND partition = ? ORDER BY base LIMIT 1", key
        ).fetchone()
        end = next_offset(connection, key)
        return Span(end if first is None else first[0], end)

    def bounded(self, topic: str, partition: int, start: int, *, max_rows: int, max_bytes: int) -> Span:
        """`max_bytes` counts rows as they are in memory, not as they are stored."""
        with self._database.reader(f"measuring {topic}[{partition}]") as connection:
            stored = find(self._topics.read(connection), topic, partition)
            batches = connection.execute(
                "SELECT base, rows, decoded_bytes FROM batches WHERE topic = ? AND partition = ? "
                "AND base >= coalesce((SELECT max(base) FROM batches WHERE topic = ? AND partition = ? AND base <= ?), 0) "
                "ORDER BY base",
                (stored.id, partition, stored.id, partition, start),
            )
            try:
                end = bounded(batches, start, max_rows, max_bytes)
            finally:
                batches.close()
            extent = self._extent(connection, stored, partition)
            if start < extent.start:  # not `end == start < extent.end`: rows may have come since the query
                raise PlanError(
                    f"topic {topic}, partition {partition}: offset {start} is not in the log; it holds {extent}"
                )
            return Span(start, end)

    def bytes(self, topic: str, partition: int) -> int:
        with self._database.reader(f"measuring {topic}[{partition}]") as connection:
            stored = find(self._topics.read(connection), topic, partition)
            total = connection.execute(
                "SELECT coalesce(sum(bytes), 0) FROM batches WHERE topic = ? AND partition = ?",
                (stored.id, partition),
            ).fetchone()
            return int(total[0])

    def nearest(self, topic: str, partition: int, at_us: int) -> int:
        with self._database.reader(f"searching {topic}[{partition}]") as connection:
            stored = find(self._topics.read(connection), topic, partition)
            # Along the batches and not by halves: the wall clock may have been set back between them.
            found = connection.execute(
                "SELECT base FROM batches WHERE topic = ? AND partition = ? AND at_us >= ? ORDER BY base LIMIT 1",
                (stored.id, partition, at_us),
            ).fetchone()
            return next_offset(connection, (stored.id, partition)) if found is None else int(found[0])

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, positions: Mapping[tuple[str, int], int], timeout: float) -> bool:
        self._bell.listen()
        return self._waiters.wait(lambda: not self._closed and self._past(positions), timeout)

    def _past(self, positions: Mapping[tuple[str, int], int]) -> bool:
        with self._database.reader("waiting for rows") as connection:
            topics = self._topics.read(connection)
            for (topic, partition), offset in positions.items():
                stored = topics.get(topic)  # one that another process is about to make counts as empty
                if stored is not None and next_offset(connection, (stored.id, partition)) > offset:
                    return True
        return False

    def wake(self) -> None:
        self._waiters.end()

    # -- what is remembered ------------------------------------------------------------------------

    def cursor(self, writer: str) -> Cursor:
        with self._database.reader(f"reading the cursor of {writer}") as connection:
            found = connection.execute("SELECT cursor FROM cursors WHERE writer = ?", (writer,)).fetchone()
        return None if found is None else json.loads(found[0])

    def positions(self, reader: str) -> Mapping[tuple[str, int], int]:
        return self.readers().get(reader, {})

    def readers(self) -> Mapping[str, Mapping[tuple[str, int], int]]:
        found: dict[str, dict[tuple[str, int], int]] = {}
        with self._database.reader("reading positions") as connection:
            for reader, topic, partition, offset in connection.execute("SELECT * FROM positions").fetchall():
                found.setdefault(reader, {})[topic, partition] = offset
        return found

    def forget(self, reader: str) -> None:
        with self._committer.alone(f"forgetting {reader}") as (connection, _):
            connection.execute("DELETE FROM positions WHERE reader = ?", (reader,))

    def epochs(self, pipeline: str, worker: int) -> Sequence[Epoch]:
        with self._database.reader(f"reading the epochs of {pipeline}") as connection:
            found = connection.execute(
                "SELECT epoch FROM epochs WHERE pipeline = ? AND worker = ? ORDER BY number",
                (pipeline, worker),
            ).fetchall()
        return [epoch_of(text) for (text,) in found]

    def counts(self) -> Mapping[tuple[str, int], tuple[Epoch, Mapping[str, int]]]:
        with self._database.reader("reading counts") as connection:
            found = connection.execute("SELECT pipeline, worker, epoch, counts FROM counts").fetchall()
        return {
            (pipeline, worker): (epoch_of(epoch), json.loads(counts))
            for pipeline, worker, epoch, counts in found
        }

    # -- keeping it small --------------------------------------------------------------------------

    def retain(self, now_us: int) -> int:
        deleted = retain(self._database, self._topics, self._committer, self._tail, now_us)
        if deleted:
            self._checkpointer.now()
        return deleted

    def close(self) -> None:
        """End all waits, checkpoint and close the file. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._waiters.end()
        self._committer.close()
        self._bell.close()
        self._checkpointer.close()
        self._database.close()
