"""What the HTTP edge needs of a running headrace. `run.py` provides it; the tests provide a small real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from prometheus_client import CollectorRegistry

from headrace.clock import Clock
from headrace.config import Config
from headrace.log import Log
from headrace.model import Reject
from headrace.units import Duration


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one pushed body. `accepted + rejected == total`; all of it is durable already. `rejects` holds
    every rejected row, with its index in the body.

    `duplicate` says that the idempotency key was seen before: the counts are those of the first time, and nothing
    was stored again.
    """

    accepted: int
    rejected: int = 0
    rejects: Sequence[Reject] = ()
    duplicate: bool = False

    @property
    def total(self) -> int:
        return self.accepted + self.rejected


class Store(Protocol):
    """Answers queries over everything committed so far."""

    def query(self, sql: str, *, max_rows: int, timeout: Duration) -> pa.Table:
        """Rows of a read-only query, at most `max_rows`. Raises QueryError with a message fit to show."""
        ...

    def data(
        self,
        topic: str,
        *,
        source_id: str | None = None,
        metric: str | None = None,
        start_us: int | None = None,
        end_us: int | None = None,
        limit: int = 100,
        offset: int = 0,
        cursor: str | None = None,
    ) -> tuple[pa.Table, str | None]:
        """One page of a topic, `start_us <= time < end_us`, and the cursor of the next one (None at the end).

        Raises QueryError for a cursor it didn't make and for a filter on a column the topic hasn't.
        """
        ...


class Runtime(Protocol):
    """A running headrace. Every method may block, and is called from worker threads only."""

    @property
    def config(self) -> Config: ...
    @property
    def log(self) -> Log: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def store(self) -> Store: ...
    @property
    def registry(self) -> CollectorRegistry: ...

    def push(
        self,
        topic: str,
        body: bytes,
        *,
        media_type: str,
        encoding: str,
        idempotency_key: str | None,
        client: str,
    ) -> Receipt:
        """Decode, append durably, put rejects into the dead letters.

        Raises LookupError for an unknown topic (its text may suggest one), FormatFaultError for a body of which
        nothing can be used, StorageFullError, or another RetryableError.
        """
        ...

    def status(self) -> dict[str, Any]:
        """Counts and states: `started_at`, `version`, `sources`, `pipelines`, `sinks`, `topics`, `log`, `rates`,
        `latency_ms`. Cheap: it is asked several times a second while somebody watches."""
        ...

    def health(self) -> dict[str, Any]:
        """`status` (ok, degraded, failing), `ready`, and `components` with kind, status, reason and since."""
        ...

    def start(self, source: str, interval: str | None) -> None:
        """Start a source, with another interval if one is given. LookupError for an unknown one, ValueError for an
        interval that is none or that the source hasn't."""
        ...

    def stop(self, source: str | None) -> None:
        """Stop one source, or all. LookupError for an unknown one."""
        ...

    def dead_letter_causes(self) -> list[dict[str, Any]]:
        """Dead letters grouped: `code`, `topic`, `component`, `count`, `last_seen`, `example`."""
        ...
