"""A field that nobody has sent yet may turn out to be anything: what is made of it takes the type of its first value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.config import Config, load_config
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.local import Worker
from headrace.log.memory import MemoryLog
from headrace.log.sqlite import SqliteLog
from headrace.model import EVENTS, TIMESTAMP, Span, Topic

SECOND = 1_000_000


def read(tmp_path: Path, *steps: str) -> Config:
    path = tmp_path / "headrace.yaml"
    lines = "".join(f"      - {step}\n" for step in steps)
    text = f"pipelines:\n  p:\n    from: events\n    steps:\n{lines}    to: out\n"
    path.write_text(text + '  q: {from: out, steps: [where: "1 = 1"], to: later}\n', "utf-8")
    return load_config(path, env={})


def events(start: int, payloads: list[dict[str, Any] | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "source_id": ["s"] * len(payloads),
            "timestamp": pa.array([(start + i) * SECOND for i in range(len(payloads))], TIMESTAMP),
            "payload": payloads,
        }
    )


def everything(log: MemoryLog, topic: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = log.read(topic, 0, log.extent(topic, 0)).to_pylist()
    return rows


VALUES = ["lab", True, 7, 2.5, ["a"], {"x": "y"}]
PLANS = {
    "select": ("room", ["select: [source_id, timestamp, payload.room]"]),
    "derive": ("room", ["derive: {room: payload.room}", "where: source_id = 's'"]),
    "window last": ("last", ["window: {length: 1s, by: source_id, last: payload.room}"]),
    "window by": ("room", ["window: {length: 1s, by: payload.room, count: '*'}"]),
}
CASES = [
    (name, value)
    for name in PLANS
    for value in VALUES
    if name != "window by" or not isinstance(value, list | dict)
]


@pytest.mark.parametrize(("plan", "value"), CASES, ids=str)
def test_the_first_value_brings_the_type(plan: str, value: Any, tmp_path: Path) -> None:
    column, steps = PLANS[plan]
    config, clock = read(tmp_path, *steps), FakeClock()
    log = MemoryLog(clock=clock)
    for topic in config.topics.values():
        log.create(topic)
    store = CheckpointStore(tmp_path / "c")
    workers = [Worker(config.pipelines[name], log, clock=clock, checkpoints=store) for name in ("p", "q")]
    for worker in workers:
        worker.open()
    for batch in (
        events(0, [{"other": 1}, None]),
        events(10, [{"room": value}, {"room": value}]),
        events(20, [None]),
    ):
        log.append("events", 0, batch)
        for worker in workers:
            worker.step()
    workers[0].checkpoint()
    again = Worker(config.pipelines["p"], log, clock=clock, checkpoints=store)
    again.open()  # restart in between
    log.append("events", 0, events(30, [{"room": value}] * 2))
    again.step()
    workers[1].step()
    for topic in config.topics.values():
        log.create(topic)  # as the next start does
    for topic in ("out", "later"):
        found = [row[column] for row in everything(log, topic)]
        assert found[:1] == [None]
        assert value in found
        assert {type(x) for x in found} == {type(None), type(value)}


def test_a_column_without_a_type_is_kept_by_the_log(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", clock=FakeClock(), observe=lambda name, value: None)
    log.create(Topic("t", pa.schema([*list(EVENTS)[:2], pa.field("x", pa.null())])))
    rows = {"source_id": ["a"], "timestamp": pa.array([1], TIMESTAMP)}
    log.append("t", 0, pa.RecordBatch.from_pydict({**rows, "x": pa.nulls(1)}))
    log.append("t", 0, pa.RecordBatch.from_pydict({**rows, "x": ["now"]}))
    assert log.read("t", 0, Span(0, 2)).column("x").to_pylist() == [None, "now"]
    log.close()


def test_a_table_is_looked_up_once_the_key_has_come(tmp_path: Path) -> None:
    (tmp_path / "rooms.csv").write_text("id,floor\nlab,3\nhall,1\n")
    config = read(tmp_path, f"enrich: {{table: {tmp_path}/rooms.csv, on: {{payload.room: id}}}}")
    assert config.topics["out"].schema.field("floor").type == pa.int64()
    clock = FakeClock()
    log = MemoryLog(clock=clock)
    for topic in config.topics.values():
        log.create(topic)
    worker = Worker(config.pipelines["p"], log, clock=clock, checkpoints=CheckpointStore(tmp_path / "c"))
    worker.open()
    for batch in (events(0, [{"other": 1}]), events(1, [{"room": "lab"}, {"room": "cellar"}])):
        log.append("events", 0, batch)
        worker.step()
    assert [row["floor"] for row in everything(log, "out")] == [None, 3, None]
