"""How answers are written: JSON by msgspec, tables as JSON, CSV, Arrow or Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from fastapi.responses import Response

from headrace.export import csv_rows, encode
from headrace.jsonrows import to_json_rows
from headrace.model import empty
from headrace.serve.json_text import encode_json

Format: TypeAlias = Literal["json", "csv", "arrow", "parquet"]

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

_FILES = {
    "csv": ("text/csv; charset=utf-8", "csv"),
    "arrow": (ARROW, "arrows"),
    "parquet": (PARQUET, "parquet"),
}

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
        return answer({"data": to_json_rows(table), "count": table.num_rows, **members}, headers=headers)
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    media_type, suffix = _FILES[written]
    if written == "csv":
        reader = _guarded(table)
    content = b"".join(encode(reader, written))
    return Response(
        content, 200, {"Content-Disposition": f'attachment; filename="data.{suffix}"', **headers}, media_type
    )


# -- CSV -------------------------------------------------------------------------------------------

_FORMULA = r"^[=+\-@\t\r\n]"


def _guarded(table: pa.Table) -> pa.RecordBatchReader:
    """The rows as CSV holds them, with an apostrophe before each text that a spreadsheet would run as a formula."""
    rows = csv_rows(table.combine_chunks().to_batches()[0] if table.num_rows else empty(table.schema))
    columns = [_text(column) if pa.types.is_string(column.type) else column for column in rows.columns]
    names = _text(pa.array(rows.schema.names, pa.string())).to_pylist()
    guarded = pa.RecordBatch.from_arrays(columns, names=names)
    return pa.RecordBatchReader.from_batches(guarded.schema, [guarded])


def _text(column: pa.Array) -> pa.Array:
    risky = pc.match_substring_regex(column, _FORMULA)
    return pc.if_else(risky, pc.binary_join_element_wise("'", column, ""), column)
