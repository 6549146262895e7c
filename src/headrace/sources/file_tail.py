"""Follow growing files: NDJSON, JSON documents, CSV and log lines."""

from __future__ import annotations

import glob
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa

from headrace.clock import SystemClock
from headrace.component import (
    EVENTS,
    Arrival,
    Cursor,
    Duration,
    PlanError,
    Reject,
    RetryableError,
    Size,
    Source,
    Topic,
    option,
)
from headrace.formats import (
    Decoded,
    FormatFaultError,
    Naming,
    decode,
    decode_columns,
    parse_lines,
)
from headrace.formats.loglines import compile_format
from headrace.sources.file_tail_chunks import Chunk, Followed
from headrace.sources.file_tail_types import schema_of, types_of

Format = Literal["auto", "ndjson", "json", "csv", "lines"]

_SUFFIXES: dict[str, Format] = {
    ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
_ALIVE = 0.5  # seconds between signs of life
_DRAIN = 2.0  # seconds for which a rotated file is followed after it last grew: writers are slow to let go
_MOST_STALE = 10_000  # places kept of files that are not there now: a disk may be away for a while
_ANY_LINE = r"^(?P<message>.*?)\s*$"


class FileTail(Source, frozen=True, kw_only=True):
    """Follow growing files, line by line, from where the last run stopped. Files may be rotated (renamed or copied and
    truncated), and may appear later. A line is read once it is complete. `.gz` files are read once.

    JSON rows are read as by `POST /ingest`. Columns of CSV files and parts of log lines become the payload. A JSON
    document (`.json`) is read as a whole, again each time it changes.
    """

    path: Annotated[str | tuple[str, ...], option("file or glob to follow, or a list of them", min_length=1)]
    format: Annotated[Format, option("`auto`: by suffix and first line; `lines`: log lines")] = "auto"
    pattern: Annotated[
        str,
        option(
            "of log lines: `combined`, `common`, `syslog`, `logfmt`, or a regular expression with named groups; empty: the line is the `message`"
        ),
    ] = ""
    begin: Annotated[
        Literal["start", "end"], option("where to begin in files that are there at the very first start")
    ] = "start"
    poll: Annotated[Duration, option("how often to look for new data")] = Duration.parse("250ms")
    follow: Annotated[
        bool, option("go on when the end is reached; `false`: read what is there, then stop")
    ] = True
    max_line: Annotated[Size, option("longer lines go to the dead letters, by their beginning")] = Size.parse(
        "1MiB"
    )
    max_document: Annotated[Size, option("largest JSON document")] = Size.parse("64MiB")
    source_id: Annotated[str, option("source of rows that don't name one; empty: the file's name")] = ""
    time_field: Annotated[str, option("field with the event time", min_length=1)] = "timestamp"

    @classmethod
    def example(cls) -> FileTail:
        sample = Path(__file__).parent.parent / "testing" / "sample_events.ndjson"
        return cls(path=str(sample), poll=Duration.parse("20ms"))

    def check(self) -> None:
        if not self.path or not all(self._paths()):
            raise PlanError("file_tail: path names no file")
        if self.pattern and self.format not in ("auto", "lines"):
            raise PlanError(f"file_tail: pattern is for log lines, and format is {self.format}")
        if self.pattern:
            try:
                compile_format(self.pattern)
            except FormatFaultError as fault:
                raise PlanError(f"file_tail: pattern: {fault}") from fault
        if self.poll.us < 1_000:
            raise PlanError("file_tail: poll is at least 1ms")

    def connect(self) -> None:
        if not _found(self._paths()):
            raise RetryableError(f"file_tail: no file matches {', '.join(self._paths())} yet")

    def schema(self) -> pa.Schema:
        return EVENTS

    def _paths(self) -> Sequence[str]:
        return (self.path,) if isinstance(self.path, str) else self.path

    def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
        """The cursor is `{"files": {path: place}, "types": {field: type}}`."""
        clock = SystemClock()
        never = threading.Event()
        tail = _Tail(self, cursor)
        try:
            silent_since = clock.monotonic()
            while True:
                busy = False
                for arrival in tail.round(clock):
                    busy = True
                    silent_since = clock.monotonic()
                    yield arrival
                if busy:
                    continue
                if tail.unreadable is not None:
                    raise RetryableError(f"file_tail: {tail.unreadable} may not be read by this user")
                if not self.follow and not tail.waiting:
                    return
                if clock.monotonic() - silent_since >= _ALIVE:
                    silent_since = clock.monotonic()
                    yield Arrival()
                clock.wait(never, min(self.poll.seconds, _ALIVE))
        except OSError as error:
            raise RetryableError(
                f"file_tail: reading {error.filename or self.path}: {error.strerror or error}"
            ) from error
        finally:
            tail.close()


def _found(patterns: Sequence[str]) -> list[Path]:
    names: set[str] = set()
    for pattern in patterns:
        # Not Path.glob: a pattern may begin anywhere, and names have to stay as they were given.
        names.update(glob.glob(pattern, recursive=True) if glob.has_magic(pattern) else [pattern])  # noqa: PTH207
    return [path for path in map(Path, sorted(names)) if path.is_file()]


class _Tail:
    """All files of one source: which there are, how far each is read, and the types of the fields seen."""

    def __init__(self, options: FileTail, cursor: Cursor) -> None:
        self._options = options
        self._places: dict[str, dict[str, Any]] = dict((cursor or {}).get("files", {}))
        self._types: dict[str, Any] = dict((cursor or {}).get("types", {}))
        self._topic = Topic("events", schema_of(self._types))
        self._from_end = cursor is None and options.begin == "end"
        self._files: dict[str, Followed] = {}
        self._old: dict[str, Followed] = {}  # rotated away, by path#inode
        self._grew: dict[str, float] = {}  # when those last grew
        self.waiting = False  # for a file that is not complete
        self.unreadable: Path | None = None

    def close(self) -> None:
        for file in (*self._files.values(), *self._old.values()):
            file.close()

    def round(self, clock: SystemClock) -> Iterator[Arrival]:
        """One look at every file: what is new in each, at most one chunk."""
        self.unreadable = None
        before = {key: place["inode"] for key, place in self._places.items()}
        self._discover(clock.monotonic())
        self._from_end = False
        if {key: place["inode"] for key, place in self._places.items()} != before:
            # Where a file begins is worth keeping before anything is read of it: it may be rotated during a restart.
            yield Arrival(None, self._cursor())
        self.waiting = False
        for key, file in list(self._old.items()):
            drained = clock.monotonic() - self._grew[key] > _DRAIN
            chunk = self._next(file, clock, final=drained or not self._options.follow)
            if chunk is not None:
                self._grew[key] = clock.monotonic()
                yield self._arrival(file, chunk, key, clock.now_us())
            elif drained:
                self._old.pop(key).close()
                del self._places[key], self._grew[key]
                yield Arrival(None, self._cursor())
        for key, file in list(self._files.items()):
            chunk = self._next(file, clock, final=not self._options.follow)
            if chunk is not None:
                yield self._arrival(file, chunk, key, clock.now_us())
            elif file.gzip and not file.done:
                self.waiting = True

    # -- which files -------------------------------------------------------------------------------

    def _discover(self, now: float) -> None:
        here = {str(path): path for path in _found(self._options._paths())}
        inodes = {key: _inode(path) for key, path in here.items()}
        for key in [key for key in self._places if "#" in key and key not in self._old]:
            # Rotated before a restart, and not read to its end then.
            self._resume_rotated(key.rpartition("#")[0], self._places.pop(key), now)
        for key, file in list(self._files.items()):
            if inodes.get(key) != file.inode:
                self._rotate(key, file, here, inodes, now)
            elif not file.done and not file.gzip and not file.same():
                file.restart()
        for key, path in here.items():
            if key not in self._files and inodes[key] is not None:
                self._open(key, path, inodes, now)
        stale = [key for key in self._places if key not in self._files and key not in self._old]
        for key in stale[: max(0, len(stale) - _MOST_STALE)]:
            del self._places[key]

    def _rotate(
        self, key: str, file: Followed, here: dict[str, Path], inodes: dict[str, int | None], now: float
    ) -> None:
        """The name is gone or means another file: follow the old one until its writer has let go of it."""
        del self._files[key]
        self._places.pop(key, None)
        moved = next((k for k, inode in inodes.items() if inode == file.inode and k not in self._files), None)
        if moved is not None:
            file.path = here[moved]
            self._files[moved] = file
        else:
            moved = f"{key}#{file.inode}"
            self._old[moved] = file
            self._grew[moved] = now
        self._places[moved] = file.place()

    def _open(self, key: str, path: Path, inodes: dict[str, int | None], now: float) -> None:
        place = self._places.get(key)
        if place is not None and place["inode"] != inodes[key]:
            del self._places[key]
            renamed = next((k for k, inode in inodes.items() if inode == place["inode"]), None)
            if renamed is None:
                self._resume_rotated(key, place, now)
            elif renamed not in self._files:
                self._places[renamed] = place
            place = None
        if place is None:
            place = self._renamed(inodes, key)
        file = self._followed(path, place)
        if file is None:
            return
        if place is not None and not file.same():
            file.restart()
        if place is None and self._from_end:
            file.skip_to_end()
        self._files[key] = file
        self._places[key] = file.place()

    def _renamed(self, inodes: dict[str, int | None], key: str) -> dict[str, Any] | None:
        """The place of this very file, when it was read under another name before a restart."""
        for other, place in self._places.items():
            if (
                place["inode"] == inodes[key]
                and other not in self._files
                and inodes.get(other) != place["inode"]
            ):
                return self._places.pop(other)
        return None

    def _resume_rotated(self, key: str, place: dict[str, Any], now: float) -> None:
        """The file was rotated while nobody looked: read its rest where a neighbour has its inode."""
        folder = Path(key).parent
        for neighbour in folder.iterdir() if folder.is_dir() else ():
            if _inode(neighbour) == place["inode"] and neighbour.is_file():
                file = self._followed(neighbour, place)
                if file is not None and file.same():
                    file.path = Path(key)  # known by the name under which it was followed
                    old = f"{key}#{file.inode}"
                    self._old[old], self._grew[old], self._places[old] = file, now, file.place()
                elif file is not None:
                    file.close()
                return

    def _followed(self, path: Path, place: dict[str, Any] | None) -> Followed | None:
        try:
            file = Followed(path, place, max_line=self._options.max_line.bytes)
        except FileNotFoundError:  # gone since it was listed
            return None
        except PermissionError:
            self.unreadable = path
            return None
        self._identify(file)
        return file

    # -- what is in them ---------------------------------------------------------------------------

    def _identify(self, file: Followed) -> None:
        """Set the format of a file and, for log lines, their pattern; not yet while an unknown one is empty."""
        options = self._options
        if options.format != "auto" or options.pattern:
            file.format, file.pattern = "lines" if options.pattern else options.format, options.pattern
            return
        suffix = file.path.with_suffix("").suffix if file.gzip else file.path.suffix
        file.format = _SUFFIXES.get(suffix, "")
        if not file.format:
            file.format, file.pattern = _sniff(file.first_line())

    def _next(self, file: Followed, clock: SystemClock, *, final: bool) -> Chunk | None:
        if not file.format:
            self._identify(file)
            if not file.format and final:
                file.format = "lines"
        if file.format == "json":
            chunk = file.document(self._options.max_document.bytes, final=final)
            self.waiting = self.waiting or (chunk is None and file.changing)
            return chunk
        return file.chunk(clock.monotonic(), final=final) if file.format else None

    def _arrival(self, file: Followed, chunk: Chunk, key: str, now_us: int) -> Arrival:
        source = self._options.source_id or file.path.name[:200]
        what = "document" if file.format == "json" else "line"
        rejects = [
            Reject(
                raw,
                "too_large",
                f"a {what} of {file.path.name} is over the limit; this is its beginning",
                source,
            )
            for raw in chunk.long
        ]
        if chunk.broken:
            rejects.append(Reject(b"", "bad_encoding", chunk.broken, source))
        decoded: Decoded | None = None
        if chunk.text.strip(b" \t\r\n\0"):
            try:
                decoded = self._decode(file, chunk, now_us, source)
            except FormatFaultError as fault:
                raws = [chunk.text] if file.format == "json" else chunk.text.splitlines()
                code = {"csv": "bad_csv_row", "lines": "no_match"}.get(file.format, "malformed_json")
                rejects += [
                    Reject(raw, code, str(fault), source, i) for i, raw in enumerate(raws) if raw.strip()
                ]
        rows = None
        if decoded is not None:
            rejects += decoded.rejects
            rows = decoded.rows
            if rows is not None and (types := types_of(rows.schema)) != self._types:
                self._topic = Topic("events", rows.schema)
                self._types = types
        self._places[key] = file.place()
        return Arrival(rows, self._cursor(), rejects)

    def _decode(self, file: Followed, chunk: Chunk, now_us: int, source: str) -> Decoded:
        naming = Naming(time_key=self._options.time_field, default_source=source)
        limits: dict[str, Any] = {"topic": self._topic, "now_us": now_us, "naming": naming}
        if file.format == "lines":
            lines = [line for line in chunk.text.split(b"\n") if line.strip()]
            found = parse_lines(lines, file.pattern or _ANY_LINE, now_us=now_us)
            return decode_columns(found.columns, lines.__getitem__, found.refused, count=len(lines), **limits)
        if file.format == "csv":
            header = file.first_line() if chunk.start else b""
            if chunk.start and not header:
                raise FormatFaultError("the file's first line is no CSV header")
            return decode(header + chunk.text, media_type="text/csv", **limits)
        media_type = "application/json" if file.format == "json" else "application/x-ndjson"
        return decode(chunk.text, media_type=media_type, **limits)

    def _cursor(self) -> Cursor:
        return {"files": {key: dict(place) for key, place in self._places.items()}, "types": self._types}


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _sniff(first: bytes) -> tuple[str, str]:
    """What a file without a telling suffix holds, by its first line: format and pattern."""
    first = first.strip()
    if not first:
        return "", ""
    if first[:1] in (b"{", b"["):
        return "ndjson", ""
    for pattern in ("combined", "common", "syslog"):
        compiled = compile_format(pattern)
        if compiled is not None and compiled.search(first.decode("latin-1")):
            return "lines", pattern
    return "lines", ""
