"""A stream that has stopped still gives its last windows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.engine.local import Worker
from headrace.log.memory import MemoryLog
from headrace.model import DEAD_LETTERS, TIMESTAMP, Topic, split
from headrace.pipeline import pipeline
from headrace.testing.golden import MemoryCheckpoints

START_US = 1_700_000_000_000_000
ROWS = pa.RecordBatch.from_arrays(
    [pa.array(["a", "a"]), pa.array([START_US, START_US + 1_000_000], TIMESTAMP)],
    schema=pa.schema([pa.field("source_id", pa.string()), pa.field("timestamp", TIMESTAMP)]),
)


@pytest.mark.parametrize("partitions", [1, 2, 3])
def test_windows_come_out_though_other_partitions_never_had_a_row(partitions: int) -> None:
    clock = FakeClock()
    log = MemoryLog(clock=clock)
    described = pipeline("counted", "events").window("10s", by="source_id", count="*").to("counts")
    events = Topic("events", ROWS.schema, partitions=partitions, key=("source_id",))
    counts = described.schemas({"events": events})[-1]
    for topic in (events, Topic("counts", counts, at="window_start"), Topic("dead_letters", DEAD_LETTERS)):
        log.create(topic)
    for partition, rows in split(ROWS, events.key, partitions).items():
        log.append("events", partition, rows)
    worker = Worker(described, log, clock=clock, checkpoints=MemoryCheckpoints())
    worker.open()
    assert worker.step()
    clock.advance(60)
    assert worker.step()
    assert log.read("counts", 0, log.extent("counts", 0)).column("count").to_pylist() == [2]
    log.close()
