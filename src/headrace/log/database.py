"""The SQLite file under the log: its tables, its connections, and what its errors mean."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import (
    ConfigError,
    CorruptLogError,
    FormatError,
    HeadraceError,
    RetryableError,
    StorageFullError,
)
from headrace.log.schema import Stored, topic_of

FORMAT = 1
PAGE_BYTES = 8_192
"""Measured as time of a commit against 4 KiB pages: 6 KB of rows +5 %, 30 KB +10 %, 300 KB -15 %; 16 KiB pages: +10 %,
+20 %, -35 %, but they waste a quarter of the space of a 30 KB frame."""
_BUSY_SECONDS = 30
_WAL_KEPT_BYTES = 128 * 2**20

# `batches` says what is where and is small enough to stay in memory; the bytes are apart in `frames`, so that finding
# an offset or the size of a partition never touches them. `ends` is there only for partitions that retention emptied.
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, settings TEXT NOT NULL, schema BLOB NOT NULL,
  version INTEGER NOT NULL);
CREATE TABLE batches (topic INTEGER NOT NULL, partition INTEGER NOT NULL, base INTEGER NOT NULL, rows INTEGER NOT NULL,
  at_us INTEGER NOT NULL, bytes INTEGER NOT NULL, decoded_bytes INTEGER NOT NULL, crc INTEGER NOT NULL,
  frame INTEGER NOT NULL, PRIMARY KEY (topic, partition, base)) WITHOUT ROWID;
CREATE TABLE frames (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE ends (topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE cursors (writer TEXT PRIMARY KEY, cursor TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (reader TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (reader, topic, partition)) WITHOUT ROWID;
CREATE TABLE epochs (pipeline TEXT NOT NULL, worker INTEGER NOT NULL, number INTEGER NOT NULL, epoch TEXT NOT NULL,
  PRIMARY KEY (pipeline, worker, number)) WITHOUT ROWID;
CREATE TABLE counts (pipeline TEXT NOT NULL, worker INTEGER NOT NULL, number INTEGER NOT NULL, epoch TEXT NOT NULL,
  counts TEXT NOT NULL, PRIMARY KEY (pipeline, worker)) WITHOUT ROWID;
"""


def translate(error: sqlite3.Error, doing: str) -> HeadraceError:
    """What a SQLite error asks the caller to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError(
            f"log: the disk is full while {doing}; nothing of it was kept; make room and try again"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptLogError(f"log: the file is damaged ({error}) while {doing}; look at the disk")
    return RetryableError(f"log: {doing}: {error}")


class Database:
    """Opens the file, making it if it isn't there, and hands out connections."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._pool: list[sqlite3.Connection] = []
        self._mutex = threading.Lock()
        self._closed = False
        try:
            self._make_directory()
            self._lock_fd = os.open(
                self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise ConfigError(f"log: can't write to {self.path.parent}: {error}") from error
        try:
            with self.alone():
                self.writer = self._prepare()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _make_directory(self) -> None:
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(parents=True)
            above = os.open(self.path.parent.parent, os.O_RDONLY)
            try:
                os.fsync(
                    above
                )  # or a power cut may take the new directory with all that is acknowledged in it
            finally:
                os.close(above)

    def _prepare(self) -> sqlite3.Connection:
        writer = None
        try:
            writer = self.connect()
            if not writer.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
                writer.execute(f"PRAGMA page_size={PAGE_BYTES}")
                writer.execute("PRAGMA auto_vacuum=INCREMENTAL")
                writer.execute("PRAGMA journal_mode=WAL")
                writer.execute("BEGIN IMMEDIATE")
                for statement in _TABLES.split(";"):
                    writer.execute(statement)
                writer.execute("INSERT INTO meta VALUES ('format', ?), ('schemas', 0)", (FORMAT,))
                writer.execute("COMMIT")
            [stored] = writer.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() or (0,)
            if stored > FORMAT:
                raise FormatError(
                    f"{self.path} has log format {stored}, and this headrace reads up to format {FORMAT}; "
                    "upgrade headrace; nothing was changed"
                )
            # Freed pages needn't be wiped; a reset WAL is overwritten in place up to its kept size, which is faster than growing.
            writer.execute("PRAGMA secure_delete=OFF")
            writer.execute(f"PRAGMA journal_size_limit={_WAL_KEPT_BYTES}")
            writer.execute("PRAGMA cache_size=-16384")
            self.page_bytes: int = writer.execute("PRAGMA page_size").fetchone()[0]
            return writer
        except BaseException as error:
            if writer is not None:
                writer.close()
            if isinstance(error, sqlite3.Error):
                failure = translate(error, f"opening {self.path}")
                if type(failure) is RetryableError and "lock" not in str(error):
                    failure = ConfigError(f"log: can't open {self.path}: {error}")
                raise failure from error
            raise

    def connect(self) -> sqlite3.Connection:
        """A connection that commits durably and leaves checkpoints to the maintenance thread."""
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_SECONDS,
            cached_statements=64,
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing. They queue up at a file lock, which the kernel hands on at once; SQLite's
        own lock is tried again after pauses of up to 100 ms."""
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    @contextmanager
    def reader(self, doing: str) -> Iterator[sqlite3.Connection]:
        """A connection from the pool: as many exist as ever read at the same time."""
        with self._mutex:
            if self._closed:
                raise RetryableError("the log is closed")
            connection = self._pool.pop() if self._pool else None
        try:
            if connection is None:
                connection = self.connect()
                connection.execute("PRAGMA query_only=1")
            yield connection
        except sqlite3.Error as error:
            raise translate(error, doing) from error
        finally:
            if connection is not None:
                with self._mutex:
                    if not self._closed:
                        self._pool.append(connection)
                        connection = None
                if connection is not None:
                    connection.close()

    def close(self) -> None:
        """Close every connection; those that are reading close when they are done."""
        with self._mutex:
            self._closed = True
            pool, self._pool = self._pool, []
        for connection in (*pool, self.writer):
            connection.close()
        os.close(self._lock_fd)


class Topics:
    """The topics as last seen. Another process may have changed them: the count in `meta` tells."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._seen = -1
        self._by_name: dict[str, Stored] = {}

    def read(self, connection: sqlite3.Connection) -> dict[str, Stored]:
        """All topics by name, as committed when `connection` looks. The dict is never changed, only replaced."""
        changes: int = connection.execute("SELECT value FROM meta WHERE name = 'schemas'").fetchone()[0]
        if changes > self._seen:
            with self._mutex:
                if changes > self._seen:
                    self._by_name = self._load(connection)
                    self._seen = changes
        return self._by_name

    def seen(self) -> dict[str, Stored]:
        """All topics by name, as of the last `read`."""
        return self._by_name

    def _load(self, connection: sqlite3.Connection) -> dict[str, Stored]:
        found = {}
        for id_, name, settings, schema, version in connection.execute(
            "SELECT id, name, settings, schema, version FROM topics ORDER BY name"
        ).fetchall():
            old = self._by_name.get(name)
            if old is not None and old.version == version:
                found[name] = old
            else:
                found[name] = Stored(id_, topic_of(name, settings, schema), version)
        return found

    def write(self, connection: sqlite3.Connection, stored: Stored, settings: str) -> None:
        """Record a changed topic in the transaction under way; `read` shows it after the commit."""
        connection.execute(
            "INSERT INTO topics VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, "
            "schema = excluded.schema, version = excluded.version",
            (
                stored.id,
                stored.topic.name,
                settings,
                stored.topic.schema.serialize().to_pybytes(),
                stored.version,
            ),
        )
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'schemas'")
