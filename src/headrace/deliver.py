"""The loop from the log to a sink. Each sink reads each of its topics in a thread of its own, at its own pace.

A sink that is down or slow holds up nobody: the log absorbs, the sink catches up. Outages are retried with growing
pauses behind a circuit breaker; rows that the target will never take go to the dead letters and the rest goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import structlog

from headrace.backoff import pause
from headrace.clock import Clock
from headrace.component import Sink, Writer
from headrace.errors import DataError, HeadraceError, RetryableError
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.model import Reject, Span, as_json, dead_letters

logger = structlog.get_logger("headrace.deliver")

_MAX_BYTES = 64 * 2**20  # of one read from the log, before it is handed to the sink


@dataclass
class Delivery:
    """State of one sink on one topic, for status and health."""

    name: str
    kind: str
    topic: str
    state: str = "starting"  # starting, running, retrying, failed, stopped
    circuit: str = "closed"  # closed, open (waiting), half_open (trying)
    since_us: int = 0
    retries: int = 0
    written: int = 0
    dead: int = 0
    last_error: str = ""
    first: dict[int, int] = field(default_factory=dict)  # partition -> offset where this process began
    positions: dict[int, int] = field(default_factory=dict)  # partition -> next offset to write
    buried: set[tuple[int, int]] = field(
        default_factory=set
    )  # (partition, offset) in the dead letters already


class Deliver:
    """Drives sinks."""

    def __init__(self, log: Log, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._metrics = metrics

    def run(self, sink: Sink, state: Delivery, stop: threading.Event, *, start: str = "earliest") -> None:
        """Deliver until `stop` is set. What is in the log but unwritten then is written after the next start."""
        log = logger.bind(sink=state.name, topic=state.topic)
        attempt = 0
        writer: Writer | None = None
        while not stop.is_set():
            try:
                if writer is None:
                    writer = sink.open(self._log.topics()[state.topic], name=state.name)
                    self.begin(sink, writer, state, start)
                if attempt:
                    state.circuit = "half_open"
                self.step(sink, writer, state, stop)
                if attempt:
                    log.info("sink works again", failures=attempt)
                    attempt = 0
                self._enter(state, "running", "closed")
            except RetryableError as error:
                attempt += 1
                state.retries += 1
                state.last_error = str(error)
                self._metrics.errors.labels(state.name, "sink", "write", type(error).__name__).inc()
                if attempt == 1:
                    log.warning(
                        "sink is interrupted; rows wait in the log and will be written", error=str(error)
                    )
                self._enter(state, "retrying", "open")
                _close(writer)
                writer = None
                self._clock.wait(stop, pause(attempt, state.name, asked=error.after))
            except HeadraceError as error:
                log.error("sink stopped; fix it and start it again", error=str(error))
                state.last_error = str(error)
                self._enter(state, "failed", "open")
                _close(writer)
                return
            except Exception as error:  # a bug in a sink stops that sink, loudly, and nothing else
                log.exception("sink stopped by a bug")
                state.last_error = f"{type(error).__name__}: {error}"
                self._enter(state, "failed", "open")
                _close(writer)
                return
        _close(writer)
        self._enter(state, "stopped", state.circuit)

    def begin(self, sink: Sink, writer: Writer, state: Delivery, start: str) -> None:
        """Find where the target stands; a target without a memory is remembered by the log."""
        topic = self._log.topics()[state.topic]
        kept = self._log.positions(_reader(state))
        with self._log.transaction() as transaction:
            for partition in range(topic.partitions):
                extent = self._log.extent(topic.name, partition)
                remembered = kept.get((topic.name, partition))
                position = writer.committed(partition) if sink.exactly_once else (remembered or 0)
                if position == 0 and remembered is None and start == "latest":
                    position = extent.end
                if position > extent.end:
                    raise HeadraceError(
                        f"sink {state.name} stands at offset {position} of {topic.name}[{partition}], but the log ends at "
                        f"{extent.end}: its target belongs to another data directory; use a new target or another sink name"
                    )
                if position < extent.start:
                    logger.warning(
                        "rows were deleted by retention before this sink read them",
                        sink=state.name, topic=topic.name, partition=partition, rows=extent.start - position,
                    )  # fmt: skip
                    position = extent.start
                state.positions[partition] = position
                state.first.setdefault(partition, position)
                transaction.position(_reader(state), topic.name, partition, position)

    def step(self, sink: Sink, writer: Writer, state: Delivery, stop: threading.Event) -> None:
        """Wait until a write is worth it, then write once from every partition that has rows."""
        batching = sink.batching()
        if not self._gather(state, batching.rows, batching.interval.seconds, stop):
            return
        for partition, position in state.positions.items():
            if stop.is_set():
                return
            span = self._log.bounded(
                state.topic, partition, position, max_rows=batching.max_rows, max_bytes=_MAX_BYTES
            )
            if len(span):
                self._write(writer, state, partition, span)

    def _gather(self, state: Delivery, rows: int, interval: float, stop: threading.Event) -> bool:
        """Whether there is something to write: enough rows, or some that have waited for `interval` seconds."""

        def wanted(more: int) -> dict[tuple[str, int], int]:
            return {
                (state.topic, partition): position + more for partition, position in state.positions.items()
            }

        if not self._log.wait(wanted(0), 1.0):
            return False
        deadline = self._clock.monotonic() + interval
        while rows > 1 and not stop.is_set():
            waiting = sum(
                self._log.extent(state.topic, partition).end - position
                for partition, position in state.positions.items()
            )
            left = deadline - self._clock.monotonic()
            if waiting >= rows or left <= 0:
                break
            # Woken by rows, by `wake` or by the deadline; the loop looks again.
            self._log.wait(wanted(rows - 1), left)
        return True

    def _write(self, writer: Writer, state: Delivery, partition: int, span: Span) -> None:
        rows = self._log.read(state.topic, partition, span)
        offsets = np.arange(span.start, span.end)
        began = self._clock.monotonic()
        while True:
            try:
                writer.write(partition, rows, span.end)
                break
            except DataError as error:
                if not error.rows:
                    raise
                refused = np.zeros(rows.num_rows, bool)
                refused[list(error.rows)] = True
                raws = as_json(rows.filter(pa.array(refused)))
                rejects = [Reject(raw, error.code, str(error)) for raw in raws]
                self._bury(state, partition, offsets[refused].tolist(), rejects)
                rows, offsets = rows.filter(pa.array(~refused)), offsets[~refused]
        with self._log.transaction() as transaction:
            transaction.position(_reader(state), state.topic, partition, span.end)
        state.positions[partition] = span.end
        state.buried = {place for place in state.buried if place[0] != partition}
        self._metrics.epoch.labels(state.name, "sink").observe(self._clock.monotonic() - began)
        state.written += rows.num_rows
        state.dead += len(span) - rows.num_rows

    def _bury(
        self, state: Delivery, partition: int, offsets: Sequence[int], rejects: Sequence[Reject]
    ) -> None:
        """Put refused rows into the dead letters, before the target goes past them: a crash in between gives a dead
        letter twice, at the same place, and never none. A retry in this process finds them in `buried`."""
        fresh = [i for i, offset in enumerate(offsets) if (partition, offset) not in state.buried]
        if not fresh:
            return
        letters = dead_letters(
            [rejects[i] for i in fresh],
            now_us=self._clock.now_us(),
            topic=state.topic,
            component=state.name,
            places=[(partition, offsets[i]) for i in fresh],
        )
        self._log.append("dead_letters", 0, letters)
        state.buried.update((partition, offsets[i]) for i in fresh)
        for i in fresh:
            self._metrics.dead_letters.labels(state.topic, state.name, rejects[i].code).inc()

    def _enter(self, state: Delivery, name: str, circuit: str) -> None:
        if state.state != name:
            state.state = name
            state.since_us = self._clock.now_us()
        if state.circuit != circuit:
            state.circuit = circuit
            self._metrics.circuit_open.labels(state.name).set(circuit != "closed")


def _reader(state: Delivery) -> str:
    return f"sink:{state.name}"


def _close(writer: Writer | None) -> None:
    if writer is not None:
        try:
            writer.close()
        except (HeadraceError, OSError) as error:
            logger.warning("closing a sink failed", error=str(error))
