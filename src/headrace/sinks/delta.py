"""Delta Lake tables, one per topic, written by delta-rs: open files that Spark, DuckDB and Polars read too."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from headrace.component import (
    Batching,
    DataError,
    Duration,
    PlanError,
    RetryableError,
    Rows,
    Sink,
    Topic,
    option,
)
from headrace.lake import app_id, is_remote, lake_rows, lake_schema, table_uri, widened
from headrace.model import conform, unify

_DATE_PARTS = {"year": pc.year, "month": pc.month, "day": pc.day, "hour": pc.hour}
_CONFLICTS = 8  # times that a write starts again because another commit came first
_LONGEST_FOLDER = (
    200  # bytes of a partition value as a folder name; file systems end at 255 with the column's name
)

# Small row groups: with sorted rows, a reader of one sensor skips most of each file by its statistics.
_WRITING = WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=16_384)

_log = structlog.get_logger("headrace.sinks.delta")


class Delta(Sink, frozen=True, kw_only=True):
    """Delta Lake tables, one per topic, on local disk or in object storage.

    Rows and position are in one commit (`txn` actions of Delta's own protocol), so every row is there exactly once.
    New columns and new fields inside structs are added to the table; when a number type widens, the table is rewritten
    once. Small files are put together and old ones deleted by the sink itself. Columns that hold nothing yet (empty
    structs, all null) appear with their first field.
    """

    path: Annotated[
        str,
        option(
            "folder or URL (`s3://`, `gs://`, `az://`) under which each topic has its table; `{topic}` in it is replaced",
            min_length=1,
        ),
    ]
    storage_options: Annotated[
        dict[str, str], option("access to object storage, as delta-rs names it, such as `AWS_ENDPOINT_URL`")
    ] = msgspec.field(default_factory=dict)
    partition_by: Annotated[
        tuple[str, ...],
        option(
            "columns that become folders; `year`, `month`, `day` and `hour` are derived from the event time "
            "where the topic has no such column",
            examples=[["event_type", "year", "month", "day"]],
        ),
    ] = ()
    cluster_by: Annotated[
        tuple[str, ...],
        option(
            "columns by which the rows of each commit are sorted, as far as the topic has them; empty: as they came"
        ),
    ] = ("sensor_id", "source_id", "timestamp")
    flush_rows: Annotated[int, option("write when this many rows are waiting", ge=1)] = 50_000
    max_rows: Annotated[int, option("most rows of one commit", ge=1)] = 500_000
    flush_interval: Annotated[Duration, option("write when the oldest row has waited this long")] = (
        Duration.parse("5s")
    )
    compact_every: Annotated[int, option("commits between putting small files together; 0: never", ge=0)] = (
        100
    )
    checkpoint_every: Annotated[int, option("commits between checkpoints of the table's log", ge=1)] = 50
    vacuum_after: Annotated[
        Duration, option("how long files that compaction replaced are kept for readers of older versions")
    ] = Duration.parse("7d")

    @classmethod
    def example(cls) -> Self:
        return cls(path="lake", flush_rows=1, flush_interval=Duration(0))

    def check(self) -> None:
        if self.max_rows < self.flush_rows:
            raise PlanError(f"delta: max_rows ({self.max_rows}) is below flush_rows ({self.flush_rows})")
        if len(set(self.partition_by)) != len(self.partition_by):
            raise PlanError(f"delta: partition_by names a column twice: {', '.join(self.partition_by)}")

    def batching(self) -> Batching:
        return Batching(rows=self.flush_rows, max_rows=self.max_rows, interval=self.flush_interval)

    def connect(self) -> None:
        """Prove that the place can be written to: an empty table is made beside the real ones and removed again."""
        name = f".headrace-probe-{uuid.uuid4().hex[:12]}"
        uri = table_uri(self.path, name)
        try:
            if is_remote(uri):
                # Object storage has no folders to leave behind but the one small log entry; it is overwritten each time.
                uri = table_uri(self.path, ".headrace-probe")
                DeltaTable.create(
                    uri,
                    pa.schema([("probe", pa.int64())]),
                    mode="overwrite",
                    storage_options=self.storage_options,
                )
            else:
                folder = Path(uri).parent
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / name
                probe.write_bytes(b"")
                probe.unlink()
        except (DeltaError, OSError) as error:
            raise RetryableError(f"delta: {self.path} can't be written to: {error}") from error

    def open(self, topic: Topic, *, name: str) -> DeltaWriter:
        columns = {f.name: f.type for f in lake_schema(topic.schema)}
        for column in self.partition_by:
            derived = column in _DATE_PARTS and topic.at in columns
            if column not in columns and not derived:
                raise PlanError(
                    f"delta: partition_by: no column {column!r} in {topic.name}; there are {', '.join(columns)}"
                )
            if column in columns and pa.types.is_nested(columns[column]):
                raise PlanError(
                    f"delta: partition_by: {column} is {columns[column]}; only plain columns can be folders"
                )
        return DeltaWriter(self, topic, name)


class DeltaWriter:
    """Appends the rows of one topic to its table."""

    def __init__(self, sink: Delta, topic: Topic, name: str) -> None:
        self._sink, self._topic, self._name = sink, topic, name
        self._uri = table_uri(sink.path, topic.name)
        self._storage = dict(sink.storage_options)
        self._table: DeltaTable | None = None
        self._schema = pa.schema([])  # of the table at `_schema_version`
        self._schema_version = -1
        self._commits = 0

    def committed(self, partition: int) -> int:
        with _Doing(f"reading the position of {self._topic.name}[{partition}] from {self._uri}"):
            return self._position(self._latest(), partition)

    def write(self, partition: int, rows: Rows, end: int) -> None:
        doing = f"writing {self._topic.name}[{partition}] up to {end} to {self._uri}"
        with _Doing(doing):
            for _ in range(_CONFLICTS):
                try:
                    self._commit(partition, rows, end)
                    break
                except CommitFailedError:
                    # Another commit came between: perhaps these very rows, by a writer that was thought dead. Delta
                    # refuses a position that was moved since the table was read, so reading it again decides.
                    self._table = None
            else:
                raise RetryableError(f"{doing}: {_CONFLICTS} times another commit came first")
        self._housekeeping()

    def close(self) -> None:
        self._table = None

    # -- one commit --------------------------------------------------------------------------------

    def _commit(self, partition: int, rows: Rows, end: int) -> None:
        table = self._latest()
        if table is None and not rows.num_rows:
            return  # no table is made for nothing
        # With a table, a span whose rows were all refused commits its position alone, which must not fall behind.
        if table is None:
            # Another writer may make it at the same moment and be ahead: the position is read from what is there then.
            table = self._create(self._with_date_parts(lake_rows(rows, lake_schema(rows.schema))).schema)
        done = self._position(table, partition)
        if done >= end:
            return
        skipped = max(0, rows.num_rows - (end - done))
        rows = rows.slice(skipped)
        incoming = self._with_date_parts(lake_rows(rows, lake_schema(rows.schema)))
        self._refuse_long_folders(incoming, skipped)
        have = self._table_schema(table)
        merged = unify(have, incoming.schema, where=self._topic.name)
        if widened(have, merged):
            self._rewrite(table, merged)
        incoming = self._clustered(conform(incoming, merged))
        write_deltalake(
            table,
            incoming,
            mode="append",
            schema_mode=None if merged.equals(self._table_schema(table)) else "merge",
            commit_properties=CommitProperties(
                app_transactions=[Transaction(app_id(self._name, self._topic.name, partition), end)],
            ),
            post_commithook_properties=PostCommitHookProperties(
                create_checkpoint=False, cleanup_expired_logs=False
            ),
            writer_properties=_WRITING,
        )
        self._table = table
        self._commits += 1

    def _latest(self) -> DeltaTable | None:
        """The table as it is now, None when there is none yet."""
        if self._table is not None:
            try:
                self._table.update_incremental()
            except (DeltaError, OSError):
                self._table = (
                    None  # perhaps its log was cleaned up or the folder replaced: read it from the start
                )
        if self._table is None:
            self._schema_version = -1
            try:
                self._table = DeltaTable(self._uri, storage_options=self._storage)
            except TableNotFoundError:
                return None
        return self._table

    def _position(self, table: DeltaTable | None, partition: int) -> int:
        if table is None:
            return 0
        return table.transaction_version(app_id(self._name, self._topic.name, partition)) or 0

    def _create(self, schema: pa.Schema) -> DeltaTable:
        if not is_remote(self._uri):
            Path(self._uri).mkdir(parents=True, exist_ok=True)
        kept = max(self._sink.vacuum_after.us // 3_600_000_000, 24)
        return DeltaTable.create(
            self._uri,
            schema,
            mode="ignore",  # another writer may make it at the same moment
            partition_by=list(self._sink.partition_by),
            configuration={
                "delta.logRetentionDuration": f"interval {kept} hours",
                "delta.checkpointInterval": str(self._sink.checkpoint_every),
            },
            storage_options=self._storage,
        )

    def _table_schema(self, table: DeltaTable) -> pa.Schema:
        version = table.version()
        if version != self._schema_version:
            self._schema = lake_schema(pa.schema(table.schema().to_arrow()))
            self._schema_version = version
        return self._schema

    def _rewrite(self, table: DeltaTable, schema: pa.Schema) -> None:
        """Store all rows again in wider types. Delta can't widen in place, and appending would cut the new values.

        It happens once in the life of a field (whole numbers at first, then fractions), as one commit: readers see the
        table before or after. Rows stream through, so memory is that of a few batches.
        """
        _log.info("rewriting_table", table=self._uri, reason="a column's type became wider")
        batches = table.to_pyarrow_dataset().to_batches(batch_size=64_000)
        write_deltalake(
            table,
            pa.RecordBatchReader.from_batches(schema, (lake_rows(batch, schema) for batch in batches)),
            mode="overwrite",
            schema_mode="overwrite",
            partition_by=list(self._sink.partition_by) or None,
        )
        self._schema_version = -1

    def _with_date_parts(self, rows: Rows) -> Rows:
        for column in self._sink.partition_by:
            if column not in rows.schema.names:
                if column in _DATE_PARTS:
                    values = pc.cast(_DATE_PARTS[column](rows.column(self._topic.at)), pa.int32())
                else:
                    values = pa.nulls(rows.num_rows, lake_schema(self._topic.schema).field(column).type)
                rows = rows.append_column(column, values)
        return rows

    def _clustered(self, rows: Rows) -> Rows:
        keys = [(name, "ascending") for name in self._sink.cluster_by if name in rows.schema.names]
        if not keys:
            return rows
        return rows.take(pc.sort_indices(rows.select([name for name, _ in keys]), sort_keys=keys))

    def _refuse_long_folders(self, rows: Rows, skipped: int) -> None:
        for column in self._sink.partition_by:
            values = rows.column(column)
            if not pa.types.is_string(values.type):
                continue
            # Row loop over distinct values only: Arrow can't percent-encode.
            long = [
                v
                for v in pc.unique(values).to_pylist()
                if v is not None and len(quote(v, safe="")) > _LONGEST_FOLDER
            ]
            if long:
                found = (
                    pc.is_in(values, pa.array(long, values.type)).to_numpy(zero_copy_only=False).nonzero()[0]
                )
                raise DataError(
                    f"{column}: {long[0][:40]!r}... is too long for a folder name (partition_by)",
                    (found + skipped).tolist(),
                )

    # -- housekeeping ------------------------------------------------------------------------------

    def _housekeeping(self) -> None:
        """Checkpoint, compact, vacuum when due. The rows are safe already, so a failure is only told, not raised."""
        table = self._table
        if table is None or not self._commits:
            return
        try:
            compact = self._sink.compact_every and self._commits % self._sink.compact_every == 0
            if compact:
                table.optimize.compact(writer_properties=_WRITING)
                if self._commits % (10 * self._sink.compact_every) == 0:
                    hours = self._sink.vacuum_after.us // 3_600_000_000
                    table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False)
            if compact or self._commits % self._sink.checkpoint_every == 0:
                table.create_checkpoint()
                table.cleanup_metadata()
        except (DeltaError, OSError, ValueError) as error:
            self._table = None
            _log.warning("housekeeping_failed", table=self._uri, error=str(error))


class _Doing:
    """Turns what delta-rs raises into errors that say what was being done. Rust panics are no `Exception`; they become one."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (DeltaError, OSError)):
            raise RetryableError(f"{self._what}: {error}") from error
        if kind is not None and kind.__name__ == "PanicException":
            raise RuntimeError(f"{self._what}: {error}") from error


__all__ = ["Delta", "DeltaWriter"]
