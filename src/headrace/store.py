"""The embedded query store: every topic as a table, complete up to the last committed row, for reading only.

A table is the topic's Delta snapshot together with the rows of the log that the delta sink hasn't written yet; a topic
without a delta sink is read from the log alone. DuckDB answers, closed in: no files, no network, one statement that
reads, bounded in memory, time and rows. Works in the server and, beside it, in another process.
"""

# ruff: noqa: S608  names are quoted, values are bound, and SQL from outside has passed the guard

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from headrace import guard
from headrace.errors import QueryError
from headrace.lake import DeltaTableRef
from headrace.log import Log
from headrace.snapshot import Snapshot, Snapshots, attach, quoted, select
from headrace.units import Size

__all__ = ["Answer", "DeltaTableRef", "Limits", "Page", "Store"]

ExportFormat = Literal["csv", "ndjson", "parquet", "arrow"]
_BATCH_ROWS = 8_192
_FIRST_FILES = (
    4  # how many files a page looks into at first, the likeliest ones; then twice as many, and so on
)


@dataclass(frozen=True)
class Limits:
    """What one store may use. `memory` and `threads` are for all its queries together."""

    memory: Size = Size(512 * 2**20)
    threads: int = 2
    log_bytes: Size = Size(256 * 2**20)
    answer_bytes: Size = Size(256 * 2**20)


class Answer(NamedTuple):
    """Rows of a query; `truncated` when there were more than asked for."""

    table: pa.Table
    truncated: bool


class Page(NamedTuple):
    """Rows of `Store.data`; `next_cursor` is None after the last page."""

    table: pa.Table
    next_cursor: str | None


class _Mark(msgspec.Struct, array_like=True):
    """Where a page ended: event time and hash of its last row, and how many rows equal in both were given already."""

    topic: str
    newest_first: bool
    at_us: int
    hash: int
    given: int


class Store:
    """Answers queries. Safe to use from several threads. `open` first, or use it in a `with` block."""

    def __init__(
        self,
        log: Log,
        tables: Mapping[str, DeltaTableRef],
        catalog_path: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._snapshots = Snapshots(log, tables, max_log_bytes=self._limits.log_bytes.bytes)
        self._catalog_path = catalog_path
        self._base: duckdb.DuckDBPyConnection | None = None
        self._opening = threading.Lock()

    def open(self) -> Self:
        """Start DuckDB, closed in. Called by the first query too."""
        self._database()
        return self

    def close(self) -> None:
        with self._opening:
            if self._base is not None:
                self._base.close()
                self._base = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def tables(self) -> list[str]:
        """Names that queries can use."""
        return sorted(self._snapshots.names() | {"sensors"})

    # -- SQL ---------------------------------------------------------------------------------------

    def query(
        self,
        sql: str,
        *,
        max_rows: int = 10_000,
        timeout: float = 10.0,
        params: Sequence[Any] | Mapping[str, Any] = (),
    ) -> Answer:
        """Run one reading statement. Raises QueryError, with a text for whoever wrote it."""
        if not 1 <= max_rows <= 10_000_000:
            raise QueryError(f"max_rows must be from 1 to 10000000, not {max_rows}")
        with self._cursor(timeout) as cursor:
            checked = guard.check(cursor, sql, self.tables())
            if checked.show_tables:
                return Answer(pa.table({"name": self.tables()}), truncated=False)
            for name in checked.tables:
                self._attach(cursor, name)
            text = f"SELECT * FROM (\n{checked.sql}\n) LIMIT {max_rows + 1}"
            return self._read(cursor, text, params, max_rows)

    def _attach(self, cursor: duckdb.DuckDBPyConnection, name: str) -> None:
        if name == "sensors":
            cursor.register("sensors", self._sensors())
        else:
            attach(cursor, self._snapshots.take(name))

    def _sensors(self) -> pa.Table:
        from headrace.catalog import Catalog, sensors_table

        if self._catalog_path is None or not self._catalog_path.exists():
            return sensors_table([])
        with Catalog(f"sqlite:///{self._catalog_path}") as catalog:
            return catalog.sensors_arrow()

    def _read(self, cursor: duckdb.DuckDBPyConnection, sql: str, params: Any, max_rows: int) -> Answer:
        """Rows as they come, until there are enough."""
        reader = cursor.sql(sql, params=params or None).to_arrow_reader(_BATCH_ROWS)
        batches, rows, size = [], 0, 0
        for batch in reader:
            batches.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if size > self._limits.answer_bytes.bytes:
                raise QueryError(
                    f"the answer is larger than {self._limits.answer_bytes}; ask for fewer rows or columns, or export instead"
                )
        table = pa.Table.from_batches(batches, schema=reader.schema)
        return Answer(table.slice(0, max_rows), truncated=rows > max_rows)

    # -- pages -------------------------------------------------------------------------------------

    def data(
        self,
        topic: str,
        *,
        source_id: str | None = None,
        metric: str | None = None,
        start_us: int | None = None,
        end_us: int | None = None,
        limit: int = 100,
        offset: int = 0,
        cursor: str | None = None,
        newest_first: bool = True,
        timeout: float = 10.0,
    ) -> Page:
        """One page of a topic in order of event time, `start_us <= time < end_us`. Raises QueryError.

        `cursor` goes on after an earlier page, also when new rows have come; `offset` skips rows of the present state.
        """
        if not 1 <= limit <= 100_000:
            raise QueryError(f"limit must be from 1 to 100000, not {limit}")
        if not 0 <= offset <= 10_000_000:
            raise QueryError(f"offset must be from 0 to 10000000, not {offset}; page with the cursor instead")
        if topic not in self._snapshots.names():
            raise guard.unknown_table(topic, self._snapshots.names())
        snapshot = self._snapshots.take(topic)
        mark = _decode(cursor, topic, newest_first) if cursor else None
        where, params, files = _conditions(snapshot, source_id, metric, start_us, end_us, mark, newest_first)
        skip = offset + (mark.given if mark else 0)
        with self._cursor(timeout) as connection:
            found = self._first_rows(
                connection, snapshot, where, params, files, skip + limit + 1, newest_first
            )
        page = found.slice(skip, limit)
        more = found.num_rows > skip + limit
        return Page(
            page.drop_columns(["__hash"]), _encode(page, snapshot, mark, newest_first) if more else None
        )

    def _first_rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        snapshot: Snapshot,
        where: tuple[str, str],
        params: list[Any],
        files: Any,
        need: int,
        newest_first: bool,
    ) -> pa.Table:
        """The first `need` rows in order. Looks into the files likeliest to have them, and into more only when
        a file not looked into could have an earlier one."""
        at, direction = quoted(snapshot.at), "DESC" if newest_first else "ASC"
        if snapshot.files is not None and len(files):
            low, high = snapshot.files.bounds(snapshot.at)
            files = files[np.argsort(-high[files] if newest_first else low[files], kind="stable")]
        looked = _FIRST_FILES
        while True:
            sql = (
                f"SELECT * FROM (SELECT *, hash(t) AS __hash FROM ({select(connection, snapshot, files[:looked])}) t "
                f"WHERE {where[0]}) WHERE {where[1]} ORDER BY {at} {direction}, __hash LIMIT {need}"
            )
            found = self._read(connection, sql, params, need).table
            rest = files[looked:]
            if not len(rest):
                return found
            if found.num_rows >= need:
                last = found[snapshot.at][need - 1].cast(pa.int64()).as_py()
                if last > high[rest].max() if newest_first else last < low[rest].min():
                    return found
            looked *= 2

    # -- export ------------------------------------------------------------------------------------

    def export(
        self,
        topic: str,
        format: ExportFormat,  # noqa: A002  the word that users know
        start_us: int | None = None,
        end_us: int | None = None,
    ) -> Iterator[bytes]:
        """All rows of a topic between two event times, as pieces of one file, in no particular order.

        Structs are JSON text in CSV. Memory stays that of a few batches.
        """
        from headrace.export import encode

        if topic not in self._snapshots.names():
            raise guard.unknown_table(topic, self._snapshots.names())
        snapshot = self._snapshots.take(topic)
        where, params, files = _conditions(snapshot, None, None, start_us, end_us, None, True)
        with self._cursor(None) as connection:
            rows = select(connection, snapshot, files)
            relation = connection.sql(f"SELECT * FROM ({rows}) WHERE {where[0]}", params=params or None)
            reader = relation.to_arrow_reader(65_536)
            yield from encode(reader, format)

    # -- DuckDB ------------------------------------------------------------------------------------

    def _database(self) -> duckdb.DuckDBPyConnection:
        with self._opening:
            if self._base is None:
                base = duckdb.connect(
                    ":memory:",
                    config={
                        "threads": self._limits.threads,
                        "memory_limit": f"{self._limits.memory.bytes}B",
                        "python_enable_replacements": False,
                        "autoinstall_known_extensions": False,
                        "autoload_known_extensions": False,
                        "temp_directory": "",
                    },
                )
                base.execute("SET TimeZone = 'UTC'")
                base.execute("SET parquet_metadata_cache = true")
                roots = ", ".join(
                    f"'{root.replace(chr(39), chr(39) * 2)}'" for root in self._snapshots.local_roots()
                )
                base.execute(f"SET allowed_directories = [{roots}]")
                base.execute("SET enable_external_access = false")
                base.execute("SET lock_configuration = true")
                self._base = base
            return self._base

    @contextmanager
    def _cursor(self, timeout: float | None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own (temporary views are its alone), interrupted when the time is up."""
        cursor = self._database().cursor()
        timer = threading.Timer(timeout, cursor.interrupt) if timeout is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield cursor
        except duckdb.Error as error:
            raise guard.explain(error, timeout or 0) from error
        except OSError as error:  # pyarrow's reader wraps what DuckDB raises while it streams
            raise guard.explain(error, timeout or 0) from error
        finally:
            if timer is not None:
                timer.cancel()
            cursor.close()


def _conditions(
    snapshot: Snapshot,
    source_id: str | None,
    metric: str | None,
    start_us: int | None,
    end_us: int | None,
    mark: _Mark | None,
    newest_first: bool,
) -> tuple[tuple[str, str], list[Any], Any]:
    """WHERE of the rows and WHERE of the page, their parameters, and the indices of the files that may match."""
    names = snapshot.schema.names
    if snapshot.at not in names or not pa.types.is_timestamp(snapshot.schema.field(snapshot.at).type):
        raise QueryError(f"{snapshot.name}: has no event time; use a SQL query")
    at = quoted(snapshot.at)
    params: list[Any] = []
    terms = [f"{at} IS NOT NULL"]
    files = snapshot.files
    keep = np.ones(len(files.paths) if files else 0, bool)
    for value, columns, what in (
        (source_id, ("source_id", "sensor_id"), "source_id"),
        (metric, ("metric",), "metric"),
    ):
        if value is None:
            continue
        column = next((name for name in columns if name in names), None)
        if column is None:
            raise QueryError(
                f"{snapshot.name} can't be filtered by {what}: its columns are {', '.join(names)}"
            )
        terms.append(f"{quoted(column)} = ?")
        params.append(value)
        if files:
            keep &= files.may_hold(column, value)
    low, high = files.bounds(snapshot.at) if files else (np.empty(0, np.int64), np.empty(0, np.int64))
    for bound, sign in ((start_us, ">="), (end_us, "<")):
        if bound is None:
            continue
        if not -(2**63) < bound < 2**63:
            raise QueryError(f"{bound} is not a time in microseconds")
        terms.append(f"{at} {sign} make_timestamptz(?)")
        params.append(bound)
        if files:
            keep &= high >= bound if sign == ">=" else low < bound
    page = "true"
    if mark is not None:
        sign = "<" if newest_first else ">"
        page = f"({at} {sign} make_timestamptz(?) OR ({at} = make_timestamptz(?) AND __hash >= ?))"
        params += [mark.at_us, mark.at_us, mark.hash]
        if files:
            keep &= low <= mark.at_us if newest_first else high >= mark.at_us
    return (" AND ".join(terms), page), params, np.flatnonzero(keep)


def _encode(page: pa.Table, snapshot: Snapshot, before: _Mark | None, newest_first: bool) -> str:
    times = page[snapshot.at].cast(pa.int64()).to_numpy()
    hashes = page["__hash"].to_numpy()
    at_us, hash_ = int(times[-1]), int(hashes[-1])
    given = int(((times == at_us) & (hashes == hash_)).sum())
    if before is not None and (before.at_us, before.hash) == (at_us, hash_):
        given += before.given
    mark = _Mark(snapshot.name, newest_first, at_us, hash_, given)
    return base64.urlsafe_b64encode(msgspec.json.encode(mark)).decode().rstrip("=")


def _decode(cursor: str, topic: str, newest_first: bool) -> _Mark:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        mark = msgspec.json.decode(raw, type=_Mark)
    except (ValueError, msgspec.DecodeError) as error:
        raise QueryError("this is not a cursor that an earlier page gave; begin again without one") from error
    if (mark.topic, mark.newest_first) != (topic, newest_first) or not 0 <= mark.given <= 10_000_000:
        raise QueryError(f"this cursor is of another question (topic {mark.topic}); begin again without one")
    return mark
