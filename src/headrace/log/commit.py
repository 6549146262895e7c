"""Group commit: whatever arrives while one transaction is being synced goes into the next one together."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import pyarrow as pa

from headrace.clock import Clock
from headrace.errors import HeadraceError, PlanError, RetryableError
from headrace.log.database import Database, Topics, translate
from headrace.log.draft import Append, Draft
from headrace.log.frame import frames, is_large
from headrace.log.plan import Plan
from headrace.log.schema import Fitted, Stored, fit
from headrace.log.tail import Tail

T = TypeVar("T")


class Committer:
    """Owns the writing connection. The first thread to arrive leads: it commits everything that is pending, then hands
    over to a thread whose request came in meanwhile."""

    def __init__(
        self, database: Database, topics: Topics, tail: Tail, clock: Clock, observe: Callable[[str, float], None],
        committed: Callable[[Plan], None],
    ) -> None:  # fmt: skip
        self._database = database
        self._topics = topics
        self._tail = tail
        self._clock = clock
        self._observe = observe
        self._committed = committed
        self._write = threading.RLock()  # held while the writing connection is in use
        self._mutex = threading.Lock()  # guards the three below
        self._pending: list[Draft] = []
        self._leading = False
        self._heir: Draft | None = None
        self._closed = False
        self._ends: dict[tuple[int, int], int] = {}
        self._data_version = -1

    # -- groups ------------------------------------------------------------------------------------

    def submit(self, draft: Draft) -> None:
        """Commit a draft; durable on return. Raises what was wrong with this draft, or with the disk."""
        started = self._clock.monotonic()
        self._encode(draft)
        draft.turn.acquire()
        with self._mutex:
            self._pending.append(draft)
            lead, self._leading = not self._leading, True
        try:
            if not lead:
                draft.turn.acquire()
            if not draft.finished:
                self._lead()
        except BaseException:
            self._abandon(draft)
            raise
        self._observe("headrace_log_append_duration_seconds", self._clock.monotonic() - started)
        if draft.error is not None:
            raise draft.error

    def _lead(self) -> None:
        with self._mutex:
            group, self._pending, self._heir = self._pending, [], None
        plan = None
        try:
            with self._write:
                plan = self._commit(group)
        finally:
            with self._mutex:
                self._pass_on()
            for draft in group:
                draft.finished = True
                draft.turn.release()
        if plan is not None:
            self._committed(plan)

    def _pass_on(self) -> None:
        self._heir = self._pending[0] if self._pending else None
        self._leading = self._heir is not None
        if self._heir is not None:
            self._heir.turn.release()

    def _abandon(self, draft: Draft) -> None:
        """The waiting thread was interrupted (Ctrl-C): take its draft back, and let another lead if it was to."""
        with self._mutex:
            if draft in self._pending:
                self._pending.remove(draft)
                if self._heir is draft:
                    self._pass_on()

    def _encode(self, draft: Draft) -> None:
        """Check and encode in the thread that appends. What is wrong is found again, and told, in the commit."""
        for append in draft.appends:
            stored = self._topics.seen().get(append.topic)
            if stored is not None and is_large(append.rows.num_rows, append.rows.nbytes):
                with suppress(HeadraceError, pa.ArrowException):
                    self._fit(append, stored)

    def _fit(self, append: Append, stored: Stored) -> Fitted:
        """Fit rows to the topic, keeping frames encoded for a topic that has changed since if they still serve."""
        if append.fitted is not None and append.fitted.against is stored:
            return append.fitted
        fitted = fit(stored, append.rows)
        if append.fitted is None or fitted.rows is not append.fitted.rows:
            append.frames = tuple(frames(fitted.rows))
        append.fitted = fitted
        return fitted

    # -- one transaction ---------------------------------------------------------------------------

    @contextmanager
    def alone(self, doing: str) -> Iterator[tuple[sqlite3.Connection, dict[str, Stored]]]:
        """A write transaction that is no append: the connection, and the topics as they are at its start.

        Appends wait meanwhile, so it must be short.
        """
        with self._write:
            yield from self._transaction(doing)

    def _transaction(self, doing: str) -> Iterator[tuple[sqlite3.Connection, dict[str, Stored]]]:
        if self._closed:
            raise RetryableError("the log is closed")
        connection = self._database.writer
        try:
            with self._database.alone():
                connection.execute("BEGIN IMMEDIATE")
                # Changes when another connection has written: then the next offsets known here may be old.
                version = connection.execute("PRAGMA data_version").fetchone()[0]
                if version != self._data_version:
                    self._ends.clear()
                    self._data_version = version
                yield connection, self._topics.read(connection)
                started = self._clock.monotonic()
                connection.execute("COMMIT")
                self._observe("headrace_log_fsync_duration_seconds", self._clock.monotonic() - started)
        except BaseException as error:
            self._ends.clear()
            if connection.in_transaction:
                self._roll_back(connection)
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.ProgrammingError):
                raise translate(error, doing) from error
            raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # The connection is of no more use. A new one starts from what is on the disk.
            connection.close()
            self._database.writer = self._database.connect()

    def _commit(self, group: Sequence[Draft]) -> Plan | None:
        """Commit a group; a draft that can't be is told so and left out. None when nothing was committed."""
        try:
            with self.alone("appending") as (connection, topics):
                plan = Plan(connection, topics, self._ends, self._clock.now_us())
                for draft in group:
                    try:
                        plan.add(draft, self._fit)
                    except HeadraceError as error:
                        draft.error = error
                    except pa.ArrowException as error:
                        draft.error = PlanError(f"the rows can't be stored: {error}")
                plan.write(self._topics)
        except Exception as error:  # noqa: BLE001 - whatever it is, every waiting thread must hear of it
            # Each thread gets an error of its own: a shared one would gather the tracebacks of all.
            for draft in group:
                if draft.error is None:
                    draft.error = _copy(error)
            return None
        except BaseException:
            for draft in group:
                draft.error = RetryableError("log: interrupted while appending")
            raise
        self._ends.update(plan.ends)
        self._tail.add(plan.placed)
        for draft, spans in plan.spans:
            draft.placed(spans)
        return plan

    def exclusive(self, work: Callable[[], T]) -> T:
        """Do something while nothing is being committed by this process or another."""
        with self._write, self._database.alone():
            return work()

    def close(self) -> None:
        with self._write:
            self._closed = True


def _copy(error: Exception) -> Exception:
    if isinstance(error, HeadraceError):
        copy: Exception = type(error)(str(error))
        copy.__cause__ = error.__cause__
        return copy
    return error
