"""The log keeps topics durably. `Log` is what every backend offers; `open_log` opens one by URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from headrace.errors import ConfigError
from headrace.model import Cursor, Epoch, Rows, Span, Topic

Positions = Mapping[tuple[str, int], int]
"""(topic, partition) -> next offset wanted."""


class Transaction(Protocol):
    """Several changes that become durable together, or not at all, when the `with` block ends without an error."""

    def append(self, topic: str, partition: int, rows: Rows) -> None:
        """Add rows at the end of a partition. Their Span is in `spans` after the block, in order of calls."""

    def cursor(self, writer: str, cursor: Cursor) -> None:
        """Remember where a source shard stands."""

    def position(self, reader: str, topic: str, partition: int, offset: int) -> None:
        """Remember the next offset that a reader wants. Retention keeps what any reader still wants."""

    def epoch(self, pipeline: str, worker: int, epoch: Epoch, counts: Mapping[str, int]) -> None:
        """Record an epoch, with the worker's running totals. Raises FencedError at commit unless its number is one
        more than the last recorded of this pipeline and worker."""

    def forget_epochs(self, pipeline: str, worker: int, before: int) -> None:
        """Drop the records of epochs numbered below `before`: a checkpoint covers them."""

    @property
    def spans(self) -> Sequence[Span]: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None: ...


class Log(Protocol):
    """Keeps topics. Safe to use from several threads; the SQLite log also from several processes."""

    def create(self, topic: Topic) -> Topic:
        """Make the topic, or take over changed settings and new fields of one that exists; gives it as it now is.

        Raises PlanError when a field's type, the key or the number of partitions contradicts what is stored.
        """
        ...

    def topics(self) -> Mapping[str, Topic]:
        """All topics as they now are, schemas as grown so far."""
        ...

    def append(self, topic: str, partition: int, rows: Rows, *, writer: str = "", cursor: Cursor = None) -> Span:
        """Add rows; durable on return, together with the cursor of `writer` if one is given.

        New fields follow the topic's `on_new_field`. Raises PlanError (unknown topic or partition, a field that does
        not fit), StorageFullError (nothing was kept) or RetryableError.
        """
        ...

    def transaction(self) -> Transaction: ...

    def read(self, topic: str, partition: int, span: Span) -> Rows:
        """The rows of a span, in the topic's present schema. Raises PlanError when it is not (or no more) in the log."""
        ...

    def extent(self, topic: str, partition: int) -> Span:
        """What is there: from the oldest row kept to the next offset."""
        ...

    def bounded(self, topic: str, partition: int, start: int, *, max_rows: int, max_bytes: int) -> Span:
        """The longest span from `start` within both bounds, at least one row if there is one."""
        ...

    def bytes(self, topic: str, partition: int) -> int:
        """Stored size of a partition."""
        ...

    def wait(self, positions: Positions, timeout: float) -> bool:
        """Until some partition reaches past its position, `timeout` seconds at most; False when none did.

        `wake` ends the wait too.
        """
        ...

    def wake(self) -> None:
        """End every `wait` of this process now."""

    def cursor(self, writer: str) -> Cursor:
        """The last cursor of a source shard, None at first."""
        ...

    def positions(self, reader: str) -> Positions:
        """The remembered positions of a reader."""
        ...

    def readers(self) -> Mapping[str, Positions]:
        """All remembered readers."""
        ...

    def forget(self, reader: str) -> None:
        """Drop a reader that is gone for good, so that retention needn't keep rows for it."""

    def epochs(self, pipeline: str, worker: int) -> Sequence[Epoch]:
        """Recorded epochs that no checkpoint covers yet, in order."""
        ...

    def counts(self) -> Mapping[tuple[str, int], tuple[Epoch, Mapping[str, int]]]:
        """(pipeline, worker) -> last epoch and running totals."""
        ...

    def nearest(self, topic: str, partition: int, at_us: int) -> int:
        """First offset that was appended at or after a wall-clock time."""
        ...

    def retain(self, now_us: int) -> int:
        """Delete what retention no longer asks for and give the disk space back; the number of rows deleted."""
        ...

    def close(self) -> None: ...


def open_log(url: str, data_dir: Path, *, clock: Any, observe: Callable[[str, float], None] = lambda name, value: None) -> Log:
    """`sqlite` (a file in the data directory) or `memory`. `observe` gets durations in seconds by metric name."""
    if url in ("sqlite", "sqlite://"):
        from headrace.log.sqlite import SqliteLog

        return SqliteLog(data_dir / "log.db", clock=clock, observe=observe)
    if url in ("memory", "memory://"):
        from headrace.log.memory import MemoryLog

        return MemoryLog(clock=clock)
    raise ConfigError(f"log: there is no log {url!r}; sqlite and memory are available")
