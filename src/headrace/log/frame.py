"""Frames: record batches as the bytes that the log keeps, one self-describing Arrow IPC stream each."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from headrace.errors import CorruptLogError, PlanError
from headrace.model import Rows, Span

COMPRESS_ROWS = 1_000  # below, lz4 costs more time than the saved bytes do
MAX_ROWS = 65_536  # a frame is decoded whole, so one must not grow without bound
MAX_BYTES = 8 * 2**20

_ENCODE_BYTES = 64 * 2**10
_TOO_LARGE = 900_000_000  # SQLite takes up to 1e9 bytes in one value

_PLAIN = pa.ipc.IpcWriteOptions()
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


def encode(rows: Rows) -> memoryview:
    """One frame. Raises ArrowInvalid or ArrowNotImplementedError for types that can't be stored."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, rows.schema, options=_LZ4 if rows.num_rows >= COMPRESS_ROWS else _PLAIN
    ) as writer:
        writer.write_batch(rows)
    return memoryview(sink.getvalue())


@dataclass(slots=True)
class Frame:
    """Rows on their way into the log; not encoded as long as they are small enough to be put together with others."""

    rows: Rows
    size: int  # of the rows in memory; asking Arrow for it takes long enough to ask once
    data: memoryview | None = None
    crc: int = 0

    def encode(self) -> memoryview:
        if self.data is None:
            self.data = encode(self.rows)
            self.crc = zlib.crc32(self.data)
        return self.data


def is_large(count: int, size: int) -> bool:
    """Whether rows are worth a frame of their own, encoded by the thread that appends, side by side with others."""
    return count >= COMPRESS_ROWS or size >= _ENCODE_BYTES


def frames(rows: Rows) -> Iterator[Frame]:
    """Rows as frames, large ones encoded. Raises PlanError for a row that no frame can hold."""
    size, count = rows.nbytes, rows.num_rows
    step = MAX_ROWS if size <= MAX_BYTES else min(MAX_ROWS, max(1, count * MAX_BYTES // size))
    for start in range(0, count, step):
        frame = Frame(rows, size) if count <= step else _piece(rows.slice(start, step))
        if is_large(frame.rows.num_rows, frame.size) and frame.encode().nbytes > _TOO_LARGE:
            raise PlanError(
                f"a row of {frame.encode().nbytes} bytes is more than the {_TOO_LARGE} that fit into the log"
            )
        yield frame


def _piece(rows: Rows) -> Frame:
    return Frame(rows, rows.nbytes)


def decode(data: bytes, crc: int, *, topic: str, partition: int, span: Span) -> Rows:
    """The rows of a frame. Raises CorruptLogError when the bytes aren't those that were written."""
    where = f"topic {topic}, partition {partition}, span {span}"
    if zlib.crc32(data) != crc:
        raise CorruptLogError(
            f"{where}: the stored bytes changed since they were written (checksum); look at the disk"
        )
    try:
        rows = pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, StopIteration) as error:
        raise CorruptLogError(f"{where}: the stored bytes can't be decoded: {error}") from error
    if rows.num_rows != len(span):
        raise CorruptLogError(f"{where}: {rows.num_rows} rows are stored instead of {len(span)}")
    return rows


def bounded(batches: Iterable[tuple[int, int, int]], start: int, max_rows: int, max_bytes: int) -> int:
    """How far one may go from `start` through batches (first offset, rows, bytes), in order, within both bounds.

    At least one row, if it is there. Within a batch, rows are taken to be of the same size.
    """
    end, bytes_left = start, max_bytes
    for base, count, size in batches:
        if base > end:
            break
        here = base + count - end
        if here <= 0:
            continue
        share = max(1, size * here // count)
        allowed = here if share <= bytes_left else here * bytes_left // share
        allowed = max(min(allowed, max_rows - (end - start)), 1 if end == start else 0)
        end += allowed
        bytes_left -= share
        if allowed < here:
            break
    return end
