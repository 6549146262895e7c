"""The loop from sources to the log. Accepted means durable.

A source is resumed only after its rows, its cursor and its rejects are in the log together, so the line after its
`yield` may acknowledge. Memory is bounded because there is at most one Arrival of each source shard on its way.
"""

from __future__ import annotations

import threading
from collections import Counter
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
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.model import (
    TIMESTAMP,
    Cursor,
    Reject,
    Rows,
    Topic,
    as_json,
    conform,
    dead_letters,
    fitting,
    split,
    unify,
)

logger = structlog.get_logger("headrace.ingest")


@dataclass(frozen=True, slots=True)
class Intake:
    """What becomes durable together: rows of a topic, what was rejected on the way, where the source stands, rows
    for other topics. `size` counts the bytes it came in."""

    topic: str
    rows: Rows | None
    rejects: Sequence[Reject] = ()
    component: str = ""
    writer: str = ""
    cursor: Cursor = None
    beside: Mapping[str, Rows] = field(default_factory=dict)
    size: int = 0

    @property
    def count(self) -> int:
        return 0 if self.rows is None else int(self.rows.num_rows)

    @property
    def total(self) -> int:
        return self.count + len(self.rejects)


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


class Ingest:
    """Puts rows into the log. Safe to use from several threads; concurrent appends share an fsync."""

    def __init__(self, log: Log, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._metrics = metrics
        self._spread = 0

    # -- storing -----------------------------------------------------------------------------------

    def store(self, intake: Intake) -> Sequence[Reject]:
        """Make an Intake durable; gives its rejects, grown by the rows that don't fit the topic.

        Raises StorageFullError or another RetryableError; then nothing of it was stored.
        """
        self._arrive([intake])
        try:
            try:
                self._commit([intake])
            except PlanError as error:
                if not intake.count:
                    raise
                intake = self._part(intake, str(error))
                self._commit([intake])
        except BaseException:
            self._metrics.settle(intake.component, "source", refused=intake.total)
            raise
        self._settle(intake)
        return intake.rejects

    def store_together(self, intakes: Sequence[Intake]) -> list[Sequence[Reject] | HeadraceError]:
        """Make several durable with one fsync; what became of each, as `store` would have said."""
        self._arrive(intakes)
        try:
            self._commit(intakes)
        except PlanError:
            self._refuse(intakes)
            return [
                self._alone(intake) for intake in intakes
            ]  # one that doesn't fit must not cost the others
        except HeadraceError as error:
            self._refuse(intakes)
            return [error] * len(intakes)
        except BaseException:
            self._refuse(intakes)  # the count of what is in flight must hold also when a bug passes through
            raise
        for intake in intakes:
            self._settle(intake)
        return [intake.rejects for intake in intakes]

    def _alone(self, intake: Intake) -> Sequence[Reject] | HeadraceError:
        try:
            return self.store(intake)
        except HeadraceError as error:
            return error

    def _arrive(self, intakes: Sequence[Intake]) -> None:
        for intake in intakes:
            self._metrics.arrive(intake.component, "source", intake.total, intake.size)

    def _refuse(self, intakes: Sequence[Intake]) -> None:
        for intake in intakes:
            self._metrics.settle(intake.component, "source", refused=intake.total)

    def _settle(self, intake: Intake) -> None:
        self._metrics.settle(intake.component, "source", sent=intake.count, dead=len(intake.rejects))
        for code, number in Counter(reject.code for reject in intake.rejects).items():
            self._metrics.dead_letters.labels(intake.topic, intake.component, code).inc(number)

    def _part(self, intake: Intake, why: str) -> Intake:
        """The rows that the topic takes as it is, the others among the rejects, numbered as they were sent."""
        topic, rows = self._log.topics()[intake.topic], intake.rows
        assert rows is not None
        fits = compatible(rows, topic)
        good = fitting(rows, topic.schema) if fits else np.zeros(rows.num_rows, bool)
        sent = np.setdiff1d(np.arange(intake.total), [reject.row for reject in intake.rejects])
        bad = as_json(rows.filter(pa.array(~good)))
        places = sent[: rows.num_rows][~good]
        more = [Reject(raw, "schema", why, row=int(at)) for raw, at in zip(bad, places, strict=True)]
        known = unify(topic.schema, rows.schema, on_new_field="discard") if fits else topic.schema
        kept = conform(rows.filter(pa.array(good)), known) if good.any() else None
        return replace(intake, rows=kept, rejects=[*intake.rejects, *more])

    def _commit(self, intakes: Sequence[Intake]) -> None:
        topics = self._log.topics()
        now_us = self._clock.now_us()
        with self._log.transaction() as transaction:
            for intake in intakes:
                for name, rows in ((intake.topic, intake.rows), *intake.beside.items()):
                    if rows is None or not rows.num_rows:
                        continue
                    spec = topics[name]
                    if not spec.key and spec.partitions > 1:
                        self._spread = (self._spread + 1) % spec.partitions
                        transaction.append(name, self._spread, rows)
                        continue
                    for partition, part in split(rows, spec.key, spec.partitions).items():
                        transaction.append(name, partition, part)
                if intake.rejects:
                    rows = dead_letters(
                        intake.rejects, now_us=now_us, topic=intake.topic, component=intake.component
                    )
                    transaction.append("dead_letters", 0, rows)
                if intake.writer:
                    transaction.cursor(intake.writer, intake.cursor)

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
        rows = self._stamped(shard.topic, arrival.rows)
        intake = Intake(
            shard.topic, rows, arrival.rejects, shard.name, writer, arrival.cursor, arrival.beside
        )
        rejects = self.store(intake)
        shard.received += intake.total
        shard.rejected += len(rejects)
        shard.accepted += intake.total - len(rejects)
        shard.last_us = self._clock.now_us()

    def _stamped(self, topic: str, rows: Rows | None) -> Rows | None:
        """Rows of an envelope topic with the time at which they are taken in, whatever the source says."""
        if rows is None or "received_at" not in self._log.topics()[topic].schema.names:
            return rows
        now = pa.array(np.full(rows.num_rows, self._clock.now_us(), np.int64)).view(TIMESTAMP)
        at = rows.schema.get_field_index("received_at")
        field = pa.field("received_at", TIMESTAMP)
        return rows.append_column(field, now) if at < 0 else rows.set_column(at, field, now)

    def _enter(self, shard: Shard, state: str) -> None:
        if shard.state != state:
            shard.state = state
            shard.since_us = self._clock.now_us()

    def _fail(self, shard: Shard, log: Any, error: str) -> None:
        shard.last_error = error
        self._metrics.errors.labels(shard.name, "source", "read", "stopped").inc()
        log.error("source stopped; fix it and start it again", error=error)
        self._enter(shard, "failed")


def compatible(rows: Rows, topic: Topic) -> bool:
    """Whether the fields that both have go together."""
    try:
        unify(topic.schema, rows.schema, on_new_field="discard")
    except PlanError:
        return False
    return True
