"""What the HTTP edge needs of a running headrace. `run.py` provides it; the tests provide a small real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from headrace.clock import Clock
from headrace.config import Config
from headrace.ingest import Intake
from headrace.log import Log
from headrace.model import Receipt
from headrace.store import Store


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
        """Decode, append durably, put rejects into the dead letters; `Receipt.rejects` holds them all, by row.

        Raises LookupError for an unknown topic, FormatFaultError for a body of which nothing can be used,
        IdempotencyError, StorageFullError, or another RetryableError.
        """
        ...

    def prepare(self, topic: str, body: bytes, *, media_type: str, encoding: str, client: str) -> Intake:
        """The first half of `push` for a body without an idempotency key: decode it. Nothing is stored yet."""
        ...

    def commit(self, intakes: Sequence[Intake]) -> list[Receipt | Exception]:
        """The second half: make prepared bodies durable together. A receipt for each, or what `push` would raise."""
        ...

    def status(self) -> dict[str, Any]:
        """Counts and states: `started_at`, `sources`, `pipelines`, `sinks`, `topics`, `log`, `rates`,
        `latency_ms`. Cheap: it is asked several times a second while somebody watches."""
        ...

    def health(self) -> dict[str, Any]:
        """`status` (ok, degraded, failing), `ready`, and `components` with kind, status, reason and since."""
        ...

    def start(self, source: str, interval: str | None) -> None:
        """Start a source, with another interval if one is given. LookupError for an unknown one, ConfigError for an
        interval that is none or that the source hasn't."""
        ...

    def stop(self, source: str | None) -> None:
        """Stop one source, or all. LookupError for an unknown one."""
        ...

    def dead_letter_causes(self) -> list[dict[str, Any]]:
        """Dead letters grouped: `code`, `topic`, `component`, `count`, `last_seen`, `example`."""
        ...
