"""Streams of Arrow batches as the bytes of one file: CSV, NDJSON, Parquet or Arrow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from headrace.errors import QueryError
from headrace.jsonrows import json_lines, to_json_rows


def encode(reader: pa.RecordBatchReader, form: str) -> Iterator[bytes]:
    """Pieces of one file, never empty; memory is that of a batch (Parquet: of a row group)."""
    if form == "ndjson":
        return (json_lines(batch) for batch in reader if batch.num_rows)
    if form == "csv":
        return _csv(reader)
    if form == "arrow":
        return _written(reader, lambda sink: pa.ipc.new_stream(sink, reader.schema))
    if form == "parquet":
        return _written(reader, lambda sink: pq.ParquetWriter(sink, reader.schema, compression="zstd"))
    raise QueryError(f"there is no format {form!r}; csv, ndjson, parquet and arrow are available")


def csv_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch as CSV holds it: times as ISO-8601, bytes as base64, structs and lists as JSON text."""
    nested = [f.name for f in batch.schema if pa.types.is_nested(f.type)]
    plain = to_json_rows(batch.select([*nested])) if nested else []
    columns: dict[str, Any] = {}
    for f in batch.schema:
        if f.name in nested:
            # Row loop: each value becomes one JSON text of its own.
            texts = [
                None if row[f.name] is None else msgspec.json.encode(row[f.name]).decode() for row in plain
            ]
            columns[f.name] = pa.array(texts, pa.string())
        elif pa.types.is_temporal(f.type) or pa.types.is_binary(f.type) or pa.types.is_decimal(f.type):
            values = [row[f.name] for row in to_json_rows(batch.select([f.name]))]
            columns[f.name] = pa.array(values, pa.string() if not pa.types.is_decimal(f.type) else None)
        else:
            columns[f.name] = batch.column(f.name)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _csv(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    header = True
    for batch in reader:
        out = io.BytesIO()
        pacsv.write_csv(csv_rows(batch), out, pacsv.WriteOptions(include_header=header))
        header = False
        yield out.getvalue()
    if header:
        yield (",".join(f'"{name}"' for name in reader.schema.names) + "\n").encode()


class _Pieces(io.RawIOBase):
    """A file whose bytes are taken away as they are written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._at += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _written(reader: pa.RecordBatchReader, start: Any) -> Iterator[bytes]:
    sink = _Pieces()
    with start(sink) as writer:
        for batch in reader:
            writer.write_batch(batch)
            if piece := sink.taken():
                yield piece
    yield sink.taken()
