"""Every error headrace raises on purpose. The type tells the reader what to do.

HeadraceError
├── ConfigError        fix the configuration file; carries every mistake found, with positions
├── PlanError          fix the pipeline: a column, type or topic isn't what a step needs
├── DataError          some rows can't be used by a sink; they go to the dead letters, the rest goes on
├── RetryableError     wait: the same call is expected to work later
│   ├── StorageFullError   the disk under the log is full
│   └── OverloadedError    more came at once than may wait
├── DataDirInUseError  another process owns the data directory
├── FormatError        the data directory was written by a newer headrace
├── FencedError        another worker took over these partitions; stop
├── CorruptLogError    look at the disk: stored bytes aren't what was written
└── QueryError         fix the query, or ask for less
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HeadraceError(Exception):
    """Base of all errors that are not bugs. The text says where, what, and what would be right."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: `file:line:col: where: what`.

    `line` and `column` count from 1; 0 means that the place has no position (a value given by
    a flag or made in Python).
    """

    where: str
    what: str
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}:{self.column}: "
            if self.line
            else (f"{self.file}: " if self.file else "")
        )
        return f"{place}{self.where}: {self.what}" if self.where else f"{place}{self.what}"


class ConfigError(HeadraceError):
    """The configuration can't be used. `problems` holds every mistake, in order of position."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems: tuple[Problem, ...] = (
            (Problem("", problems),) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PlanError(HeadraceError):
    """A step, topic or sink can't work on the columns it would get."""


class DataError(HeadraceError):
    """Some rows of a batch can't be written; `rows` are their indices within that batch."""

    def __init__(self, message: str, rows: Sequence[int], *, code: str = "sink_rejected") -> None:
        super().__init__(message)
        self.rows = tuple(rows)
        self.code = code


class RetryableError(HeadraceError):
    """An outage or overload. `after` is the pause in seconds that the other side asked for, if any."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class StorageFullError(RetryableError):
    """The disk is full. Nothing of the refused write was kept; reads still work."""


class OverloadedError(RetryableError):
    """More work came at once than may wait in memory. Nothing of the refused work was kept."""


class DataDirInUseError(HeadraceError):
    """A running headrace holds the data directory; the message names its process id."""


class FormatError(HeadraceError):
    """The stored format is newer than this version reads. Upgrade headrace; nothing was changed."""


class FencedError(HeadraceError):
    """This worker was replaced: its epoch number is taken already. It must stop without writing."""


class CorruptLogError(HeadraceError):
    """Stored bytes can't be decoded. The message names topic, partition and span."""


class QueryError(HeadraceError):
    """A query is refused or failed; the message is fit to show to whoever wrote it."""
