"""What a configuration implies without being said: keys of output topics, and columns that only a table outside knows."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.config import Config, load_config
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.local import Worker
from headrace.errors import ConfigError
from headrace.log.memory import MemoryLog
from headrace.model import Span

HEAT = """
topics: {heat: {partitions: 3}}
pipelines:
  heat:
    from: events
    steps:
      - where: payload.temperature > 0
      - {last}
    to: heat
"""


def read(tmp_path: Path, text: str, **options: object) -> Config:
    path = tmp_path / "headrace.yaml"
    path.write_text(text, "utf-8")
    return load_config(path, env={}, **options)  # type: ignore[arg-type]


# -- the key of an output topic --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "key"),
    [
        ('window: {length: 10s, by: payload.room, count: "*"}', ("room",)),
        ('window: {length: 10s, by: [source_id, payload.room.name], count: "*"}', ("source_id", "name")),
        # The column `payload` is still there, but no `room`; rows that name their source are kept together by it.
        ("dedupe: {by: payload.room, within: 10s}", ("source_id",)),
        # `timestamp` is another column than the one in the payload.
        ("dedupe: {by: payload.timestamp, within: 10s}", ("source_id",)),
        ("dedupe: {by: event_type, within: 10s}", ("event_type",)),
    ],
)
def test_the_output_is_cut_by_the_columns_that_the_last_key_became(
    last: str, key: tuple[str, ...], tmp_path: Path
) -> None:
    assert read(tmp_path, HEAT.replace("{last}", last)).topics["heat"].key == key


def test_a_key_that_is_renamed_away_is_none(tmp_path: Path) -> None:
    last = (
        'window: {length: 10s, by: payload.room, count: "*"}\n      - select: {place: room, at: window_start}'
    )
    assert read(tmp_path, HEAT.replace("{last}", last)).topics["heat"].key == ()


def test_windows_of_one_nested_key_are_in_one_partition(tmp_path: Path) -> None:
    config = read(tmp_path, HEAT.replace("{last}", 'window: {length: 1s, by: payload.room, count: "*"}'))
    clock = FakeClock()
    log = MemoryLog(clock=clock)
    for topic in config.topics.values():
        log.create(topic)
    rooms = [f"room-{i % 12}" for i in range(600)]
    rows = pa.RecordBatch.from_pydict(
        {
            "source_id": [f"device-{i % 7}" for i in range(600)],
            "timestamp": pa.array([i * 100_000 for i in range(600)], pa.timestamp("us", "UTC")),
            "payload": [{"temperature": 1.0, "room": room} for room in rooms],
        }
    )
    log.append("events", 0, rows)
    worker = Worker(config.pipelines["heat"], log, clock=clock, checkpoints=CheckpointStore(tmp_path / "c"))
    worker.open()
    assert worker.step()
    found: dict[str, set[int]] = {}
    for partition in range(3):
        extent = log.extent("heat", partition)
        if len(extent):
            part = log.read("heat", partition, Span(extent.start, extent.end))
            for room in part.column("room").to_pylist():
                found.setdefault(room, set()).add(partition)
    assert set(found) == set(rooms)
    assert all(len(partitions) == 1 for partitions in found.values())
    assert len(set.union(*found.values())) == 3, "the windows are spread"


# -- columns that only a table outside knows ---------------------------------------------------------

ENRICH = """
pipelines:
  rooms:
    from: events
    steps:
      - enrich: {options}
      - where: floor > 2
    to: placed
  after:
    from: placed
    steps: [where: "nonsense > 3"]
    to: later
sinks: {kept: {kind: console, from: placed}}
"""


def test_a_table_that_cannot_be_reached_is_a_problem_with_its_position(tmp_path: Path) -> None:
    options = f'{{table: "sqlite:///{tmp_path}/none/x.db", query: "select id, floor from r", on: {{source_id: id}}}}'
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, ENRICH.replace("{options}", options))
    (problem,) = caught.value.problems  # what follows from it is not told as well
    assert (problem.line, problem.where) == (6, "pipelines.rooms.steps[0].enrich")
    assert "unable to open database file" in problem.what
    assert "say `types`" in problem.what


@pytest.mark.parametrize(
    ("table", "what"),
    [
        (
            '"postgresql://u:secret@192.0.2.1/plant", query: "select id, floor from r"',
            "database postgresql://192.0.2.1",
        ),
        ("nowhere/rooms.csv", "nowhere/rooms.csv, which is not there"),
    ],
)
def test_without_asking_outside_the_columns_are_unknown_and_that_is_a_warning(
    table: str, what: str, tmp_path: Path
) -> None:
    text = ENRICH.replace("{options}", f"{{table: {table}, on: {{source_id: id}}}}")
    config = read(tmp_path, text, ask=False)
    (warning,) = config.warnings
    assert warning.line == 6
    assert what in warning.what
    assert "secret" not in warning.what
    assert "placed" not in config.topics
    assert set(config.pipelines) == {"rooms", "after"}


def test_declared_types_are_checked_without_the_table(tmp_path: Path) -> None:
    options = "{table: nowhere/rooms.csv, on: {source_id: id}, columns: [floor], types: {floor: int}}"
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, ENRICH.replace("{options}", options), ask=False)
    (problem,) = caught.value.problems
    assert "nonsense" in problem.what
    text = ENRICH.replace("{options}", options).replace("nonsense", "floor")
    config = read(tmp_path, text, ask=False)
    assert not config.warnings
    assert config.topics["later"].schema.field("floor").type == pa.int64()


def test_a_table_that_is_there_is_read(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "plant.db") as connection:
        connection.execute("create table r (id text, floor integer)")
        connection.execute("insert into r values ('a', 3)")
    connection.close()
    options = (
        f'{{table: "sqlite:///{tmp_path}/plant.db", query: "select id, floor from r", on: {{source_id: id}}}}'
    )
    text = ENRICH.replace("{options}", options).replace("nonsense", "floor")
    assert read(tmp_path, text).topics["later"].schema.field("floor").type == pa.int64()
