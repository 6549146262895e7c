"""Parts of `engine_conformance`: a world that outlives its workers, rows to feed it, and ways to die."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self, cast

import pyarrow as pa

from headrace.clock import Clock, FakeClock
from headrace.engine.local import Checkpoints, EngineLimits, Worker
from headrace.log import Log
from headrace.model import DEAD_LETTERS, TIMESTAMP, Topic, split
from headrace.pipeline import Pipeline, pipeline
from headrace.units import Duration

START = 1_699_999_980_000_000  # a whole minute
SECOND = 1_000_000
READINGS = pa.schema(
    [pa.field("timestamp", TIMESTAMP), pa.field("sensor_id", pa.string()), pa.field("value", pa.float64())]
)
SUMS = (
    pipeline("sums", "readings", delay="2s").window("10s", by="sensor_id", count="*", sum="value").to("sums")
)
Reading = tuple[float, str, float]
"""Seconds after START, sensor, value."""


class Suite(Protocol):
    """What says where things are kept."""

    durable: bool

    def open(self, path: Path, clock: Clock) -> Log: ...
    def checkpoints(self, path: Path) -> Checkpoints: ...


class Crash(BaseException):
    """The process died. Not an Exception, so that nothing in headrace can catch it."""


class World:
    """A log, checkpoints and a clock that outlive the workers; `crash` is the end of a process."""

    def __init__(self, suite: Suite, path: Path, partitions: int = 2) -> None:
        self._suite, self._path = suite, path
        self.clock = FakeClock()
        self.log = suite.open(path, self.clock)
        self.kept = suite.checkpoints(path)
        self.log.create(Topic("dead_letters", DEAD_LETTERS))
        self.log.create(Topic("readings", READINGS, partitions=partitions, key=("sensor_id",)))

    def crash(self) -> None:
        """Everything in memory is gone; what was committed is there."""
        if self._suite.durable:
            self.log.close()
            self.log = self._suite.open(self._path, self.clock)
            self.kept = self._suite.checkpoints(self._path)
        else:
            cast(Any, self.log).crash()

    def worker(self, plan: Pipeline = SUMS, *, max_rows: int = 100_000, log: Log | None = None) -> Worker:
        """An open worker of `plan`; its output topic is made first."""
        schema = plan.schemas(self.log.topics())[-1]
        at = "window_end" if "window_end" in schema.names else "timestamp"
        self.log.create(Topic(plan.output, schema, at=at))
        limits = EngineLimits(max_rows=max_rows, checkpoint_interval=Duration.parse("1d"))
        made = Worker(plan, log or self.log, clock=self.clock, checkpoints=self.kept, limits=limits)
        made.open()
        return made

    def feed(self, readings: Sequence[Reading]) -> None:
        rows = pa.RecordBatch.from_arrays(
            [
                pa.array([START + round(at * SECOND) for at, _, _ in readings], TIMESTAMP),
                pa.array([sensor for _, sensor, _ in readings]),
                pa.array([value for _, _, value in readings]),
            ],
            schema=READINGS,
        )
        topic = self.log.topics()["readings"]
        for partition, part in split(rows, topic.key, topic.partitions).items():
            self.log.append("readings", partition, part)

    def silence(self, worker: Worker, seconds: float = 3600) -> None:
        """Nothing comes any more: time passes until every window is out."""
        self.drain(worker)
        self.clock.advance(seconds)
        self.drain(worker)

    @staticmethod
    def drain(worker: Worker) -> None:
        while worker.step():
            pass

    def rows(self, topic: str) -> list[dict[str, Any]]:
        """All rows of a topic."""
        found: list[dict[str, Any]] = []
        for partition in range(self.log.topics()[topic].partitions):
            found += self.log.read(topic, partition, self.log.extent(topic, partition)).to_pylist()
        return found

    def sums(self, topic: str = "sums") -> dict[tuple[str, int], tuple[int, float]]:
        """(sensor, window start in seconds) -> count, sum. Fails when a window came twice."""
        found = {}
        for row in self.rows(topic):
            key = (row["sensor_id"], round(row["window_start"].timestamp() - START / SECOND))
            assert key not in found, f"window {key} came twice"
            found[key] = (row["count"], row["sum"])
        return found


def expected(readings: Sequence[Reading], length: int = 10) -> dict[tuple[str, int], tuple[int, float]]:
    """The windows, the slow way."""
    windows: dict[tuple[str, int], list[float]] = defaultdict(list)
    for at, sensor, value in readings:
        windows[sensor, int(at // length) * length].append(value)
    return {key: (len(values), sum(values)) for key, values in windows.items()}


def readings(seed: int, count: int = 60) -> list[Reading]:
    """Three sensors, at most two seconds out of order."""
    random_ = random.Random(seed)  # noqa: S311 - reproducible on purpose
    return [
        (n / 2 + 2 - random_.choice([0, 0, 0.5, 1.5]), random_.choice("abc"), float(random_.randint(-5, 5)))
        for n in range(count)
    ]


class Dying:
    """A log whose process dies at the n-th transaction with an epoch, just before or just after it became durable."""

    def __init__(self, log: Log, after: int, *, committed: bool) -> None:
        self._log, self._after, self._committed = log, after, committed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def transaction(self) -> Any:
        return DyingTransaction(self, self._log.transaction())

    def ends(self) -> bool:
        self._after -= 1
        return self._after == 0

    @property
    def committed(self) -> bool:
        return self._committed


class DyingTransaction:
    def __init__(self, log: Dying, inner: Any) -> None:
        self._owner, self._inner, self._epoch = log, inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def epoch(self, *values: Any) -> None:
        self._epoch = True
        self._inner.epoch(*values)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        ends = self._epoch and error[0] is None and self._owner.ends()
        if ends and not self._owner.committed:
            with suppress(Crash):
                self._inner.__exit__(Crash, Crash(), None)
            raise Crash
        self._inner.__exit__(*error)
        if ends:
            raise Crash
