"""JSON bodies: one object, an array, or one object a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.formats.columns import Shape, form_of, shape_of
from headrace.formats.faults import Refused, TooLargeError
from headrace.formats.rows import Plan, RowReader, make_plan, parse, reject
from headrace.model import OnNewField, Reject, Rows, conform

_FEW = 50  # below this many rows, the fast path's fixed cost is not worth it
_PIECE = 1 << 20  # bytes of lines taken at once: bounds the objects alive, and stays in the cache
_TRIES = 8  # rows read in search of one whose form the fast path takes
_SPACE = b" \t\r\n"

_raw_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},"]', re.DOTALL)


class RowGatherer:
    """The rows and rejects of one body in the order in which they were sent, whichever path read them."""

    def __init__(self, reader: RowReader, *, max_rows: int) -> None:
        self.reader = reader
        self.rejects: list[Reject] = []
        self.total = 0
        self._max_rows = max_rows
        self._rows: list[dict[str, Any]] = []
        self._places: list[int] = []
        self._batches: list[tuple[Rows, npt.NDArray[np.int64]]] = []

    def claim(self, count: int) -> int:
        """The number of the first of `count` more rows. Raises TooLargeError beyond the limit."""
        first = self.total
        self.total += count
        if self.total > self._max_rows:
            raise TooLargeError(f"the body has more than {self._max_rows} rows; send it in smaller parts")
        return first

    def row(self, raw: bytes, place: int) -> bool:
        """Read one row; whether it was accepted."""
        try:
            self._rows.append(self.reader.line(raw))
        except Refused as refused:
            self.refuse(raw, refused, place)
            return False
        self._places.append(place)
        return True

    def refuse(self, raw: bytes, refused: Refused, place: int) -> None:
        self.rejects.append(reject(raw, refused, place))

    def batch(self, rows: Rows, places: npt.NDArray[np.int64]) -> None:
        """Take rows that are columns already."""
        if rows.num_rows:
            self._batches.append((rows, places))

    def result(self) -> Rows | None:
        """All rows in order, in the topic's columns and the new ones; None when there is none."""
        self.rejects.sort(key=lambda reject: reject.row)
        schema = self.reader.schema()
        parts = self._batches
        if self._rows:
            parts = [(self.reader.batch(self._rows, schema), np.array(self._places, np.int64)), *parts]
        if not parts:
            return None
        if len(parts) == 1:
            return conform(parts[0][0], schema)
        rows = pa.concat_batches([conform(batch, schema) for batch, _ in parts])
        order = np.concatenate([places for _, places in parts])
        if (order[1:] > order[:-1]).all():
            return rows
        return rows.take(pa.array(np.argsort(order, kind="stable")))


def read_json(
    body: bytes, into: RowGatherer, *, policy: OnNewField, by_line: bool, fast: bool = True
) -> None:
    """Read a JSON body. `by_line`: the sender says that it is one object a line; otherwise any of the forms."""
    text = body.lstrip(_SPACE)
    if text[:1] == b"[" and (not by_line or _is_json(text)):
        _Piece(_ArrayText(text), into, policy, fast).read()
    elif by_line or _looks_like_lines(text):
        for start, end in _pieces(body):
            _Piece(_LineText(body[start:end]), into, policy, fast).read()
    else:
        into.row(text.rstrip(_SPACE), into.claim(1))


def _is_json(text: bytes) -> bool:
    try:
        _raw(text)
    except (ValueError, RecursionError):
        return False
    return True


def _looks_like_lines(text: bytes) -> bool:
    """Whether this is one object a line, rather than one object written over several lines."""
    lines = (line for line in _LineText(text).head())
    first, second = next(lines, b""), next(lines, b"")
    if not second:
        return False
    return _is_json(first) or (second[:1] == b"{" and not _is_json(text))


def _pieces(body: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(body):
        end = len(body)
        if end - start > _PIECE:
            end = body.find(b"\n", start + _PIECE) + 1 or end
        yield start, end
        start = end


class _Text(Protocol):
    """Some rows of a body, as text."""

    text: bytes

    def few(self) -> bool: ...
    def head(self) -> Iterator[bytes]:
        """The rows, found one after the other."""
        ...

    def raws(self) -> Sequence[bytes]:
        """All rows."""
        ...

    def decode(self, shape: Shape) -> list[Any] | None:
        """All rows at once, exactly one for each of `raws`; None when some don't have the shape."""
        ...


class _LineText:
    def __init__(self, text: bytes) -> None:
        self.text = text

    def few(self) -> bool:
        return self.text.count(b"\n", 0, 16_384) < _FEW and len(self.text) < 1 << 18

    def head(self) -> Iterator[bytes]:
        start = 0
        while start < len(self.text):
            end = self.text.find(b"\n", start)
            end = len(self.text) if end < 0 else end
            line = self.text[start:end].strip(_SPACE)
            if line:
                yield line
            start = end + 1

    def raws(self) -> Sequence[bytes]:
        return [line for line in (line.strip(_SPACE) for line in self.text.split(b"\n")) if line]

    def decode(self, shape: Shape) -> list[Any] | None:
        text = self.text.strip(_SPACE)
        # msgspec takes any whitespace between values. Each line break has to stand between two objects, and there has
        # to be one object more than breaks: then every line is one row.
        chars = np.frombuffer(text, np.uint8)
        breaks = np.flatnonzero(chars == 10)
        before = chars[breaks - 1]
        if 13 in before[:1]:
            before = chars[breaks - 2]
        if not ((before == 125).all() and (chars[breaks + 1] == 123).all()):
            return None
        try:
            rows = shape.lines(text)
        except (ValueError, RecursionError):
            return None
        return rows if len(rows) == len(breaks) + 1 else None


class _ArrayText:
    def __init__(self, text: bytes) -> None:
        self.text = text

    def few(self) -> bool:
        return self.text.count(b"{", 0, 16_384) < _FEW

    def head(self) -> Iterator[bytes]:
        """Elements by counting brackets, so that a broken one is found apart from its neighbours."""
        text = self.text
        depth = start = 0
        several = False
        for token in _TOKEN.finditer(text):
            at = token.start()
            char = text[at]
            if char in b"[{":
                depth += 1
                if depth == 1:
                    start = at + 1
            elif char in b"]}":
                depth -= 1
                if depth == 0:
                    last = text[start:at].strip(_SPACE)
                    if last or several:
                        yield last
                    rest = text[at + 1 :].strip(_SPACE)
                    if rest:
                        yield rest
                    return
            elif char == 44 and depth == 1:
                yield text[start:at].strip(_SPACE)
                several = True
                start = at + 1
        yield text[start:].strip(_SPACE)  # the array doesn't end

    def raws(self) -> Sequence[bytes]:
        try:
            return [bytes(raw) for raw in _raw_array(self.text)]
        except (ValueError, RecursionError):
            return list(self.head())

    def decode(self, shape: Shape) -> list[Any] | None:
        try:
            return shape.many(self.text)
        except (ValueError, RecursionError):
            return None


class _Piece:
    """Reads some rows by columns where that goes, and one by one where it doesn't."""

    def __init__(self, text: _Text, into: RowGatherer, policy: OnNewField, fast: bool) -> None:
        self._text = text
        self._into = into
        self._policy = policy
        self._fast = fast and not text.few()
        # A number of an array takes 8 bytes here, and at least 2 in the text.
        self._long = len(text.text) * 4 > into.reader.limits.max_field_bytes

    def read(self) -> None:
        into = self._into
        seen, shape, rows = self._decode() if self._fast else (0, None, None)
        first = into.total - seen  # the number of this piece's first row
        if shape is not None and rows is not None:
            into.claim(len(rows) - seen)
            del rows[:seen]
            places = np.arange(seen, seen + len(rows))
            bad = self._columns(shape, rows, places, first)
            raws = self._text.raws() if bad else ()
        else:
            raws = self._text.raws()
            into.claim(len(raws) - seen)
            bad = list(range(seen, len(raws))) if shape is None else self._by_row(shape, raws, seen, first)
        for i in bad:
            into.row(raws[i], first + i)

    def _decode(self) -> tuple[int, Shape | None, list[Any] | None]:
        """How many rows were read to learn a shape, the shape, and all rows in it if they all have it.

        Most bodies of a topic look like the one before, so its shape is tried first.
        """
        reader = self._into.reader
        key = (self._policy, reader.naming, reader.limits.max_depth)
        recent: Shape | None = None if reader.fields.added else reader.plan.recent.get(key)
        rows = None if recent is None else self._text.decode(recent)
        if rows is not None:
            return 0, recent, rows
        seen, shape = self._learn()
        if shape is None or shape is recent:
            return seen, shape, None
        if not reader.fields.added:
            reader.plan.recent[key] = shape
        return seen, shape, self._text.decode(shape)

    def _learn(self) -> tuple[int, Shape | None]:
        """Read the first rows until one is accepted and its form has a shape; how many were read, and the shape."""
        seen = 0
        reader = self._into.reader
        for raw in islice(self._text.head(), _TRIES):
            seen += 1
            if self._into.row(raw, self._into.claim(1)):
                plan = grown_plan(reader)
                row = parse(raw)
                form = form_of(plan, row, self._policy, reader.naming) if isinstance(row, dict) else None
                shape = None if form is None else shape_of(plan, form, reader.naming, reader.limits.max_depth)
                if shape is not None:
                    return seen, shape
        return seen, None

    def _by_row(self, shape: Shape, raws: Sequence[bytes], seen: int, first: int) -> list[int]:
        """Decode each row by itself: one broken row must not cost its neighbours, and msgspec stops at the first."""
        good: list[Any] = []
        places: list[int] = []
        bad: list[int] = []
        one = shape.one
        for i in range(seen, len(raws)):
            try:
                good.append(one(raws[i]))
                places.append(i)
            except (ValueError, RecursionError):
                bad.append(i)
        return sorted(bad + self._columns(shape, good, np.array(places, np.int64), first))

    def _columns(self, shape: Shape, rows: list[Any], places: npt.NDArray[np.int64], first: int) -> list[int]:
        """Keep rows as columns; the places of those that have to be read one by one."""
        if not rows:
            return []
        reader = self._into.reader
        made = shape.batch(rows, reader.now_us, reader.at, reader.limits, long=self._long)
        if made is None:
            return [int(place) for place in places]
        batch, doubtful = made
        if not doubtful.any():
            self._into.batch(batch, places + first)
            return []
        self._into.batch(batch.filter(pa.array(~doubtful)), places[~doubtful] + first)
        return [int(place) for place in places[doubtful]]


def grown_plan(reader: RowReader) -> Plan:
    """The plan for the topic's columns and those that the rows read so far have added."""
    return make_plan(reader.schema()) if reader.fields.added else reader.plan
