"""The loop from sources to the log, and the door for pushed bodies. Accepted means durable.

A source is resumed only after its rows, its cursor and its rejects are in the log together, so the line after its
`yield` may acknowledge. Memory is bounded because there is at most one Arrival of each source shard on its way.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from headrace.backoff import pause
from headrace.clock import Clock
from headrace.component import Arrival, Source
from headrace.errors import HeadraceError, PlanError, RetryableError
from headrace.formats import Decoded, decode, decompress
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.model import (
    TIMESTAMP,
    Cursor,
    Receipt,
    Reject,
    Rows,
    Topic,
    as_json,
    conform,
    dead_letters,
    empty,
    fitting,
    split,
    unify,
)
from headrace.units import Duration, Size

logger = structlog.get_logger("headrace.ingest")

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


@dataclass
class Shard:
    """State of one running source shard, for status and health."""

    name: str
    kind: str
    topic: str
    state: str = "starting"  # starting, running, idle, retrying, finished, failed, stopped
    since_us: int = 0
    received: int = 0
    accepted: int = 0
    rejected: int = 0
    last_us: int = 0
    last_error: str = ""


@dataclass(frozen=True)
class Limits:
    """What a pushed body may be."""

    max_decompressed: int = 64 * 2**20
    max_field: int = 2**20
    max_future: Duration = field(default_factory=lambda: Duration.parse("5m"))


class Ingest:
    """Puts rows into the log. Safe to use from several threads; concurrent appends share an fsync."""

    def __init__(self, log: Log, clock: Clock, metrics: Metrics, limits: Limits) -> None:
        self._log = log
        self._clock = clock
        self._metrics = metrics
        self._limits = limits
        self._keys: OrderedDict[str, tuple[bytes, Receipt]] = OrderedDict()
        self._keys_in_use: set[str] = set()
        self._keys_lock = threading.Lock()
        self._spread = 0
        log.create(IDEMPOTENCY)
        self._load_keys()

    # -- the push door -----------------------------------------------------------------------------

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
        known = self._log.topics().get(topic)
        if known is None or topic.startswith("_"):
            raise LookupError(topic)
        if encoding:
            body = decompress(body, encoding, max_bytes=self._limits.max_decompressed)
        if idempotency_key is None:
            return self._push(known, body, media_type, component, None)
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
            receipt = self._push(known, body, media_type, component, (idempotency_key, digest))
            with self._keys_lock:
                self._remember(idempotency_key, digest, receipt)
            return receipt
        finally:
            with self._keys_lock:
                self._keys_in_use.discard(idempotency_key)

    def _push(
        self, topic: Topic, body: bytes, media_type: str, component: str, key: tuple[str, bytes] | None
    ) -> Receipt:
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
        if grown is not topic and decoded.rows is not None and not _compatible(decoded.rows, grown):
            # Another sender has grown the topic meanwhile, with other types: only the rows that contradict are rejected.
            decoded = decoded_for(grown)
        beside = {}
        if key is not None:
            values = (now_us, *key, decoded.accepted, len(decoded.rejects))
            marks = [pa.array([value], f.type) for value, f in zip(values, IDEMPOTENCY.schema, strict=True)]
            beside[IDEMPOTENCY.name] = pa.RecordBatch.from_arrays(marks, schema=IDEMPOTENCY.schema)
        rejects = self.store(
            topic.name, decoded.rows, decoded.rejects, component=component, beside=beside, size=len(body)
        )
        return Receipt(decoded.total - len(rejects), len(rejects), rejects)

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

    # -- storing -----------------------------------------------------------------------------------

    def store(
        self,
        topic: str,
        rows: Rows | None,
        rejects: Sequence[Reject] = (),
        *,
        component: str,
        writer: str = "",
        cursor: Cursor = None,
        beside: Mapping[str, Rows] | None = None,
        size: int = 0,
    ) -> Sequence[Reject]:
        """Make rows, rejects and cursor durable together; gives the rejects, grown by rows that don't fit the topic."""
        count = rows.num_rows if rows is not None else 0
        total = count + len(rejects)
        self._metrics.arrive(component, "source", total, size)
        try:
            try:
                self._commit(topic, rows, rejects, component, writer, cursor, beside or {})
            except PlanError as error:
                if rows is None or not count:
                    raise
                rows, rejects = self._part(topic, rows, rejects, str(error))
                count = rows.num_rows
                self._commit(topic, rows, rejects, component, writer, cursor, beside or {})
        except BaseException:
            self._metrics.settle(component, "source", refused=total)
            raise
        self._metrics.settle(component, "source", sent=count, dead=len(rejects))
        for code, number in Counter(reject.code for reject in rejects).items():
            self._metrics.dead_letters.labels(topic, component, code).inc(number)
        return rejects

    def _part(
        self, topic: str, rows: Rows, rejects: Sequence[Reject], why: str
    ) -> tuple[Rows, Sequence[Reject]]:
        """Rows that the topic takes as it is, and the rejects with the others added, numbered as they were sent."""
        schema = self._log.topics()[topic].schema
        good = (
            fitting(rows, schema)
            if _compatible(rows, self._log.topics()[topic])
            else np.zeros(rows.num_rows, bool)
        )
        sent = np.setdiff1d(np.arange(rows.num_rows + len(rejects)), [reject.row for reject in rejects])
        bad = as_json(rows.filter(pa.array(~good)))
        places = sent[: rows.num_rows][~good]
        more = [Reject(raw, "schema", why, row=int(at)) for raw, at in zip(bad, places, strict=True)]
        if not good.any():
            return empty(schema), [*rejects, *more]
        known = unify(schema, rows.schema, on_new_field="discard")
        return conform(rows.filter(pa.array(good)), known), [*rejects, *more]

    def _commit(
        self,
        topic: str,
        rows: Rows | None,
        rejects: Sequence[Reject],
        component: str,
        writer: str,
        cursor: Cursor,
        beside: Mapping[str, Rows],
    ) -> None:
        topics = self._log.topics()
        with self._log.transaction() as transaction:
            for name, more in ((topic, rows), *beside.items()):
                if more is None or not more.num_rows:
                    continue
                spec = topics[name]
                if not spec.key and spec.partitions > 1:
                    self._spread = (self._spread + 1) % spec.partitions
                    transaction.append(name, self._spread, more)
                    continue
                for partition, part in split(more, spec.key, spec.partitions).items():
                    transaction.append(name, partition, part)
            if rejects:
                now_us = self._clock.now_us()
                transaction.append(
                    "dead_letters", 0, dead_letters(rejects, now_us=now_us, topic=topic, component=component)
                )
            if writer:
                transaction.cursor(writer, cursor)

    # -- the source loop ---------------------------------------------------------------------------

    def run(self, source: Source, shard: Shard, shard_name: str, stop: threading.Event) -> None:
        """Read one shard until the data ends or `stop` is set. Outages are retried for ever, with growing pauses."""
        writer = f"source:{shard.name}:{shard_name}"
        log = logger.bind(source=shard.name, shard=shard_name)
        attempt = 0
        while not stop.is_set():
            arrivals = source.read(shard_name, self._log.cursor(writer))
            try:
                self._enter(shard, "running")
                for arrival in arrivals:
                    self.take(arrival, shard, writer)
                    if attempt and arrival.rows is not None:
                        log.info("source works again", failures=attempt)
                        attempt = 0
                    if stop.is_set():
                        break
                else:
                    self._enter(shard, "finished")
                    return
            except RetryableError as error:
                attempt += 1
                shard.last_error = str(error)
                self._metrics.errors.labels(shard.name, "source", "read", type(error).__name__).inc()
                if attempt == 1:
                    log.warning("source is interrupted and will be retried", error=str(error))
                self._enter(shard, "retrying")
                self._clock.wait(stop, pause(attempt, shard.name, asked=error.after))
            except HeadraceError as error:
                return self._fail(shard, log, str(error))
            except Exception as error:  # a bug in a source stops that source, loudly, and nothing else
                log.exception("source stopped by a bug")
                return self._fail(shard, log, f"{type(error).__name__}: {error}")
            finally:
                close = getattr(arrivals, "close", None)
                if close is not None:
                    close()
        self._enter(shard, "stopped")

    def take(self, arrival: Arrival, shard: Shard, writer: str) -> None:
        """Make one Arrival durable under the cursor of `writer`."""
        if arrival.rows is None and not arrival.rejects and not arrival.beside and arrival.cursor is None:
            return
        rejects = self.store(
            shard.topic,
            arrival.rows,
            arrival.rejects,
            component=shard.name,
            writer=writer,
            cursor=arrival.cursor,
            beside=arrival.beside,
        )
        count = arrival.rows.num_rows if arrival.rows is not None else 0
        total = count + len(arrival.rejects)
        shard.received += total
        shard.rejected += len(rejects)
        shard.accepted += total - len(rejects)
        shard.last_us = self._clock.now_us()

    def _enter(self, shard: Shard, state: str) -> None:
        if shard.state != state:
            shard.state = state
            shard.since_us = self._clock.now_us()

    def _fail(self, shard: Shard, log: Any, error: str) -> None:
        shard.last_error = error
        self._metrics.errors.labels(shard.name, "source", "read", "stopped").inc()
        log.error("source stopped; fix it and start it again", error=error)
        self._enter(shard, "failed")


def _compatible(rows: Rows, topic: Topic) -> bool:
    """Whether the fields that both have go together."""
    try:
        unify(topic.schema, rows.schema, on_new_field="discard")
    except PlanError:
        return False
    return True
