"""`decode`: finds out what a body is, and has it read."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message

import pyarrow as pa

from headrace.formats.arrow_body import read_arrow
from headrace.formats.csv_body import CsvBody
from headrace.formats.faults import FormatFaultError, Refused, TooLargeError
from headrace.formats.json_body import RowGatherer, read_json
from headrace.formats.rows import Limits, Naming, RowReader, plan_of, reject
from headrace.formats.table import TableReader, row_text
from headrace.model import Reject, Rows, Topic
from headrace.units import Duration

MAX_FIELD_BYTES = 2**20
MAX_DEPTH = 64
MAX_ROWS = 1_000_000
MAX_ARROW_BYTES = 2**29  # of an Arrow stream's columns in memory, whose buffers may have been compressed
MAX_FUTURE = Duration.parse("5m")

_JSON = {"application/json", "text/json"}
_LINES = {
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
}
_CSV = {"text/csv", "application/csv"}
_ARROW = {"application/vnd.apache.arrow.stream"}
# What curl and others send when they weren't told: look at the body itself.
_UNTOLD = {
    "",
    "*/*",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "text/plain",
    "binary/octet-stream",
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a body held. `rows` are in the topic's columns, grown by new fields; `total` = `accepted` + rejects."""

    rows: Rows | None
    rejects: Sequence[Reject]
    accepted: int
    total: int


def decode(
    body: bytes,
    *,
    media_type: str,
    topic: Topic,
    now_us: int,
    max_rows: int = MAX_ROWS,
    max_field_bytes: int = MAX_FIELD_BYTES,
    max_depth: int = MAX_DEPTH,
    max_future: Duration = MAX_FUTURE,
    naming: Naming = Naming(),
    fast: bool = True,
) -> Decoded:
    """The rows of a body. `naming` says where ids and times stand; `fast=False` reads JSON row by row, with the same result.

    A row that can't be used becomes a Reject. Raises FormatFaultError for a body that is empty or unusable as a whole
    (`status` 400) or of an unknown media type or charset (415), TooLargeError (413) for more than `max_rows` rows.
    """
    kind, charset = _media_type(media_type)
    if kind not in _ARROW and not (kind in _UNTOLD and body[:4] == b"\xff\xff\xff\xff"):
        body = _utf8(body, charset)
    if not body.strip(b" \t\r\n\0"):
        raise FormatFaultError("the body is empty")
    if kind in _UNTOLD:
        kind = _sniff(body)
    limits = Limits(max_field_bytes, max_depth, now_us + max_future.us)
    reader = RowReader(topic, plan_of(topic.schema), now_us=now_us, limits=limits, naming=naming)
    if kind in _CSV or kind in _ARROW:
        table = TableReader(reader, policy=topic.on_new_field, max_fields=topic.max_fields)
        if kind in _CSV:
            found = CsvBody(body, reader)
            return _decoded(
                table, found.columns, len(found.raws), found.refused, found.raws.__getitem__, max_rows
            )
        columns = read_arrow(body, max_rows=max_rows, max_bytes=MAX_ARROW_BYTES)
        return _decoded(
            table, columns, len(next(iter(columns.values()), ())), {}, row_text(columns), max_rows
        )
    if not (kind in _JSON or kind.endswith("+json") or kind in _LINES):
        raise FormatFaultError(
            f"there is no reader for {kind!r}; send application/json, application/x-ndjson, text/csv or "
            "application/vnd.apache.arrow.stream",
            status=415,
        )
    into = RowGatherer(reader, max_rows=max_rows)
    read_json(body, into, policy=topic.on_new_field, by_line=kind in _LINES, fast=fast)
    rows = into.result()
    return Decoded(rows, tuple(into.rejects), 0 if rows is None else rows.num_rows, into.total)


def decode_columns(
    columns: Mapping[str, pa.Array],
    raw: Callable[[int], bytes],
    refused: Mapping[int, Refused],
    *,
    count: int,
    topic: Topic,
    now_us: int,
    max_field_bytes: int = MAX_FIELD_BYTES,
    max_future: Duration = MAX_FUTURE,
    naming: Naming = Naming(),
) -> Decoded:
    """Rows out of columns that a reader has made (log lines). `raw` gives the bytes of a row, `refused` is what it
    refused already. Raises FormatFaultError as `decode` does."""
    limits = Limits(max_field_bytes, MAX_DEPTH, now_us + max_future.us)
    reader = RowReader(topic, plan_of(topic.schema), now_us=now_us, limits=limits, naming=naming)
    table = TableReader(reader, policy=topic.on_new_field, max_fields=topic.max_fields)
    if len(refused) == count:
        columns = {}
    return _decoded(table, columns, count, refused, raw, MAX_ROWS)


def _decoded(
    table: TableReader,
    columns: Mapping[str, pa.Array],
    count: int,
    refused: Mapping[int, Refused],
    raw: Callable[[int], bytes],
    max_rows: int,
) -> Decoded:
    if count > max_rows:
        raise TooLargeError(f"the body has more than {max_rows} rows; send it in smaller parts")
    rows = table.rows(columns, count, refused)
    rejects = [reject(raw(i), refused, i, table.source_id(i)) for i, refused in sorted(table.refused.items())]
    return Decoded(rows, rejects, 0 if rows is None else rows.num_rows, count)


def _media_type(text: str) -> tuple[str, str]:
    if ";" not in text:
        return text.strip().lower(), "utf-8"
    message = Message()
    message["Content-Type"] = text
    charset = message.get_param("charset", "utf-8")
    return text.partition(";")[0].strip().lower(), str(charset).lower()


def _utf8(body: bytes, charset: str) -> bytes:
    """The body in UTF-8, without a byte order mark. UTF-8 is not checked here: only the bad rows are to be refused."""
    if body[:3] == codecs.BOM_UTF8:
        return body[3:]
    if charset in ("utf-8", "utf8", "us-ascii", "ascii"):
        if body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            charset = "utf-16"
        else:
            return body
    if charset not in (
        "utf-16",
        "utf-16le",
        "utf-16be",
        "iso-8859-1",
        "latin-1",
        "latin1",
        "windows-1252",
        "iso-8859-15",
    ):
        raise FormatFaultError(f"the charset {charset!r} is not read; send utf-8", status=415)
    try:
        return body.decode(charset).encode()
    except UnicodeError as error:
        raise FormatFaultError(f"the body is not {charset}: {error}") from error


def _sniff(body: bytes) -> str:
    start = body.lstrip(b" \t\r\n")[:1]
    if body[:4] == b"\xff\xff\xff\xff":
        return "application/vnd.apache.arrow.stream"
    if start in (b"{", b"["):
        return "application/json"
    first = body.split(b"\n", 1)[0]
    return "text/csv" if b"," in first else "application/json"
