"""Log lines to typed columns: web-server access logs, syslog, logfmt, and any regular expression with named groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.faults import FormatFaultError, Refused
from headrace.model import TIMESTAMP

_REQUEST = (
    r'"(?:(?P<method>[A-Z]+) (?P<path>\S+)(?: (?P<protocol>HTTP/[0-9.]+))?|(?P<request>(?:[^"\\]|\\.)*))"'
)
_COMMON = rf"^(?P<host>\S+) (?P<ident>\S+) (?P<user>\S+) \[(?P<timestamp>[^\]]+)\] {_REQUEST} (?P<status>\d{{3}}|-) (?P<bytes>\d+|-)"

FORMATS: Mapping[str, str] = {
    "common": _COMMON + r"\s*$",
    # nginx and Apache; whatever a server adds after the user agent is kept as `rest`
    "combined": _COMMON
    + r' "(?P<referrer>(?:[^"\\]|\\.)*)" "(?P<user_agent>(?:[^"\\]|\\.)*)"(?: (?P<rest>.*?))?\s*$',
    # RFC 3164 as written to files, and RFC 5424
    "syslog": r"^(?:<(?P<priority>\d{1,3})>)?(?:1 )?"
    r"(?P<timestamp>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+) (?P<host>\S+) "
    r"(?P<program>[^\s\[:]+)(?:\[(?P<pid>\d+)\])?:? ?(?P<message>.*?)\s*$",
}
"""Log formats by name. `logfmt` (`key=value key="quoted value"`) is the one that is not a regular expression."""

_LOGFMT = re.compile(r'([^\s="]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s"]*)))?(?:\s+|$)')
_INTEGERS = ("status", "bytes", "size", "pid", "port", "priority")
_DECIMALS = ("duration", "latency", "request_time", "response_time", "upstream_response_time", "elapsed")
_TIMES = ("timestamp", "time", "ts", "@timestamp")
_ACCESS_TIME = "%d/%b/%Y:%H:%M:%S %z"
_NUMBER = r"^[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$"


@dataclass(frozen=True, slots=True)
class LogLines:
    """`columns` by name, one value a line; a line that didn't fit is null in all of them and stands in `refused`."""

    columns: dict[str, pa.Array]
    refused: dict[int, Refused] = field(default_factory=dict)


def compile_format(format_: str) -> re.Pattern[str] | None:
    """The regular expression of a format name, or an own one; None for logfmt. Raises FormatFaultError."""
    if format_ == "logfmt":
        return None
    names = ", ".join([*FORMATS, "logfmt"])
    try:
        pattern = re.compile(FORMATS.get(format_, format_))
    except re.error as error:
        raise FormatFaultError(
            f"{format_!r} is neither a log format ({names}) nor a regular expression: {error}"
        ) from error
    if not pattern.groupindex:
        raise FormatFaultError(
            f"{format_!r} is neither a log format ({names}) nor a regular expression with named groups such as (?P<level>\\w+)"
        )
    return pattern


def parse_lines(lines: Sequence[bytes], format_: str, *, now_us: int) -> LogLines:
    """Columns of log lines. `status`, `bytes` and the like are int64, durations double, `timestamp` a time, the rest
    text; `-` and empty are null. `now_us` gives the year to times that lack one. Raises FormatFaultError for the format."""
    pattern = compile_format(format_)
    found: list[Mapping[str, str | None] | None] = []
    refused: dict[int, Refused] = {}
    # Row loop: regular expressions with named groups have no vectorised form that gives all groups.
    for i, raw in enumerate(lines):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("latin-1")  # access logs hold whatever a client sent
        if pattern is not None:
            match = pattern.search(text)
            values: Mapping[str, str | None] | None = match.groupdict() if match else None
        else:
            values = _logfmt(text)
        if values is None:
            refused[i] = Refused("no_match", "the line doesn't fit the log format")
        found.append(values)
    if pattern is not None:
        names = list(pattern.groupindex)
    else:
        names = list(dict.fromkeys(name for values in found if values for name in values))
    columns = {}
    for name in names:
        texts = pa.array([None if values is None else values.get(name) for values in found], pa.string())
        columns[name] = _typed(name, _absent(texts), now_us, guess=pattern is None)
    return LogLines(
        {name: array for name, array in columns.items() if array.null_count < len(array)}, refused
    )


def _logfmt(text: str) -> dict[str, str | None] | None:
    values: dict[str, str | None] = {}
    at = 0
    text = text.strip()
    pairs = False
    while at < len(text):
        match = _LOGFMT.match(text, at)
        if match is None:
            return None
        quoted, plain = match[2], match[3]
        pairs = pairs or quoted is not None or plain is not None
        if quoted is not None:
            values[match[1]] = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), quoted)
        else:
            values[match[1]] = "true" if plain is None else plain
        at = match.end()
    return values if pairs else None


def _absent(texts: pa.Array) -> pa.Array:
    nothing = pc.is_in(texts, pa.array(["", "-"], pa.string()))
    return pc.if_else(nothing, pa.scalar(None, pa.string()), texts)


def _typed(name: str, texts: pa.Array, now_us: int, *, guess: bool) -> pa.Array:
    if name in _TIMES:
        return _times(texts, now_us)
    numeric = guess or name in _INTEGERS or name in _DECIMALS
    if numeric and pc.all(pc.match_substring_regex(texts, _NUMBER), min_count=1).as_py():
        try:
            return pc.cast(texts, pa.int64() if name in _INTEGERS else pa.float64())
        except pa.ArrowInvalid:  # digits beyond 64 bits
            return texts
    return texts


def _times(texts: pa.Array, now_us: int) -> pa.Array:
    """Times of access logs and syslog; other texts stay, for the reader of times to judge."""
    valid = texts.drop_null()
    if not len(valid):
        return texts
    first = valid[0].as_py()
    if re.match(r"\d\d/[A-Z][a-z]{2}/\d{4}:", first):
        out = []
        cache: dict[str, datetime | None] = {}
        for text in (
            texts.to_pylist()
        ):  # row loop: Arrow's strptime ignores %z; a second has many lines, so most are cached
            if text not in cache:
                try:
                    cache[text] = (
                        None if text is None else datetime.strptime(text, _ACCESS_TIME).astimezone(UTC)
                    )
                except ValueError:
                    return texts
            out.append(cache[text])
        return pa.array(out, TIMESTAMP)
    if re.match(r"[A-Z][a-z]{2} [ \d]\d ", first):
        now = datetime.fromtimestamp(now_us / 1e6, UTC)
        out = []
        for text in texts.to_pylist():
            try:
                out.append(None if text is None else _with_year(text, now))
            except ValueError:
                return texts
        return pa.array(out, TIMESTAMP)
    return texts


def _with_year(text: str, now: datetime) -> datetime:
    """A syslog time in the year that brings it closest to now from below (a day ahead is a clock that differs)."""
    for year in (now.year, now.year - 1):
        try:
            found = datetime.strptime(f"{year} {text}", "%Y %b %d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError:  # 29 February in another year
            continue
        if (found - now).total_seconds() < 86_400:
            return found
    raise ValueError(text)
