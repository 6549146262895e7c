"""Rows on the terminal, for looking at a pipeline."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, Self, TextIO

import pyarrow as pa

from headrace.clock import SystemClock
from headrace.component import Batching, Duration, RetryableError, Rows, Sink, Topic, option
from headrace.jsonrows import json_lines, to_json_rows

_WIDEST = 40  # characters of a table cell


class Console(Sink, frozen=True, kw_only=True):
    """Print rows, as JSON lines or as a table. Rows above the limit are counted, not printed."""

    exactly_once = False

    to: Annotated[Literal["stdout", "stderr"], option("where to print")] = "stdout"
    format: Annotated[Literal["json", "table"], option("one JSON object a line, or aligned columns")] = "json"
    limit: Annotated[int, option("most rows printed a second; 0: all", ge=0)] = 100

    @classmethod
    def example(cls) -> Self:
        return cls(limit=0)

    def batching(self) -> Batching:
        return Batching(rows=1_000, max_rows=10_000, interval=Duration.parse("200ms"))

    def open(self, topic: Topic, *, name: str) -> ConsoleWriter:
        return ConsoleWriter(self, topic)


class ConsoleWriter:
    """Prints the rows of one topic. Nothing is remembered: a terminal keeps no positions."""

    def __init__(self, sink: Console, topic: Topic) -> None:
        self._sink, self._topic = sink, topic
        self._clock = SystemClock()
        self._second, self._printed, self._hidden = -1, 0, 0

    def committed(self, partition: int) -> int:
        return 0

    def write(self, partition: int, rows: Rows, end: int) -> None:
        if not rows.num_rows:
            return
        out = sys.stdout if self._sink.to == "stdout" else sys.stderr
        try:
            shown = rows.slice(0, self._allowed(rows.num_rows, out))
            if shown.num_rows:
                out.write(_table(shown) if self._sink.format == "table" else json_lines(shown).decode())
            out.flush()
        except (OSError, ValueError) as error:  # ValueError: closed
            raise RetryableError(f"printing {self._topic.name}[{partition}]: {error}") from error

    def close(self) -> None:
        """Nothing is held."""

    def _allowed(self, rows: int, out: TextIO) -> int:
        if not self._sink.limit:
            return rows
        second = int(self._clock.monotonic())
        if second != self._second:
            if self._hidden:
                out.write(
                    f"... {self._hidden} more rows of {self._topic.name} not printed (limit {self._sink.limit}/s)\n"
                )
            self._second, self._printed, self._hidden = second, 0, 0
        count = min(rows, self._sink.limit - self._printed)
        self._printed += count
        self._hidden += rows - count
        return count


def _table(rows: Rows) -> str:
    """Aligned columns with a header. Numbers to the right."""
    names = rows.schema.names
    cells = [names, *([_cell(row.get(name)) for name in names] for row in to_json_rows(rows))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    right = [pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in rows.schema]
    lines = (
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    # Control characters could move the cursor or recolour the terminal.
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


__all__ = ["Console", "ConsoleWriter"]
