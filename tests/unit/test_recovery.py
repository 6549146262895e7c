"""A worker that is stopped, broken or changed at a bad moment goes on as if it hadn't been."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.local import Worker
from headrace.errors import StorageFullError
from headrace.log.draft import Draft
from headrace.log.memory import MemoryLog
from headrace.model import DEAD_LETTERS, TIMESTAMP, Topic
from headrace.pipeline import Pipeline, pipeline

SCHEMA = pa.schema(
    [pa.field("sensor_id", pa.string()), pa.field("timestamp", TIMESTAMP), pa.field("n", pa.int64())]
)
START_US = 1_700_000_000_000_000
SUMS = pipeline("sums", "numbers").window("10s", by="sensor_id", sum="n", count="*").to("sums")


class FullLog(MemoryLog):
    """A log whose disk is full for one transaction, when `full` is set; `full` is told."""

    full: threading.Event | None = None

    def transaction(self) -> Draft:
        if self.full is not None:
            self.full.set()
            self.full = None
            raise StorageFullError("the disk is full")
        return super().transaction()


class Place:
    def __init__(self, folder: Path, plan: Pipeline = SUMS) -> None:
        self.clock = FakeClock()
        self.log = FullLog(clock=self.clock)
        self.store = CheckpointStore(folder)
        self.folder = folder
        topic = self.log.create(Topic("numbers", SCHEMA, at="timestamp"))
        self.log.create(Topic("dead_letters", DEAD_LETTERS))
        self.log.create(Topic(plan.output, plan.schemas({"numbers": topic})[-1]))

    def worker(self, plan: Pipeline = SUMS) -> Worker:
        worker = Worker(plan, self.log, clock=self.clock, checkpoints=self.store)
        worker.open()
        return worker

    def feed(self, *numbers: int, second: float = 0) -> None:
        at = START_US + round(second * 1_000_000)
        rows = {"sensor_id": ["a"] * len(numbers), "timestamp": [at] * len(numbers), "n": list(numbers)}
        self.log.append("numbers", 0, pa.RecordBatch.from_pydict(rows, schema=SCHEMA))

    def found(self, *columns: str) -> list[Any]:
        rows = self.log.read("sums", 0, self.log.extent("sums", 0)).to_pylist()
        return [tuple(row[c] for c in columns) for row in rows]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "checkpoints")


def test_a_stop_while_the_disk_is_full_keeps_no_state_that_is_ahead(place: Place) -> None:
    worker = Worker(SUMS, place.log, clock=place.clock, checkpoints=place.store)
    place.feed(1)
    stop = threading.Event()
    steps = []

    def observe(pipeline: str, seconds: float, age: float | None) -> None:
        """After the first epoch: more rows, and no room for them until the stop."""
        if not steps:
            steps.append(seconds)
            place.feed(2)
            place.log.full = stop

    worker._observe = observe
    worker.run(stop)
    assert "could not be written" in worker.state.last_error
    again = place.worker()
    place.feed(4, second=20)
    again.step()
    assert place.found("sum", "count") == [(3, 2)]


@pytest.mark.parametrize("damage", ["0.arrow", "meta.json"])
def test_a_damaged_checkpoint_leads_to_the_same_rows(damage: str, place: Place) -> None:
    worker = place.worker()
    for number in (1, 2, 4):
        place.feed(number)
        worker.step()
        worker.checkpoint()
    newest = max((place.folder / "sums" / "0").iterdir(), key=lambda path: int(path.name))
    (newest / damage).write_bytes(b"\0" * 10)
    again = place.worker()
    place.feed(8)
    again.step()
    place.feed(0, second=20)
    again.step()
    assert place.found("sum", "count") == [(15, 4)]


def test_the_watermark_goes_on_from_a_checkpoint(place: Place) -> None:
    worker = place.worker()
    place.feed(1)
    worker.step()
    place.clock.advance(60)  # silence: the watermark goes on with the clock, and the window closes
    worker.step()
    assert place.found("sum") == [(1,)]
    reached = place.log.counts()["sums", 0][0].watermark_us
    assert reached > START_US + 10_000_000
    worker.checkpoint()
    again = place.worker()
    place.feed(2, second=1)  # late for the window that is out
    again.step()
    assert place.log.counts()["sums", 0][0].watermark_us == reached
    assert place.log.counts()["sums", 0][1]["late"] == 1
    assert place.found("sum") == [(1,)]


def test_a_changed_step_begins_without_the_state_of_the_one_before(place: Place) -> None:
    worker = place.worker()
    place.feed(1)
    worker.step()
    worker.checkpoint()
    changed = pipeline("sums", "numbers").window("20s", by="sensor_id", sum="n", count="*").to("sums")
    again = place.worker(changed)
    place.feed(2, second=1)
    place.feed(0, second=40)
    again.step()
    assert place.found("sum", "count") == [(2, 1)]


def test_every_row_of_an_epoch_is_counted_once(tmp_path: Path) -> None:
    plan = (
        pipeline("sums", "numbers")
        .validate(rules={"small": "n <= 10"})
        .where("n <> 3")
        .dedupe("n", within="10s")
        .to("sums")
    )
    place = Place(tmp_path, plan)
    worker = place.worker(plan)
    place.feed(1, 2, 2, 3, 3, 3, 11)
    worker.step()
    counts = dict(place.log.counts()["sums", 0][1])
    assert counts == {"received": 7, "sent": 2, "filtered": 4, "dead": 1, "late": 0, "emitted": 2}
