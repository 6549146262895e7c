"""How answers are written: JSON by msgspec, tables as JSON, CSV, Arrow or Parquet."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from fastapi.responses import Response

from headrace.serve.json_text import encode_json

Format: TypeAlias = Literal["json", "csv", "arrow", "parquet"]

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

FORMATS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The rows",
        "content": {"application/json": {}, "text/csv": {}, ARROW: {}, PARQUET: {}},
    }
}


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(encode_json(content), status, dict(headers or {}), "application/json")


def encode_table(
    table: pa.Table, written: Format, members: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    """`{"data": [...], "count": n, ...members}` for JSON; the rows alone in the other formats."""
    if written == "json":
        return answer({"data": rows_of(table), "count": table.num_rows, **members}, headers=headers)
    buffer = io.BytesIO()
    if written == "csv":
        pyarrow.csv.write_csv(_flat(table), buffer)
        media_type, suffix = "text/csv; charset=utf-8", "csv"
    elif written == "arrow":
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
        media_type, suffix = ARROW, "arrows"
    else:
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
        media_type, suffix = PARQUET, "parquet"
    named = {"Content-Disposition": f'attachment; filename="data.{suffix}"', **headers}
    return Response(buffer.getvalue(), 200, named, media_type)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values, times as ISO 8601 text. The row loop is what JSON by rows costs; a page is bounded."""
    names = table.column_names
    columns = [_plain(column) for column in table.columns]
    if not columns:
        return []
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def columns_of(table: pa.Table) -> dict[str, list[Any]]:
    """Columns as JSON values: less to send and to build than rows."""
    return {name: _plain(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return list(iso(column).to_pylist())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [_text(value) for value in column.to_pylist()]
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):  # a nested time that Python's dates can't hold
        return [str(value) for value in column]


def _text(raw: bytes | None) -> str | dict[str, str] | None:
    """Bytes as text when they are UTF-8, otherwise as `{"base64": ...}`: nothing is lost, nothing guessed."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def iso(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as text such as `2026-01-31T12:00:00.000000Z`; one without a time zone stays without."""
    if column.type.tz not in (None, "UTC"):
        column = pc.cast(column, pa.timestamp(column.type.unit, "UTC"))
    text = pc.cast(column, pa.string())
    return pc.replace_substring(text, " ", "T")


# -- CSV -------------------------------------------------------------------------------------------

_FORMULA = r"^[=+\-@\t\r\n]"


def _flat(table: pa.Table) -> pa.Table:
    """Columns that CSV can hold. Texts that a spreadsheet would run as a formula get a leading apostrophe."""
    columns = [_guarded(_scalar(column)) for column in table.columns]
    names = _guarded(pa.chunked_array([table.column_names], pa.string())).to_pylist()
    return pa.table(columns, names=names)


def _scalar(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_timestamp(kind):
        return iso(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _by_row(
            column, lambda value: value if isinstance(value, str) else encode_json(value).decode(), _plain
        )
    if pa.types.is_nested(kind) or pa.types.is_union(kind):
        return _by_row(column, lambda value: encode_json(value).decode(), _plain)
    if pa.types.is_dictionary(kind):
        return pc.cast(column, kind.value_type)
    return column


def _by_row(
    column: pa.ChunkedArray, write: Callable[[Any], str], read: Callable[[pa.ChunkedArray], list[Any]]
) -> pa.ChunkedArray:
    return pa.chunked_array(
        [[None if value is None else write(value) for value in read(column)]], pa.string()
    )


def _guarded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    risky = pc.match_substring_regex(column, _FORMULA)
    return pc.if_else(risky, pc.binary_join_element_wise("'", column, ""), column)
