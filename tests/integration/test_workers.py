"""Several workers, in threads and in processes: the same rows as one, also when their number changes or one is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.clock import SystemClock
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.group import Group, ProcessGroup, ThreadGroup
from headrace.engine.local import EngineLimits
from headrace.log.sqlite import SqliteLog
from headrace.model import DEAD_LETTERS, TIMESTAMP, Topic, split
from headrace.pipeline import pipeline
from headrace.steps.window import Window
from headrace.units import Duration

START = 1_700_000_000_000_000
SENSORS = [f"sensor-{n}" for n in range(40)]
INPUT = Topic(
    "readings",
    pa.schema(
        [
            pa.field("timestamp", TIMESTAMP),
            pa.field("sensor_id", pa.string()),
            pa.field("value", pa.float64()),
        ]
    ),
    partitions=4,
    key=("sensor_id",),
)
HEAT = (
    pipeline("heat", "readings", delay="1s", idle_after="4s")
    .step(Window(length=Duration.parse("5s"), by="sensor_id", count="*", sum="value"))
    .to("heat_windows")
)
LIMITS = EngineLimits(max_rows=500, checkpoint_interval=Duration.parse("300ms"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    opened = SqliteLog(tmp_path / "log.db", clock=SystemClock(), observe=lambda name, value: None)
    opened.create(Topic("dead_letters", DEAD_LETTERS))
    topic = opened.create(INPUT)
    output = HEAT.schemas({"readings": topic})[-1]
    opened.create(Topic("heat_windows", output, partitions=2, key=("sensor_id",), at="window_end"))
    yield opened
    opened.close()


def feed(log: SqliteLog, batch: int) -> int:
    """200 readings, ten seconds of event time."""
    random_ = random.Random(batch)
    times = [START + batch * 10_000_000 + i * 50_000 for i in range(200)]
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array(times, TIMESTAMP),
            pa.array([random_.choice(SENSORS) for _ in times]),
            pa.array([float(random_.randint(0, 9)) for _ in times]),
        ],
        schema=INPUT.schema,
    )
    for partition, part in split(rows, ("sensor_id",), 4).items():
        log.append("readings", partition, part)
    return sum(rows.column(2).to_pylist())


def results(log: SqliteLog) -> list[tuple[str, int, float]]:
    rows = [
        row
        for p in range(2)
        for row in log.read("heat_windows", p, log.extent("heat_windows", p)).to_pylist()
    ]
    keys = [(row["sensor_id"], row["window_start"]) for row in rows]
    assert len(keys) == len(set(keys)), "a window came twice"
    return [(row["sensor_id"], row["count"], row["sum"]) for row in rows]


def wait_for(log: SqliteLog, count: int, group: Group) -> None:
    deadline = time.monotonic() + 30
    while sum(row[1] for row in results(log)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
        assert [s for states in group.states().values() for s in states if s.state == "failed"] == []


def processes(log: SqliteLog, tmp_path: Path, workers: int) -> ProcessGroup:
    return ProcessGroup(log, "sqlite", tmp_path, clock=SystemClock(), limits=LIMITS, workers=workers)


@pytest.mark.slow
def test_changing_the_number_of_workers_keeps_the_state(log: SqliteLog, tmp_path: Path) -> None:
    total, batch = 0.0, 0
    for workers in (1, 3, 2, 1):
        group: Group
        if workers == 1:
            store = CheckpointStore(tmp_path / "checkpoints")
            group = ThreadGroup(log, store, clock=SystemClock(), limits=LIMITS)
        else:
            group = processes(log, tmp_path, workers)
        group.start(HEAT)
        for _ in range(5):
            total += feed(log, batch)
            batch += 1
        lag = 1
        deadline = time.monotonic() + 20
        while lag and time.monotonic() < deadline:
            time.sleep(0.05)
            positions = log.positions("pipeline:heat")
            lag = sum(log.extent("readings", p).end - positions.get(("readings", p), 0) for p in range(4))
        assert lag == 0
        if batch == 20:
            wait_for(log, batch * 200, group)  # silence closes the last windows
        group.stop("heat")
        group.close()
    found = results(log)
    assert sum(row[1] for row in found) == 4000
    assert sum(row[2] for row in found) == total


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced_and_repeats_nothing(log: SqliteLog, tmp_path: Path) -> None:
    group = processes(log, tmp_path, 2)
    try:
        group.start(HEAT)
        total = 0.0
        for batch in range(12):
            total += feed(log, batch)
            if batch in (3, 7):
                time.sleep(0.5)
                child = group._children[batch % 2]._process
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
        wait_for(log, 2400, group)
        found = results(log)
        assert sum(row[1] for row in found) == 2400
        assert sum(row[2] for row in found) == total
    finally:
        group.close()
