"""The local engine: adaptive micro-batches, exactly once.

A worker owns some partitions of a pipeline's inputs, with their state. It repeats: take whatever has arrived (up to a
bound), fix spans, clock and watermark as an Epoch, run the steps, and commit outputs, epoch and positions in one log
transaction. State is checkpointed every few seconds; after a crash the epochs recorded since then run again with their
outputs suppressed. Same spans, clock and watermark give the same rows, so each epoch's rows are in the log exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import pyarrow.compute as pc
import structlog

from headrace.backoff import pause
from headrace.clock import Clock
from headrace.engine.chain import Chain, Outcome
from headrace.engine.checkpoint import Checkpoint
from headrace.engine.terms import Checkpoints, EngineLimits, Observer, WorkerState
from headrace.engine.watermark import Input, Watermark
from headrace.errors import CorruptLogError, FencedError, HeadraceError, RetryableError
from headrace.log import Log
from headrace.model import Epoch, Rows, Span
from headrace.pipeline import Pipeline

__all__ = ["Checkpoints", "EngineLimits", "Observer", "Worker", "WorkerState"]

logger = structlog.get_logger("headrace.engine")

_TOTALS = ("received", "sent", "filtered", "dead", "late", "emitted")
_TICK = 1.0  # seconds between looks at the clock on an idle stream, at first
_LONGEST_TICK = 30.0
_LONGEST_PAUSE = 2.0  # seconds: what fails here is nearly always the own disk, and a try is cheap
_MOST_WORK = 1.0  # seconds of work after which state is kept early, so that recovery is short under load


class Worker:
    """Runs one pipeline over some partitions. `open`, then `run` (or `step` by hand), from one thread."""

    def __init__(
        self,
        pipeline: Pipeline,
        log: Log,
        *,
        clock: Clock,
        checkpoints: Checkpoints,
        worker: int = 0,
        workers: int = 1,
        limits: EngineLimits | None = None,
        observe: Observer = lambda pipeline, seconds, age: None,
    ) -> None:
        self.pipeline = pipeline
        self.state = WorkerState(pipeline.name, worker)
        self.successor: Pipeline | None = (
            None  # set before the stop: what takes over the partitions and the state
        )
        self._log = log
        self._clock = clock
        self._checkpoints = checkpoints
        self._worker = worker
        self._workers = workers
        self._limits = limits or EngineLimits()
        self._observe = observe
        self._epoch = 0
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._tick = _TICK
        self._quiet_since = 0.0
        self._last_tick = 0.0
        self._work = 0.0  # seconds of work since the last checkpoint: what a recovery would do again
        self._checkpoint_seconds = 0.0

    # -- start and recovery ------------------------------------------------------------------------

    def open(self) -> None:
        """Recover: the last checkpoint, then the epochs recorded since, outputs suppressed."""
        self._enter("recovering")
        topics = self._log.topics()
        self._topics = {name: topics[name] for name in self.pipeline.reads()}
        self._chain = Chain(self.pipeline, self._topics)
        self._inputs = [
            (name, partition)
            for name in self.pipeline.reads()
            for partition in range(topics[name].partitions)
            if partition % self._workers == self._worker
        ]
        self._positions: dict[Input, int] = {}
        self._watermark = Watermark(self.pipeline.delay, self.pipeline.idle_after)
        now = self._clock.monotonic()
        checkpoint = self._checkpoints.load(self.pipeline.name, self._worker)
        self._kept: Checkpoint | None = checkpoint
        if checkpoint is not None:
            missing = self._chain.restore(checkpoint.states, checkpoint.steps)
            if missing:
                logger.warning(
                    "steps have changed and begin without state",
                    pipeline=self.pipeline.name, steps=[number + 1 for number in missing],
                )  # fmt: skip
            self._epoch = checkpoint.epoch
            self._watermark.restore(checkpoint.watermark_us, checkpoint.newest_us, now)
        committed = self._log.positions(self._reader)
        for name, partition in self._inputs:
            start = self._log.extent(name, partition).start
            self._positions[name, partition] = max(committed.get((name, partition), start), start)
        self._watermark.watch(self._inputs, now)
        last = self._log.counts().get((self.pipeline.name, self._worker))
        epochs = self._uncovered(checkpoint, 0 if last is None else last[0].number)
        for epoch in epochs:
            self._replay(epoch, now)
        if last is not None:
            self._epoch = max(self._epoch, last[0].number)
            self._totals |= last[1]
        with self._log.transaction() as transaction:
            # Readers are registered before anything is read, so that retention keeps what they need.
            for source, position in self._positions.items():
                transaction.position(self._reader, *source, position)
                if source not in self._log.positions(self._keeper):
                    transaction.position(self._keeper, *source, position)
        self._last_checkpoint = now
        self._quiet_since = now
        if checkpoint is None:
            self._keep(None)  # so that the number of workers and the positions are known from the start
        self._enter("running")
        logger.info(
            "pipeline is ready", pipeline=self.pipeline.name, worker=self._worker, replayed_epochs=len(epochs)
        )

    def _uncovered(self, checkpoint: Checkpoint | None, last: int) -> list[Epoch]:
        """The recorded epochs after the checkpoint, which must be all of them."""
        covered = 0 if checkpoint is None else checkpoint.epoch
        epochs = [e for e in self._log.epochs(self.pipeline.name, self._worker) if e.number > covered]
        if [epoch.number for epoch in epochs] != list(range(covered + 1, last + 1)):
            raise CorruptLogError(
                f"pipeline {self.pipeline.name}: its checkpoint is of epoch {covered}, the log ends at epoch {last} and "
                f"has {len(epochs)} of those between; restore log and checkpoints from the same moment, or remove "
                f"checkpoints/{self.pipeline.name} and run the pipeline under another name to begin anew"
            )
        return epochs

    def _replay(self, epoch: Epoch, now: float) -> None:
        """Run a recorded epoch for its effect on the state."""
        rows = {source: self._log.read(*source, span) for source, span in epoch.spans.items() if len(span)}
        for source, batch in rows.items():
            self._see(source, batch, now)
        self._process(rows, epoch.watermark_us)
        self._watermark.current_us = max(self._watermark.current_us, epoch.watermark_us)
        self._epoch = epoch.number

    def state_after(self) -> Checkpoint:
        """The state as a checkpoint, not kept anywhere."""
        return Checkpoint(
            epoch=self._epoch,
            workers=self._workers,
            partitions=sorted({partition for _, partition in self._inputs}),
            positions=dict(self._positions),
            newest_us=dict(self._watermark.newest_us),
            watermark_us=self._watermark.current_us,
            steps=tuple(self._chain.fingerprints),
            states=tuple(self._chain.snapshot()),
        )

    # -- epochs ------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; then the state is checkpointed. Outages are retried, anything else stops the worker."""
        log = logger.bind(pipeline=self.pipeline.name, worker=self._worker)
        attempt = 0
        opened = False
        while not stop.is_set():
            try:
                if not opened:
                    self.open()
                    opened = True
                if not self.step(stop):
                    self._log.wait(self._positions, self._tick)
                if attempt:
                    log.info("pipeline works again", failures=attempt)
                    attempt = 0
                    self._enter("running")
            except RetryableError as error:
                # Raised while reading, before any operator saw the rows: the same step can be tried again.
                attempt += 1
                self.state.last_error = str(error)
                self._enter("retrying")
                if attempt == 1:
                    log.warning("pipeline is interrupted and will be retried", error=str(error))
                self._clock.wait(
                    stop, pause(attempt, self.pipeline.name, asked=error.after, longest=_LONGEST_PAUSE)
                )
            except FencedError as error:
                log.error("pipeline stopped: another worker has taken over", error=str(error))
                return self._fail(str(error))
            except (HeadraceError, OSError) as error:
                log.error("pipeline stopped; its rows wait in the log", error=str(error))
                return self._fail(str(error))
            except Exception as error:  # a bug stops this pipeline, loudly, and nothing else
                log.exception("pipeline stopped by a bug; its rows wait in the log")
                return self._fail(f"{type(error).__name__}: {error}")
        if opened and self.state.state != "failed" and self._hand_over(stop):
            self.checkpoint()
        self._enter("stopped")

    def _hand_over(self, stop: threading.Event) -> bool:
        """Before another description takes over: what its steps can't go on with comes out now, and isn't lost."""
        ending = self._chain.ending(self.successor) if self.successor is not None else []
        if not ending:
            return True
        watermark_us = self._watermark.current_us
        try:
            outcome = self._chain.process([], {}, watermark_us, ending=ending)
            epoch = Epoch(self._epoch + 1, {}, self._clock.now_us(), watermark_us)
            return self._commit(epoch, outcome, stop)
        except HeadraceError as error:
            logger.error("open windows could not be kept", pipeline=self.pipeline.name, error=str(error))
            return False

    def step(self, stop: threading.Event | None = None) -> bool:
        """One epoch, if there are rows or the watermark has moved; False when there was nothing to do."""
        began = self._clock.monotonic()
        self._follow_schemas()
        self._chain.refresh(self._clock.now_us())
        self.state.problem = self._chain.problem
        spans = self._plan()
        if spans:
            rows = {source: self._log.read(*source, span) for source, span in spans.items()}
            for source, batch in rows.items():
                self._see(source, batch, began)
            self._tick, self._quiet_since = _TICK, began
        elif not self._time_moves(began):
            self._maybe_checkpoint(began)
            return False
        else:
            rows = {}
        epoch = Epoch(self._epoch + 1, spans, self._clock.now_us(), self._watermark.advance(began))
        outcome = self._process(rows, epoch.watermark_us)
        if not self._commit(epoch, outcome, stop):
            return False
        ended = self._clock.monotonic()
        self._work += ended - began
        self._observe(self.pipeline.name, ended - began, _age(rows.values(), self._clock.now_us()))
        self._maybe_checkpoint(ended)
        return True

    def _plan(self) -> dict[Input, Span]:
        # An equal share each, so that a partition with a backlog doesn't starve the others.
        share = max(1, self._limits.max_rows // max(1, len(self._positions)))
        max_bytes = max(1, self._limits.max_bytes.bytes // max(1, len(self._positions)))
        spans = {}
        for source, position in self._positions.items():
            span = self._log.bounded(*source, position, max_rows=share, max_bytes=max_bytes)
            if len(span):
                spans[source] = span
        return spans

    def _time_moves(self, now: float) -> bool:
        """On an idle stream: whether the watermark has moved enough to let windows close."""
        if not self._chain.stateful or not self._watermark.newest_us or now - self._last_tick < self._tick:
            return False
        silence = now - self._quiet_since
        if silence < self.pipeline.idle_after.seconds:
            return False
        self._last_tick = now
        self._tick = min(_LONGEST_TICK, max(_TICK, silence / 20))
        before = self._watermark.current_us
        return self._watermark.advance(now) > before

    def _see(self, source: Input, rows: Rows, now: float) -> None:
        at = self._topics[source[0]].at
        if at in rows.schema.names and rows.num_rows:
            newest = pc.max(rows.column(at)).value
            if newest is not None:
                self._watermark.see(source, newest, now)

    def _process(self, rows: Mapping[Input, Rows], watermark_us: int) -> Outcome:
        inputs = [
            batch for (name, _), batch in sorted(rows.items(), key=_order) if name in self.pipeline.topics
        ]
        sides: dict[str, list[Rows]] = {}
        for (name, _), batch in sorted(rows.items(), key=_order):
            sides.setdefault(name, []).append(batch)
        return self._chain.process(inputs, sides, watermark_us)

    def _follow_schemas(self) -> None:
        """Open the operators anew when an input topic has grown; their state goes along."""
        topics = self._log.topics()
        if all(topics[name] is known for name, known in self._topics.items()):
            return
        fresh = {name: topics[name] for name in self._topics}
        if any(not fresh[name].schema.equals(known.schema) for name, known in self._topics.items()):
            chain = Chain(self.pipeline, fresh)
            chain.restore(self._chain.snapshot(), self._chain.fingerprints)
            self._chain = chain
        self._topics = fresh

    # -- commit and checkpoint ---------------------------------------------------------------------

    def _commit(self, epoch: Epoch, outcome: Outcome, stop: threading.Event | None) -> bool:
        """Commit the epoch; during an outage again and again. False when stopped before it went through: the
        operators are then ahead of the log, so no checkpoint may be written from them."""
        totals = {name: self._totals[name] + outcome.counts[name] for name in _TOTALS}
        attempt = 0
        while True:
            try:
                self._commit_once(epoch, outcome, totals)
                break
            except RetryableError as error:
                attempt += 1
                self.state.last_error = str(error)
                self._enter("retrying")
                if attempt == 1:
                    logger.warning(
                        "committing an epoch failed and is retried",
                        pipeline=self.pipeline.name,
                        error=str(error),
                    )
                if stop is None:
                    raise
                if self._clock.wait(
                    stop, pause(attempt, self.pipeline.name, asked=error.after, longest=_LONGEST_PAUSE)
                ):
                    self._fail("stopped while the log could not be written; the last epoch runs again")
                    return False
        if attempt:
            logger.info("committing epochs works again", pipeline=self.pipeline.name, failures=attempt)
            self._enter("running")
        self._epoch = epoch.number
        self._totals = totals
        for source, span in epoch.spans.items():
            self._positions[source] = span.end
        return True

    def _commit_once(self, epoch: Epoch, outcome: Outcome, totals: Mapping[str, int]) -> None:
        topics = self._log.topics()
        with self._log.transaction() as transaction:
            outcome.write(transaction, self.pipeline, topics, epoch.now_us)
            for source, span in epoch.spans.items():
                transaction.position(self._reader, *source, span.end)
            transaction.epoch(self.pipeline.name, self._worker, epoch, totals)

    def _maybe_checkpoint(self, now: float) -> None:
        due = now - self._last_checkpoint >= self._limits.checkpoint_interval.seconds
        if due or self._work >= max(_MOST_WORK, 10 * self._checkpoint_seconds):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Keep the state as it is after the last epoch, and let go of what the checkpoint before last covers."""
        began = self._clock.monotonic()
        self._last_checkpoint, self._work = began, 0.0
        before = self._kept
        if before is None or before.epoch != self._epoch:
            self._keep(before)
            self._checkpoint_seconds = self._clock.monotonic() - began

    def _keep(self, before: Checkpoint | None) -> None:
        checkpoint = self.state_after()
        try:
            self._checkpoints.save(self.pipeline.name, self._worker, checkpoint)
        except OSError as error:
            raise RetryableError(f"keeping a checkpoint of pipeline {self.pipeline.name}: {error}") from error
        self._kept = checkpoint
        if before is not None:
            with self._log.transaction() as transaction:
                transaction.forget_epochs(self.pipeline.name, self._worker, before.epoch + 1)
                for source, position in before.positions.items():
                    transaction.position(self._keeper, *source, position)

    @property
    def _reader(self) -> str:
        return f"pipeline:{self.pipeline.name}"

    @property
    def _keeper(self) -> str:
        return f"checkpoint:{self.pipeline.name}"

    def _enter(self, state: str) -> None:
        if self.state.state != state:
            self.state.state = state
            self.state.since_us = self._clock.now_us()

    def _fail(self, error: str) -> None:
        self.state.last_error = error
        self._enter("failed")


def _order(item: tuple[Input, Rows]) -> Input:
    return item[0]


def _age(batches: Iterable[Rows], now_us: int) -> float | None:
    """Seconds since the oldest of these rows was accepted, where rows tell."""
    oldest = None
    for rows in batches:
        if "received_at" in rows.schema.names and rows.num_rows:
            value = pc.min(rows.column("received_at")).value
            oldest = value if oldest is None or (value is not None and value < oldest) else oldest
    return None if oldest is None else max(0.0, (now_us - oldest) / 1_000_000)
