"""One topic at one moment: the files of its Delta table, and the rows of the log that come after them.

The table's snapshot is taken first, with the positions that its commits carry; the log is read from exactly those.
So every row is there once, also while the sink commits.
"""

# ruff: noqa: S608  names are quoted and texts are escaped

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from headrace.errors import HeadraceError, QueryError
from headrace.lake import DeltaTableRef, app_id, is_remote, lake_rows, lake_schema, table_uri
from headrace.log import Log
from headrace.model import Rows, Span, Topic, unify

_STATS_SLACK_US = 1_000  # Delta's statistics keep milliseconds


@dataclass(frozen=True)
class Files:
    """A Delta table at one version. `stats` has one row a file, as `get_add_actions` gives them."""

    uri: str
    table: DeltaTable
    version: int
    schema: pa.Schema
    partition_columns: tuple[str, ...]
    paths: tuple[str, ...]
    stats: pa.Table
    positions: Mapping[int, int] = field(default_factory=dict)

    def bounds(self, column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lowest and highest time of each file in microseconds; the widest possible where it is not known."""
        low = self._micros(f"min.{column}", -(2**63))
        high = self._micros(f"max.{column}", 2**63 - 1)
        return np.where(low > -(2**63), low - _STATS_SLACK_US, low), np.where(
            high < 2**63 - 1, high + _STATS_SLACK_US, high
        )

    def _micros(self, name: str, unknown: int) -> npt.NDArray[np.int64]:
        if name not in self.stats.column_names or not pa.types.is_timestamp(self.stats[name].type):
            return np.full(len(self.paths), unknown, np.int64)
        values = pc.cast(self.stats[name].combine_chunks(), pa.timestamp("us", tz=self.stats[name].type.tz))
        return np.asarray(
            pc.fill_null(pc.cast(values, pa.int64()), unknown).to_numpy(zero_copy_only=False), np.int64
        )

    def may_hold(self, column: str, value: str) -> npt.NDArray[np.bool_]:
        """Which files may have a row with this text in a column, by partition folder or statistics."""
        mask = np.ones(len(self.paths), bool)
        if f"partition.{column}" in self.stats.column_names:
            same = pc.equal(self.stats[f"partition.{column}"], value)
            return np.asarray(pc.fill_null(same, False).to_numpy(), np.bool_)
        low, high = f"min.{column}", f"max.{column}"
        if low in self.stats.column_names and high in self.stats.column_names:
            possible = pc.and_(
                pc.fill_null(pc.less_equal(self.stats[low], value), True),
                pc.fill_null(pc.greater_equal(self.stats[high], value), True),
            )
            mask &= np.asarray(possible.to_numpy(), np.bool_)
        return mask


@dataclass(frozen=True)
class Snapshot:
    """A topic at one moment. `schema` is in Delta's types; `tail` are the log's rows beyond the table's."""

    name: str
    at: str
    schema: pa.Schema
    files: Files | None
    tail: pa.Table


class Snapshots:
    """Takes snapshots of topics; keeps the tables' logs in memory between calls, so that the next one reads only news."""

    def __init__(self, log: Log, refs: Mapping[str, DeltaTableRef], *, max_log_bytes: int) -> None:
        self._log, self._refs, self._max_log_bytes = log, dict(refs), max_log_bytes
        self._locks = {name: threading.Lock() for name in refs}
        self._known: dict[str, Files] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._log.topics()) | frozenset(self._refs)

    def local_roots(self) -> list[str]:
        """Folders of the tables on this machine."""
        roots = {table_uri(ref.path, name) for name, ref in self._refs.items() if not is_remote(ref.path)}
        return sorted(f"{root.rstrip('/')}/" for root in roots)

    def take(self, name: str) -> Snapshot:
        topic = self._log.topics().get(name)
        files = self._files(name, topic) if name in self._refs else None
        if topic is None:
            schema = files.schema if files else pa.schema([])
            return Snapshot(name, "timestamp", schema, files, schema.empty_table())
        schema = lake_schema(topic.schema)
        if files is not None:
            # The table may have wider types than the topic says, and folders (year, month) that are not the topic's.
            merged = unify(schema, files.schema, where=name)
            schema = pa.schema([f for f in merged if f.name in topic.schema.names])
        return Snapshot(
            name, topic.at, schema, files, self._tail(topic, schema, files.positions if files else {})
        )

    def _files(self, name: str, topic: Topic | None) -> Files | None:
        ref = self._refs[name]
        uri = table_uri(ref.path, name)
        with self._locks[name]:
            known = self._known.get(name)
            try:
                if known is None:
                    table = DeltaTable(uri, storage_options=dict(ref.storage_options))
                else:
                    table = known.table
                    table.update_incremental()
            except TableNotFoundError:
                return None
            except (DeltaError, OSError) as error:
                self._known.pop(name, None)
                raise QueryError(f"table {name}: {uri} can't be read now: {error}") from error
            if known is None or known.version != table.version():
                positions = {
                    partition: table.transaction_version(app_id(ref.sink, name, partition)) or 0
                    for partition in range(topic.partitions if topic else 0)
                }
                known = _describe(uri, table, positions)
                self._known[name] = known
            return known

    def _tail(self, topic: Topic, schema: pa.Schema, positions: Mapping[int, int]) -> pa.Table:
        left, batches = self._max_log_bytes, []
        for partition in range(topic.partitions):
            try:
                extent = self._log.extent(topic.name, partition)
                start = min(max(positions.get(partition, 0), extent.start), extent.end)
                if start == extent.end:
                    continue
                span = self._log.bounded(topic.name, partition, start, max_rows=2**40, max_bytes=max(left, 1))
                if span.end < extent.end:
                    raise self._too_much(topic.name)
                rows = self._log.read(topic.name, partition, Span(start, extent.end))
            except QueryError:
                raise
            except HeadraceError as error:
                raise QueryError(f"table {topic.name}: the log can't be read now: {error}") from error
            batch = _unsliced(lake_rows(rows, schema))
            left -= rows.nbytes
            batches.append(batch)
            if left <= 0 and partition + 1 < topic.partitions:
                raise self._too_much(topic.name)
        return pa.Table.from_batches(batches, schema=schema)

    def _too_much(self, name: str) -> QueryError:
        limit = self._max_log_bytes // 2**20
        if name in self._refs:
            return QueryError(
                f"table {name}: more than {limit} MiB in the log are not in its Delta table yet; is the sink "
                f"{self._refs[name].sink} behind? Ask again when it has caught up"
            )
        return QueryError(
            f"table {name}: its log holds more than {limit} MiB, too much to search; add a delta sink for this topic"
        )


def _unsliced(rows: Rows) -> Rows:
    """The rows in memory of their own where they are part of a larger batch: DuckDB refuses such slices of structs."""
    sliced = any(pa.types.is_nested(column.type) and column.offset for column in rows.columns)
    return rows.take(pa.array(np.arange(rows.num_rows))) if sliced else rows


def _describe(uri: str, table: DeltaTable, positions: Mapping[int, int]) -> Files:
    stats = pa.table(table.get_add_actions(flatten=True))
    if is_remote(uri):
        paths = tuple(table.file_uris())
    else:
        paths = tuple(f"{uri}/{unquote(path)}" for path in stats["path"].to_pylist())
    schema = lake_schema(pa.schema(table.schema().to_arrow()))
    return Files(
        uri,
        table,
        table.version(),
        schema,
        tuple(table.metadata().partition_columns),
        paths,
        stats,
        positions,
    )


# -- in DuckDB -------------------------------------------------------------------------------------


def attach(cursor: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """Make the snapshot a temporary view of its name on this cursor."""
    cursor.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(snapshot.name)} AS {select(cursor, snapshot)}")


def select(
    cursor: duckdb.DuckDBPyConnection, snapshot: Snapshot, only: npt.NDArray[np.intp] | None = None
) -> str:
    """The SELECT that gives the snapshot's rows on this cursor; `only` are the indices of the files to read."""
    name, columns = snapshot.name, ", ".join(quoted(f.name) for f in snapshot.schema)
    if not columns:
        raise QueryError(f"table {name} has no columns yet")
    tail = f"__tail_{name}"
    files = snapshot.files
    sources = []
    if snapshot.tail.num_rows or files is None or not files.paths or (only is not None and not len(only)):
        cursor.register(tail, snapshot.tail)
        sources.append(f"SELECT {columns} FROM {quoted(tail)}")
    if files is not None and (only is None or len(only)) and files.paths:
        if is_remote(files.uri):
            cursor.register(f"__lake_{name}", files.table.to_pyarrow_dataset())
            have = set(files.schema.names)
            casts = ", ".join(
                f"CAST({quoted(f.name) if f.name in have else 'NULL'} AS {sql_type(f.type)}) AS {quoted(f.name)}"
                for f in snapshot.schema
            )
            sources.append(f"SELECT {casts} FROM {quoted(f'__lake_{name}')}")
        else:
            chosen = np.arange(len(files.paths)) if only is None else only
            sources.append(f"SELECT {columns} FROM {_read_parquet(cursor, snapshot, files, chosen)}")
    return " UNION ALL ".join(sources)


def _read_parquet(
    cursor: duckdb.DuckDBPyConnection, snapshot: Snapshot, files: Files, chosen: npt.NDArray[np.intp]
) -> str:
    """The FROM that reads these files.

    The schema is given, so that files without a newer column or field have nulls there, and none needs to be opened
    beforehand. Columns that are folders aren't in the files: their values come from the table's log, by file name.
    """
    folders = [f for f in snapshot.schema if f.name in files.partition_columns]
    plain = [f for f in snapshot.schema if f.name not in files.partition_columns]
    entries = ", ".join(
        f"{literal(f.name)}: {{name: {literal(f.name)}, type: {literal(sql_type(f.type))}, default_value: NULL}}"
        for f in plain
    )
    paths = [files.paths[i] for i in chosen]
    read = f"read_parquet([{', '.join(map(literal, paths))}], schema = MAP {{{entries}}}, hive_partitioning = false"
    if not folders:
        return f"{read})"
    values = files.stats.take(pa.array(chosen)).select([f"partition.{f.name}" for f in folders])
    places = values.rename_columns([f.name for f in folders]).append_column(
        "__path", pa.array(paths, pa.string())
    )
    cursor.register(f"__files_{snapshot.name}", places)
    return f"{read}, filename = '__path') JOIN {quoted(f'__files_{snapshot.name}')} USING (__path)"


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def sql_type(t: pa.DataType) -> str:
    """DuckDB's name for a type of `lake_schema`."""
    types = pa.types
    if types.is_struct(t):
        return f"STRUCT({', '.join(f'{quoted(f.name)} {sql_type(f.type)}' for f in t)})"
    if types.is_map(t):
        return f"MAP({sql_type(t.key_type)}, {sql_type(t.item_type)})"
    if types.is_list(t):
        return f"{sql_type(t.value_type)}[]"
    if types.is_timestamp(t):
        return "TIMESTAMP" if t.tz is None else "TIMESTAMP WITH TIME ZONE"
    if types.is_decimal(t):
        return f"DECIMAL({t.precision}, {t.scale})"
    return _PLAIN[str(t)]


_PLAIN = {
    "string": "VARCHAR", "binary": "BLOB", "bool": "BOOLEAN", "double": "DOUBLE", "float": "FLOAT", "int8": "TINYINT",
    "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "date32[day]": "DATE",
}  # fmt: skip
