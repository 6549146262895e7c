"""One followed file as chunks of whole lines, from a byte position, whatever becomes of its name.

`Followed` holds the file open, so that what is written to it after it was renamed or deleted is still read.
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CHUNK = 1 << 21
_HEAD = 256  # bytes whose checksum tells whether a file is still the same one
_KEPT = 4_096  # bytes kept of a line that is over the limit
_GZIP_PATIENCE = 3.0  # seconds without growth after which a gzip file that ends in the middle is given up


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of a file from byte `start`. `long` are beginnings of lines over the limit, which are not in `text`."""

    start: int
    text: bytes
    long: tuple[bytes, ...] = ()
    broken: str = ""  # why nothing more can be read, for a damaged gzip file


class Followed:
    """A file being read. `offset` is the next byte wanted (of the decompressed content for gzip).

    `format` and, for log lines, `pattern` say what it holds; empty while that isn't known yet.
    """

    def __init__(self, path: Path, place: dict[str, Any] | None = None, *, max_line: int) -> None:
        self.path = path
        self.format = ""
        self.pattern = ""
        self.offset = int(place["offset"]) if place else 0
        self.skipping = bool(place and place.get("skipping"))  # inside a line over the limit
        self.done = bool(place and place.get("done"))
        self._head: list[int] = list(place["head"]) if place else [0, 0]  # length and CRC-32
        self.changing = False  # a JSON document that was still being written at the last look
        self._max_line = max_line
        self.gzip = path.suffix == ".gz"
        self._seen = (
            -1,
            int(place.get("changed", 0)) if place else 0,
        )  # size and time of change of a JSON document
        self._file: BinaryIO | None = path.open("rb")
        try:
            status = os.fstat(self._file.fileno())
            self.inode = status.st_ino
            self._stream: Any = self._open_gzip() if self.gzip else self._file
            self._seen_size, self._seen_at = status.st_size, 0.0
        except BaseException:
            self._file.close()
            raise

    def place(self) -> dict[str, Any]:
        """Where this stands, as plain JSON."""
        place: dict[str, Any] = {"inode": self.inode, "offset": self.offset, "head": self._head}
        if self.skipping:
            place["skipping"] = True
        if self.done:
            place["done"] = True
        if self.format == "json":
            place["changed"] = self._seen[1]
        return place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def same(self) -> bool:
        """Whether the content up to `offset` is still what was read: not after truncation, or another file of this inode."""
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        if not self.gzip and size < self.offset:
            return False
        self._file.seek(0)
        length, checksum = self._head
        same = zlib.crc32(self._file.read(length)) == checksum
        if self.gzip:
            self._stream = self._open_gzip()
        return same

    def _open_gzip(self) -> gzip.GzipFile:
        assert self._file is not None
        self._file.seek(0)
        return gzip.GzipFile(fileobj=self._file)

    def restart(self) -> None:
        """Read from the first byte again."""
        self.offset, self.skipping, self.done, self._head = 0, False, False, [0, 0]

    def skip_to_end(self) -> None:
        """Begin after the last whole line that is there now."""
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        if self.gzip or not size:
            self.done = self.gzip
            return
        start = max(0, size - CHUNK)
        self._file.seek(start)
        self.offset = start + self._file.read(size - start).rfind(b"\n") + 1
        self._mark_head()

    def first_line(self) -> bytes:
        """The first line, for a header; empty when it isn't complete yet."""
        assert self._file is not None
        self._stream.seek(0)
        line: bytes = self._stream.readline(self._max_line)
        return line if line.endswith(b"\n") else b""

    def size(self) -> int:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size

    def document(self, limit: int, *, final: bool) -> Chunk | None:
        """All of the content, when it has changed since it was last read, and no more since the last look."""
        assert self._file is not None
        status = os.fstat(self._file.fileno())
        if (self.offset == status.st_size and self._seen[1] == status.st_mtime_ns) or not status.st_size:
            return None
        now = (status.st_size, status.st_mtime_ns)
        self.changing = now != self._seen and not final
        self._seen = now
        if self.changing:
            return None
        self._stream.seek(0)
        body: bytes = self._stream.read(limit + 1)
        self.offset = status.st_size
        self._mark_head()
        return Chunk(0, body) if len(body) <= limit else Chunk(0, b"", (body[:_KEPT],))

    def chunk(self, now: float, *, final: bool = False) -> Chunk | None:
        """The next whole lines; None when there is nothing new. `final`: the last line needs no line end any more.

        `now` is a monotonic clock's reading in seconds.
        """
        if self.done:
            return None
        try:
            self._stream.seek(self.offset)
            text: bytes = self._stream.read(max(CHUNK, self._max_line + 1))
        except (EOFError, OSError, zlib.error) as error:
            if not self.gzip:
                raise
            return self._damaged(now, error)
        if self.gzip:
            final = True
        if not text:
            if self.gzip:
                self.done = True
            return None
        if self.skipping:
            return self._skip(text)
        end = self._end(text)
        if not end:
            if len(text) > self._max_line:
                self.skipping = True
                return self._take(len(text), Chunk(self.offset, b"", (text[:_KEPT],)))
            if not final or len(text) >= CHUNK:
                return None
            end = len(text)
        elif final and len(text) < CHUNK:
            end = len(text)
        return self._take(end, self._without_long(text[:end]))

    def _take(self, length: int, chunk: Chunk) -> Chunk:
        self.offset += length
        self._mark_head()
        return chunk

    def _mark_head(self) -> None:
        if self._head[0] < _HEAD and self._file is not None:
            length = min(self.size() if self.gzip else self.offset, _HEAD)
            at = self._file.tell()
            self._file.seek(0)
            self._head = [length, zlib.crc32(self._file.read(length))]
            self._file.seek(at)

    def _skip(self, text: bytes) -> Chunk:
        end = text.find(b"\n") + 1
        self.skipping = not end
        return self._take(end or len(text), Chunk(self.offset, b""))

    def _end(self, text: bytes) -> int:
        """Where the last whole line ends; with quotes, the last line end that isn't inside a quoted cell."""
        end = text.rfind(b"\n") + 1
        if self.format != "csv" or b'"' not in text:
            return end
        chars = np.frombuffer(text, np.uint8)
        marks = np.flatnonzero((chars == 34) | (chars == 10))
        outside = (np.cumsum(chars[marks] == 34) % 2 == 0) & (chars[marks] == 10)
        return int(marks[outside][-1]) + 1 if outside.any() else 0

    def _without_long(self, text: bytes) -> Chunk:
        if len(text) <= self._max_line:
            return Chunk(self.offset, text)
        ends = np.append(np.flatnonzero(np.frombuffer(text, np.uint8) == 10) + 1, len(text))
        starts = np.concatenate([[0], ends[:-1]])
        long = ends - starts > self._max_line + 1
        if not long.any():
            return Chunk(self.offset, text)
        beginnings = tuple(text[start : start + _KEPT] for start in starts[long])
        kept = b"".join(text[s:e] for s, e in zip(starts[~long], ends[~long], strict=True))
        return Chunk(self.offset, kept, beginnings)

    def _damaged(self, now: float, error: Exception) -> Chunk | None:
        """A gzip file that can't be read on is perhaps still being written: wait until it has stopped growing."""
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        self._stream = self._open_gzip()
        if size != self._seen_size or not self._seen_at:
            self._seen_size, self._seen_at = size, now
        if now - self._seen_at < _GZIP_PATIENCE:
            return None
        self.done = True
        return Chunk(
            self.offset,
            b"",
            broken=f"{self.path.name} can't be read beyond byte {self.offset} of its content: {error}",
        )
