"""Rows as JSON, CSV or a table for the eye."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import click
import msgspec
import pyarrow as pa


def plain_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as dictionaries that JSON can hold: times as they are, bytes as text where they are text.

    A row loop: these rows go to a terminal or a pipe, as text.
    """
    binary = [f.name for f in table.schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    rows: list[dict[str, Any]] = table.to_pylist()
    for name in binary:
        for row in rows:
            row[name] = as_text(row[name])
    return rows


def as_text(data: bytes | None) -> str | None:
    """Bytes as text, or as base64 when they are none."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def to_json(value: Any) -> bytes:
    """Compact JSON; NaN is null, times are RFC 3339."""
    return msgspec.json.encode(value, enc_hook=str)


def echo_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(to_json(value), indent=2))


def echo_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line on stdout."""
    out = sys.stdout.buffer
    for row in rows:
        out.write(to_json(row) + b"\n")
    out.flush()


def write_csv(table: pa.Table, target: IO[bytes], *, header: bool = True) -> None:
    """CSV with nested columns as JSON texts."""
    from pyarrow import csv

    for i, f in enumerate(table.schema):
        if pa.types.is_nested(f.type):
            texts = [
                None if value is None else to_json(value).decode() for value in table.column(i).to_pylist()
            ]
            table = table.set_column(i, f.name, pa.array(texts, pa.string()))
        elif pa.types.is_binary(f.type):
            table = table.set_column(
                i, f.name, pa.array([as_text(v) for v in table.column(i).to_pylist()], pa.string())
            )
    csv.write_csv(table, target, csv.WriteOptions(include_header=header))


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, max_width: int = 60) -> None:
    """Aligned columns, numbers to the right."""
    cells = [[_cell(value, max_width) for value in row] for row in rows]
    right = [bool(cells) and all(_numeric(row[i]) for row in cells) for i in range(len(columns))]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    click.echo(click.style(line(list(columns)), bold=True))
    for row in cells:
        click.echo(line(row))


def _cell(value: Any, max_width: int) -> str:
    if value is None:
        text = ""
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, bytes):
        text = as_text(value) or ""
    elif isinstance(value, (dict, list)):
        text = to_json(value).decode()
    else:
        text = str(value).removesuffix("+00:00") if hasattr(value, "tzinfo") else str(value)
    # Text from outside must not move the cursor or colour the terminal.
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= max_width else text[: max_width - 1] + "…"


def _numeric(text: str) -> bool:
    return not text or text.replace(".", "", 1).replace("-", "", 1).replace("e+", "", 1).isdigit()


def progress(length: int | None, label: str) -> Any:
    """A progress bar on stderr, shown only to a person, and only when there is an end to be seen."""
    hidden = length is None or not sys.stderr.isatty()
    return click.progressbar(length=length or 0, label=label, file=sys.stderr, hidden=hidden)
