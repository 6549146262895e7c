"""The door for pushed bodies: HTTP, and later gRPC. Decode, then make durable, many bodies with one fsync."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from headrace.clock import Clock
from headrace.errors import HeadraceError, RetryableError
from headrace.formats import Decoded, decode, decompress
from headrace.ingest import Ingest, Intake, compatible
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.model import TIMESTAMP, Receipt, Reject, Rows, Topic
from headrace.units import Duration, Size

IDEMPOTENCY = Topic(
    "_idempotency",
    pa.schema(
        [
            pa.field("timestamp", TIMESTAMP, nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("digest", pa.binary(), nullable=False),
            pa.field("accepted", pa.int64(), nullable=False),
            pa.field("rejected", pa.int64(), nullable=False),
        ]
    ),
    retention=Duration.parse("1d"),
    max_size=Size.parse("64MiB"),
)
"""Bodies stored under an Idempotency-Key in the last day, so that a retried request isn't stored twice."""

_REMEMBERED_KEYS = 100_000


class IdempotencyError(HeadraceError):
    """The Idempotency-Key was used before with another body."""


@dataclass(frozen=True)
class Limits:
    """What a pushed body may be."""

    max_decompressed: int = 64 * 2**20
    max_field: int = 2**20
    max_future: Duration = field(default_factory=lambda: Duration.parse("5m"))


class Push:
    """Takes bodies in. `prepare` and `commit` are the two halves of `push`, for a caller that has many at once."""

    def __init__(self, ingest: Ingest, log: Log, clock: Clock, metrics: Metrics, limits: Limits) -> None:
        self._ingest = ingest
        self._log = log
        self._clock = clock
        self._metrics = metrics
        self._limits = limits
        self._keys: OrderedDict[str, tuple[bytes, Receipt]] = OrderedDict()
        self._keys_in_use: set[str] = set()
        self._keys_lock = threading.Lock()
        log.create(IDEMPOTENCY)
        self._load_keys()

    def push(
        self,
        topic: str,
        body: bytes,
        *,
        media_type: str = "",
        encoding: str = "",
        idempotency_key: str | None = None,
        component: str = "http",
    ) -> Receipt:
        """Decode `body` and store it; durable on return.

        Raises LookupError (unknown topic), formats.FormatFaultError (the body as a whole is unusable),
        IdempotencyError, StorageFullError or another RetryableError; then nothing was stored.
        """
        known, body = self._known(topic), self._plain(body, encoding)
        if idempotency_key is None:
            return self._store(self._decoded(known, body, media_type, component))
        digest = hashlib.sha256(topic.encode() + b"\0" + body).digest()
        with self._keys_lock:
            before = self._keys.get(idempotency_key)
            if before is not None:
                if before[0] != digest:
                    raise IdempotencyError(
                        f"Idempotency-Key {idempotency_key!r} was used before with another body"
                    )
                self._metrics.arrive(component, "source", before[1].total, len(body))
                self._metrics.settle(component, "source", filtered=before[1].total)
                return replace(before[1], duplicate=True)
            if idempotency_key in self._keys_in_use:
                raise RetryableError("a request with this Idempotency-Key is being stored", after=1)
            self._keys_in_use.add(idempotency_key)
        try:
            intake = self._decoded(known, body, media_type, component)
            mark = self._mark(idempotency_key, digest, intake)
            receipt = self._store(replace(intake, beside={IDEMPOTENCY.name: mark}))
            with self._keys_lock:
                self._remember(idempotency_key, digest, receipt)
            return receipt
        finally:
            with self._keys_lock:
                self._keys_in_use.discard(idempotency_key)

    def prepare(
        self, topic: str, body: bytes, *, media_type: str = "", encoding: str = "", component: str = "http"
    ) -> Intake:
        """Decode `body`; nothing is stored yet. Raises LookupError and formats.FormatFaultError."""
        return self._decoded(self._known(topic), self._plain(body, encoding), media_type, component)

    def commit(self, intakes: Sequence[Intake]) -> list[Receipt | Exception]:
        """Make prepared bodies durable together: a receipt for each, or the error that `push` would have raised."""
        results = self._ingest.store_together(intakes)
        return [
            result if isinstance(result, Exception) else _receipt(intake, result)
            for intake, result in zip(intakes, results, strict=True)
        ]

    def _store(self, intake: Intake) -> Receipt:
        return _receipt(intake, self._ingest.store(intake))

    def _known(self, topic: str) -> Topic:
        known = self._log.topics().get(topic)
        if known is None or topic.startswith("_"):
            raise LookupError(topic)
        return known

    def _plain(self, body: bytes, encoding: str) -> bytes:
        return decompress(body, encoding, max_bytes=self._limits.max_decompressed) if encoding else body

    def _decoded(self, topic: Topic, body: bytes, media_type: str, component: str) -> Intake:
        now_us = self._clock.now_us()

        def decoded_for(spec: Topic) -> Decoded:
            return decode(
                body,
                media_type=media_type,
                topic=spec,
                now_us=now_us,
                max_field_bytes=self._limits.max_field,
                max_future=self._limits.max_future,
            )

        decoded = decoded_for(topic)
        grown = self._log.topics()[topic.name]
        if grown is not topic and decoded.rows is not None and not compatible(decoded.rows, grown):
            # Another sender has grown the topic meanwhile, with other types: only the rows that contradict are rejected.
            decoded = decoded_for(grown)
        return Intake(topic.name, decoded.rows, decoded.rejects, component, size=len(body))

    # -- idempotency -------------------------------------------------------------------------------

    def _mark(self, key: str, digest: bytes, intake: Intake) -> Rows:
        values = (self._clock.now_us(), key, digest, intake.count, len(intake.rejects))
        marks = [pa.array([value], f.type) for value, f in zip(values, IDEMPOTENCY.schema, strict=True)]
        return pa.RecordBatch.from_arrays(marks, schema=IDEMPOTENCY.schema)

    def _remember(self, key: str, digest: bytes, receipt: Receipt) -> None:
        self._keys[key] = (digest, receipt)
        while len(self._keys) > _REMEMBERED_KEYS:
            self._keys.popitem(last=False)

    def _load_keys(self) -> None:
        extent = self._log.extent(IDEMPOTENCY.name, 0)
        start = max(extent.start, extent.end - _REMEMBERED_KEYS)
        while start < extent.end:
            span = self._log.bounded(IDEMPOTENCY.name, 0, start, max_rows=10_000, max_bytes=2**24)
            for row in self._log.read(IDEMPOTENCY.name, 0, span).to_pylist():
                self._remember(row["key"], row["digest"], Receipt(row["accepted"], row["rejected"]))
            start = span.end


def _receipt(intake: Intake, rejects: Sequence[Reject]) -> Receipt:
    return Receipt(intake.total - len(rejects), len(rejects), rejects)
