"""Draft: the changes of one transaction, gathered in memory until they are committed. Shared by the logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from headrace.errors import PlanError
from headrace.log.frame import Frame
from headrace.log.schema import Fitted
from headrace.model import Cursor, Epoch, Rows, Span


@dataclass(slots=True)
class Append:
    """Rows for one partition. `fitted` and `frames` are filled in before the commit, by the thread that appends."""

    topic: str
    partition: int
    rows: Rows
    fitted: Fitted | None = None
    frames: Sequence[Frame] = ()


class Draft:
    """A `Transaction`. `commit` is called once, when the `with` block ends without an error."""

    def __init__(self, commit: Callable[[Draft], None]) -> None:
        self._commit = commit
        self.appends: list[Append] = []
        self.cursors: dict[str, str] = {}
        self.positions: dict[tuple[str, str, int], int] = {}
        self.epochs: list[tuple[str, int, Epoch, str]] = []
        self.forgets: list[tuple[str, int, int]] = []
        self._spans: list[Span] = []
        # For the group commit: released when the draft is done with, or when its thread is to lead the next group.
        self.turn = threading.Lock()
        self.finished = False
        self.error: BaseException | None = None

    def append(self, topic: str, partition: int, rows: Rows) -> None:
        if not isinstance(rows, pa.RecordBatch):
            raise TypeError(f"topic {topic}: rows are a pyarrow.RecordBatch, not a {type(rows).__name__}")
        try:
            rows.validate()
        except pa.ArrowInvalid as error:
            raise PlanError(f"topic {topic}: the rows are malformed: {error}") from error
        self.appends.append(Append(topic, partition, rows))

    def cursor(self, writer: str, cursor: Cursor) -> None:
        _check_name(writer)
        self.cursors[writer] = to_json(cursor, f"the cursor of {writer}")

    def position(self, reader: str, topic: str, partition: int, offset: int) -> None:
        _check_name(reader)
        if not 0 <= offset < 2**63:
            raise PlanError(
                f"reader {reader}: {offset} is no offset of {topic}[{partition}]; they start at 0"
            )
        self.positions[reader, topic, partition] = offset

    def epoch(self, pipeline: str, worker: int, epoch: Epoch, counts: Mapping[str, int]) -> None:
        _check_name(pipeline)
        if not 0 <= epoch.number < 2**63:
            raise PlanError(
                f"pipeline {pipeline}: {epoch.number} is no epoch number; they are whole and not negative"
            )
        self.epochs.append((pipeline, worker, epoch, to_json(dict(counts), f"the counts of {pipeline}")))

    def forget_epochs(self, pipeline: str, worker: int, before: int) -> None:
        self.forgets.append((pipeline, worker, before))

    @property
    def spans(self) -> Sequence[Span]:
        return self._spans

    def placed(self, spans: Sequence[Span]) -> None:
        """Called by the log after the commit."""
        self._spans = list(spans)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None and (self.appends or self.cursors or self.positions or self.epochs or self.forgets):
            self._commit(self)


def fence(last: int | None, number: int, pipeline: str, worker: int) -> str:
    """Why an epoch must not be recorded; empty when it may."""
    if last is None or number == last + 1:
        return ""
    return (
        f"pipeline {pipeline}, worker {worker}: epoch {number} can't follow epoch {last}: "
        "another worker took over; this one must stop"
    )


def _check_name(name: str) -> None:
    """One name that can't be stored must not spoil the group that it would be committed with."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise PlanError(f"the name {name!r} is not valid Unicode") from error


def to_json(value: Any, what: str) -> str:
    """Plain JSON in ASCII, so that lone surrogates in file names survive."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"{what} must be plain JSON (None, numbers, strings, lists, dicts): {error}"
        ) from error


def epoch_to_json(epoch: Epoch) -> str:
    spans = [[topic, partition, span.start, span.end] for (topic, partition), span in epoch.spans.items()]
    return json.dumps([epoch.number, epoch.now_us, epoch.watermark_us, spans])


def epoch_of(text: str) -> Epoch:
    number, now_us, watermark_us, spans = json.loads(text)
    return Epoch(
        number,
        {(topic, partition): Span(start, end) for topic, partition, start, end in spans},
        now_us,
        watermark_us,
    )
