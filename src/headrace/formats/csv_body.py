"""CSV with a header row. Cells take the type of their topic's field; new columns are typed by all their cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from headrace.formats.faults import FormatFaultError, Refused
from headrace.formats.fields import Kind
from headrace.formats.rows import TYPE_KEYS, RowReader

_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
_NOT_FINITE = r"(?i)^[+-]?(?:nan|inf|infinity)$"
_RECORD_END = re.compile(rb'(?<![^,;\t\n])"(?:[^"]++|"")*+"|\n', re.DOTALL)


class CsvBody:
    """The records of a CSV body: `header`, `columns` by name, `raws` with the bytes of each record, and `refused` ones."""

    def __init__(self, body: bytes, reader: RowReader, *, header: Sequence[str] | None = None) -> None:
        records = _records(body)
        if not records:
            raise FormatFaultError("the body has no CSV header")
        self.delimiter = _delimiter(records[0] if header is None else ",".join(header).encode())
        if header is None:
            self.header = self._header(records[0])
            records = records[1:]
        else:
            self.header = list(header)
        self.raws = records
        self.refused: dict[int, Refused] = {}
        cells = self._cells()
        self.columns = {
            name: self._typed(array, _kind(reader, name), name)
            for name, array in zip(self.header, cells, strict=True)
        }

    def _header(self, record: bytes) -> list[str]:
        try:
            names = [
                name.strip()
                for name in next(csv.reader([record.decode()], delimiter=self.delimiter, strict=True))
            ]
        except (csv.Error, UnicodeDecodeError, StopIteration) as error:
            raise FormatFaultError(f"the first line is no CSV header: {error}") from error
        if "" in names:
            raise FormatFaultError("a column of the CSV header has no name")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise FormatFaultError(f"the CSV header names {twice[0]!r} twice")
        return names

    def _cells(self) -> list[pa.Array]:
        """Texts by column, empty cells null. Records with other than the header's number of cells are refused."""
        width = len(self.header)
        joined = b"\n".join(self.raws)
        comma = self.delimiter.encode()
        if b'"' not in joined and b"\r" not in joined and _is_utf8(joined) and width > 1:
            counts = (
                np.array([record.count(comma) for record in self.raws], np.int64)
                if self.raws
                else np.zeros(0, np.int64)
            )
            if (counts == width - 1).all() and self.raws:
                table = pacsv.read_csv(
                    pa.BufferReader(joined),
                    read_options=pacsv.ReadOptions(
                        use_threads=False, column_names=self.header, block_size=len(joined) + 1
                    ),
                    parse_options=pacsv.ParseOptions(
                        delimiter=self.delimiter, quote_char=False, ignore_empty_lines=False
                    ),
                    convert_options=pacsv.ConvertOptions(
                        column_types={name: pa.string() for name in self.header},
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                )
                if table.num_rows == len(self.raws):
                    return [column.combine_chunks() for column in table.columns]
        # Row loop: quotes and broken records are rare, and each broken one is to be refused alone.
        rows: list[list[str | None]] = []
        for i, record in enumerate(self.raws):
            cells: list[str | None] = [None] * width
            try:
                found = next(csv.reader([record.decode()], delimiter=self.delimiter, strict=True), [])
            except UnicodeDecodeError as error:
                self.refused[i] = Refused("bad_encoding", f"not UTF-8: {error.reason} at byte {error.start}")
            except csv.Error as error:
                self.refused[i] = Refused("bad_csv_row", str(error))
            else:
                if len(found) != width:
                    reason = f"the row has {len(found)} cells, the header {width}"
                    self.refused[i] = Refused("bad_csv_row", reason)
                else:
                    cells = [cell or None for cell in found]
            rows.append(cells)
        return [pa.array([row[i] for row in rows], pa.string()) for i in range(width)]

    def _typed(self, cells: pa.Array, kind: Kind | None, name: str) -> pa.Array:
        """A column of texts in the type of its field, or in the one that all its cells have."""
        tag = kind.tag if kind is not None else self._guess(cells)
        if tag in ("number", "integer"):
            stripped = pc.utf8_trim_whitespace(cells)
            numeric = pc.match_substring_regex(stripped, _NUMBER).fill_null(pa.scalar(True))
            good = np.asarray(numeric)
            if not good.all():
                nan = np.asarray(pc.match_substring_regex(stripped, _NOT_FINITE).fill_null(pa.scalar(False)))
                self._refuse(nan & ~good, "out_of_range", f"{name}: NaN and Infinity are not numbers here")
                self._refuse(~good, "wrong_type", f"{name}: a number is expected")
                stripped = pc.if_else(numeric, stripped, pa.scalar(None, pa.string()))
            numbers = pc.cast(pc.utf8_ltrim(stripped, "+"), pa.float64())
            if tag == "integer" and kind is not None:
                values = numbers.to_numpy(zero_copy_only=False)
                valid = np.asarray(numbers.is_valid())
                whole = (
                    (values == np.floor(values))
                    & (values >= kind.low)
                    & (values <= kind.high)
                    & (np.abs(values) < 2**63)
                )
                self._refuse(
                    valid & ~whole, "out_of_range", f"{name}: a whole number of {kind.type} is expected"
                )
                return pa.array(np.where(valid & whole, values, 0).astype(np.int64), pa.int64(), mask=~valid)
            return numbers
        if tag == "bool":
            lower = pc.utf8_lower(pc.utf8_trim_whitespace(cells))
            true, false = (
                pc.is_in(lower, pa.array(["true"], pa.string())),
                pc.is_in(lower, pa.array(["false"], pa.string())),
            )
            known = np.asarray(pc.or_(pc.or_(true, false), cells.is_null()))
            self._refuse(~known, "wrong_type", f"{name}: true or false is expected")
            return pc.if_else(cells.is_null(), pa.scalar(None, pa.bool_()), true)
        return cells

    def _guess(self, cells: pa.Array) -> str:
        texts = pc.utf8_trim_whitespace(cells.drop_null())
        if not len(texts):
            return "text"
        if pc.all(pc.match_substring_regex(texts, _NUMBER)).as_py():
            return "number"
        if pc.all(pc.match_substring_regex(texts, r"(?i)^(?:true|false)$")).as_py():
            return "bool"
        return "text"

    def _refuse(self, bad: np.ndarray[tuple[int], np.dtype[np.bool_]], code: str, reason: str) -> None:
        for i in np.flatnonzero(bad):
            self.refused.setdefault(int(i), Refused(code, reason))


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _kind(reader: RowReader, name: str) -> Kind | None:
    """The kind that a column's cells have to be of; None when any will do."""
    root = reader.plan.root
    if not reader.plan.envelope:
        return root.fields.get(name)
    if name in (*reader.naming.source_keys, *TYPE_KEYS, reader.naming.time_key, "received_at"):
        return Kind(pa.string())
    return root.fields["payload"].fields.get(name)


def _records(body: bytes) -> list[bytes]:
    """Records with their original bytes, without line ends; blank lines don't count."""
    if b'"' not in body:
        lines = body.split(b"\n")
    else:
        lines, start = [], 0
        for match in _RECORD_END.finditer(body):  # a quoted cell may hold line breaks
            if match[0] == b"\n":
                lines.append(body[start : match.start()])
                start = match.end()
        lines.append(body[start:])
    return [line for line in (line.rstrip(b"\r") for line in lines) if line.strip()]


def _delimiter(header: bytes) -> str:
    counts = {mark: header.count(mark.encode()) for mark in (",", ";", "\t")}
    return max(counts, key=lambda mark: counts[mark])
