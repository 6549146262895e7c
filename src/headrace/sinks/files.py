"""Files for other programs: Parquet, CSV or NDJSON, one per span of offsets, on local disk or in object storage."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from headrace.component import Batching, Duration, PlanError, RetryableError, Rows, Sink, Topic, option
from headrace.export import csv_rows
from headrace.jsonrows import json_lines
from headrace.lake import is_remote, lake_rows, lake_schema, table_uri

_SUFFIX = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


class Files(Sink, frozen=True, kw_only=True):
    """One file per written span, named `{topic}/{partition}/{first offset}-{next offset}.{format}`.

    The name tells which offsets are in, so rows that come again after a crash are recognised. A file is written under
    another name, synced, and renamed: readers see whole files only.
    """

    path: Annotated[
        str,
        option(
            "folder or URL (`s3://`, `gs://`) for the files; `{topic}` in it is replaced, else topics are folders in it",
            min_length=1,
        ),
    ]
    format: Annotated[
        Literal["parquet", "csv", "ndjson"], option("what the files are; structs are JSON text in CSV")
    ] = "parquet"
    compression: Annotated[
        Literal["none", "gzip", "zstd"],
        option("of whole CSV and NDJSON files (`.gz`, `.zst`), inside of Parquet files"),
    ] = "none"
    flush_rows: Annotated[int, option("write when this many rows are waiting", ge=1)] = 50_000
    max_rows: Annotated[int, option("most rows of one file", ge=1)] = 500_000
    flush_interval: Annotated[Duration, option("write when the oldest row has waited this long")] = (
        Duration.parse("30s")
    )

    @classmethod
    def example(cls) -> Self:
        return cls(
            path="files", format="ndjson", compression="gzip", flush_rows=1, flush_interval=Duration(0)
        )

    def check(self) -> None:
        if self.max_rows < self.flush_rows:
            raise PlanError(f"files: max_rows ({self.max_rows}) is below flush_rows ({self.flush_rows})")

    def batching(self) -> Batching:
        return Batching(rows=self.flush_rows, max_rows=self.max_rows, interval=self.flush_interval)

    def connect(self) -> None:
        """Write a small file and remove it again."""
        try:
            place = _place(table_uri(self.path, ".headrace-probe"))
            place.put("probe", b"probe")
            place.remove("probe")
        except (OSError, pa.ArrowException) as error:
            raise RetryableError(f"files: {self.path} can't be written to: {error}") from error

    def open(self, topic: Topic, *, name: str) -> FilesWriter:
        lake_schema(topic.schema)  # raises PlanError for columns that none of the formats holds
        return FilesWriter(self, topic)


class FilesWriter:
    """Writes the files of one topic."""

    def __init__(self, sink: Files, topic: Topic) -> None:
        self._sink, self._topic = sink, topic
        self._uri = table_uri(sink.path, topic.name)
        suffix = "" if sink.format == "parquet" else _SUFFIX[sink.compression]
        self._extension = f"{sink.format}{suffix}"
        self._name = re.compile(r"(\d{20})-(\d{20})\." + re.escape(self._extension))
        self._next: dict[int, int | None] = {}

    def committed(self, partition: int) -> int:
        try:
            return self._position(partition) or 0
        except (OSError, pa.ArrowException) as error:
            raise RetryableError(f"listing {self._uri}/{partition}: {error}") from error

    def write(self, partition: int, rows: Rows, end: int) -> None:
        if not rows.num_rows:
            return
        try:
            done = self._position(partition) if partition not in self._next else self._next[partition]
            if done is not None and done >= end:
                return
            if done is not None:
                rows = rows.slice(max(0, rows.num_rows - (end - done)))
            # Spans follow each other without a gap, also where rows were rejected or had left the log.
            start = end - rows.num_rows if done is None else done
            name = f"{start:020d}-{end:020d}.{self._extension}"
            _place(f"{self._uri}/{partition}").put(name, self._encoded(rows))
        except (OSError, pa.ArrowException) as error:
            raise RetryableError(
                f"writing {self._topic.name}[{partition}] up to {end} to {self._uri}: {error}"
            ) from error
        self._next[partition] = end

    def close(self) -> None:
        """Nothing is kept open."""

    def _position(self, partition: int) -> int | None:
        """The end of the files that follow each other from the first; None when there are none."""
        place = _place(f"{self._uri}/{partition}")
        spans = sorted((int(m[1]), int(m[2])) for name in place.names() if (m := self._name.fullmatch(name)))
        end = None
        for start, stop in spans:
            if end is not None and start > end:
                break
            end = max(end or 0, stop)
        self._next[partition] = end
        return end

    def _encoded(self, rows: Rows) -> bytes:
        plain = lake_rows(rows, lake_schema(rows.schema))
        out = pa.BufferOutputStream()
        if self._sink.format == "parquet":
            codec = "snappy" if self._sink.compression == "none" else self._sink.compression
            pq.write_table(pa.Table.from_batches([plain]), out, compression=codec)
        elif self._sink.compression == "none":
            out.write(self._text(plain))
        else:
            with pa.CompressedOutputStream(out, self._sink.compression) as packed:
                packed.write(self._text(plain))
        return out.getvalue().to_pybytes()  # type: ignore[no-any-return]

    def _text(self, plain: Rows) -> bytes:
        if self._sink.format == "ndjson":
            return json_lines(plain)
        text = pa.BufferOutputStream()
        pacsv.write_csv(csv_rows(plain), text)
        return text.getvalue().to_pybytes()  # type: ignore[no-any-return]


# -- places ----------------------------------------------------------------------------------------


def _place(uri: str) -> _Folder | _Bucket:
    return _Bucket(uri) if is_remote(uri) else _Folder(Path(uri))


class _Folder:
    """A local folder whose files appear whole, and are on disk when `put` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """File names; what a crash left half-written is removed."""
        if not self._path.is_dir():
            return []
        names = os.listdir(self._path)  # noqa: PTH208  names only; a folder may hold very many
        for name in names:
            if _TEMPORARY.fullmatch(name):
                (self._path / name).unlink(missing_ok=True)
        return [name for name in names if not _TEMPORARY.fullmatch(name)]

    def put(self, name: str, data: bytes) -> None:
        self._make(self._path)
        temporary = self._path / f".{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync(self._path)

    def remove(self, name: str) -> None:
        (self._path / name).unlink()
        self._path.rmdir()

    def _make(self, path: Path) -> None:
        """Make the folder and those above it, each durable in its parent."""
        if not path.is_dir():
            self._make(path.parent)
            path.mkdir(exist_ok=True)
            _sync(path.parent)


class _Bucket:
    """A folder in object storage, where an object appears whole or not at all by itself."""

    def __init__(self, uri: str) -> None:
        self._files, self._path = pafs.FileSystem.from_uri(uri)

    def names(self) -> list[str]:
        found = self._files.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        return [info.base_name for info in found if info.type == pafs.FileType.File]

    def put(self, name: str, data: bytes) -> None:
        with self._files.open_output_stream(f"{self._path}/{name}", compression=None) as out:
            out.write(data)

    def remove(self, name: str) -> None:
        self._files.delete_file(f"{self._path}/{name}")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["Files", "FilesWriter"]
