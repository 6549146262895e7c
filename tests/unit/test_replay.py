"""replay: an unchanged pipeline gives what it gave; a changed one shows what is different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.config import Config, load_config
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.local import Worker
from headrace.engine.replay import Replay, replay
from headrace.log.memory import MemoryLog
from headrace.model import TIMESTAMP

TEXT = """
topics: {events: {schema: {payload: {t: double, room: string}}}, windows: {partitions: 2}}
pipelines:
  ten: {from: events, delay: 1s, steps: [{derive: {period: "'10s'"}}, {window: {length: 10s, by: [source_id, period], avg: payload.t}}], to: windows}
  minute: {from: events, delay: 1s, steps: [{derive: {period: "'1m'"}}, {window: {length: 1m, by: [source_id, period], avg: payload.t}}], to: windows}
  sessions: {from: events, delay: 1s, steps: [window: {gap: 5s, by: source_id, count: "*"}], to: visits}
  hot: {from: events, steps: [where: payload.t > 10, select: {s: source_id, timestamp: timestamp, t: payload.t}], to: hot}
"""
START = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryLog, FakeClock, Path]:
    """Forty minutes of events, one a second, run through in epochs of a minute."""
    tmp_path = tmp_path_factory.mktemp("replay")
    config, clock = read(tmp_path, TEXT), FakeClock(START)
    log = MemoryLog(clock=clock)
    for topic in config.topics.values():
        log.create(topic)
    store = CheckpointStore(tmp_path / "c")
    workers = [Worker(p, log, clock=clock, checkpoints=store) for p in config.pipelines.values()]
    for worker in workers:
        worker.open()
    for minute in range(40):
        seconds = [minute * 60 + i for i in range(60) if i % 20 < 13]  # with pauses, so that sessions end
        rows = {
            "source_id": [f"device-{second // 3 % 3}" for second in seconds],
            "timestamp": pa.array([START + second * 1_000_000 for second in seconds], TIMESTAMP),
            "payload": [{"t": second % 17 * 1.1, "room": None} for second in seconds],
        }
        log.append("events", 0, pa.RecordBatch.from_pydict(rows))
        for worker in workers:
            worker.step()
        clock.advance(60)
    return log, clock, tmp_path


def read(tmp_path: Path, text: str) -> Config:
    (tmp_path / "headrace.yaml").write_text(text, "utf-8")
    return load_config(tmp_path / "headrace.yaml", env={})


def again(place: Any, name: str, old: str = "", new: str = "", ago: int = 7200, until: int = 0) -> Replay:
    log, clock, path = place
    assert old in TEXT
    pipelines = read(path, TEXT.replace(old, new) if old else TEXT).pipelines
    now = clock.now_us()
    others = [p for p in pipelines.values() if p.output == pipelines[name].output and p.name != name]
    start, end = now - ago * 1_000_000, now - until * 1_000_000
    shadow = f"shadow_{sum(name.startswith('shadow_') for name in log.topics())}"
    return replay(pipelines[name], log, start_us=start, end_us=end, others=others, shadow=shadow)


@pytest.mark.parametrize("name", ["ten", "minute", "sessions", "hot"])
@pytest.mark.parametrize(("ago", "until"), [(7200, 0), (1200, 0), (1230, 0)])
def test_an_unchanged_pipeline_gives_no_difference(name: str, ago: int, until: int, place: Any) -> None:
    result = again(place, name, ago=ago, until=until)
    assert result.missing.to_pylist() == []
    assert result.extra.to_pylist() == []
    assert not result.differs
    assert result.same > 20
    assert result.written > 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ten", "length: 10s", "length: 20s"),
        (
            "minute",
            "avg: payload.t}}], to: windows}\n  sess",
            "aggregate: {avg: max(payload.t)}}}], to: windows}\n  sess",
        ),
        ("sessions", "gap: 5s", "gap: 8s"),
        ("hot", "payload.t > 10", "payload.t > 9"),
        ("hot", "t: payload.t}", "t: round(payload.t)}"),
        ("hot", "t: payload.t}", "t: \"CAST(payload.t AS VARCHAR) || ' C'\"}"),
    ],
)
def test_a_changed_pipeline_shows_what_is_different(name: str, old: str, new: str, place: Any) -> None:
    result = again(place, name, old, new)
    assert result.differs
    assert result.extra.num_rows


def test_fewer_rows_are_missing_and_none_is_new(place: Any) -> None:
    result = again(place, "hot", "payload.t > 10", "payload.t > 12")
    assert result.missing.num_rows > 0
    assert min(result.missing.column("t").to_pylist()) <= 12
    assert result.extra.num_rows == 0


def test_columns_that_came_or_went_are_named(place: Any) -> None:
    result = again(place, "hot", "t: payload.t}", "u: payload.t}")
    assert (result.lost, result.added, result.differs) == (["t"], ["u"], True)


def test_nothing_that_runs_is_touched(place: Any) -> None:
    log = place[0]
    readers, epochs, rows = dict(log.readers()), dict(log.counts()), log.extent("hot", 0)
    pipeline = read(place[2], TEXT).pipelines["hot"]
    result = replay(pipeline, log, start_us=0, end_us=place[1].now_us())
    assert (dict(log.readers()), dict(log.counts()), log.extent("hot", 0)) == (readers, epochs, rows)
    assert result.shadow == "hot_replay"
    assert len(log.extent("hot_replay", 0)) == result.written
