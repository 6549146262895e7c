"""Moving what is committed from the write-ahead log into the file, off the path of appends."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

from headrace.clock import Clock
from headrace.errors import HeadraceError
from headrace.log.commit import Committer
from headrace.log.database import Database

_PASSIVE_BYTES = 16 * 2**20
_RESTART_BYTES = 64 * 2**20
_RESTART_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Checkpointer:
    """A thread that keeps the write-ahead log short. It starts with the first `grown`.

    A passive checkpoint holds nobody up, but under constant load it never gets to the end, and only from there does
    SQLite start the file over. So now and then the small rest is done while appends are held back.
    """

    def __init__(
        self, database: Database, committer: Committer, clock: Clock, observe: Callable[[str, float], None]
    ) -> None:
        self._database = database
        self._committer = committer
        self._clock = clock
        self._observe = observe
        self._due = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None
        self._grown = 0
        self._failing = False
        self._mutex = threading.Lock()

    def grown(self, count: int) -> None:
        """About `count` bytes were committed."""
        self._grown += count
        if self._grown >= _PASSIVE_BYTES:
            self._grown = 0
            with self._mutex:
                if self._thread is None and not self._stop:
                    self._thread = threading.Thread(
                        target=self._run, name="headrace-log-checkpoint", daemon=True
                    )
                    self._thread.start()
            self._due.set()

    def now(self) -> None:
        """Checkpoint in the calling thread, as far as readers allow."""
        connection = self._database.connect()
        try:
            self._checkpoint(connection)
        finally:
            connection.close()

    def close(self) -> None:
        """Stop the thread, and leave as short a write-ahead log behind as readers in other processes allow."""
        with self._mutex:
            self._stop = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._database.writer.execute("PRAGMA busy_timeout=250")
            self._database.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the next start continues from the write-ahead log
            _log.warning("log: no last checkpoint of %s: %s", self._database.path, error)

    def _run(self) -> None:
        connection = self._database.connect()
        try:
            while True:
                self._due.wait()
                self._due.clear()
                if self._stop:
                    return
                self._checkpoint(connection)
        finally:
            connection.close()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        started = self._clock.monotonic()
        try:
            connection.execute(f"PRAGMA busy_timeout={round(_RESTART_SECONDS * 1_000)}")
            _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if frames * self._database.page_bytes > _RESTART_BYTES:
                # Beyond what is kept, SQLite cuts the file off by itself (journal_size_limit).
                self._committer.exclusive(
                    lambda: connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
                )
        except (sqlite3.Error, HeadraceError) as error:
            # Appends go on, and meet the same disk: it is they who report to somebody.
            if not self._failing:
                _log.warning(
                    "log: can't checkpoint %s; it goes on growing until that works: %s",
                    self._database.path,
                    error,
                )
            self._failing = True
            return
        if self._failing:
            _log.info("log: checkpoints of %s work again", self._database.path)
        self._failing = False
        self._observe("headrace_log_checkpoint_duration_seconds", self._clock.monotonic() - started)
