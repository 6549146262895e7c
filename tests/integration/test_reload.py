"""A changed file is taken over by the running process, under load: at an epoch boundary, nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.load import Sender
from tests.integration.process import Headrace

CONFIG = """
topics:
  events:
    schema: {payload: {seq: double}}
pipelines:
  counted:
    from: events
    delay: 1s
    idle_after: 1s
    steps:
      - window: {length: LENGTH, by: source_id, count: payload.seq, sum: payload.seq}
    to: counted
"""
COPY = """
  copied:
    from: events
    steps:
      - select: {source_id: source_id, timestamp: timestamp, seq: payload.seq}
    to: copied
"""
SINK = """
sinks:
  archive:
    kind: files
    from: events
    path: archive
    format: ndjson
    flush_rows: 200
    flush_interval: 100ms
"""


def wait_for(what: Callable[[], Any], wanted: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    found = what()
    while found != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
        found = what()
    assert found == wanted


class Case:
    """A server under load whose file can be exchanged."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "headrace.yaml"
        self.write("1s")
        self.server = Headrace(self.file, folder / "data").wait_ready()

    def write(self, length: str, more: str = "") -> None:
        self.text(CONFIG.replace("LENGTH", length) + more)

    def text(self, text: str) -> None:
        """Written whole, as editors do."""
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.file)

    def said(self, event: str) -> list[dict[str, Any]]:
        """Lines of the log for an event."""
        lines = [line for line in self.server.log_file.read_text().splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if event in line["event"]]

    def applied(self, count: int) -> None:
        wait_for(lambda: len(self.said("configuration applied")), count, 10)

    def one(self, sql: str) -> int:
        return int(self.server.query(sql)[0]["n"] or 0)

    def windows_hold(self, count: int) -> None:
        """Every event is in exactly one window."""
        wait_for(lambda: self.one("SELECT CAST(sum(count) AS BIGINT) AS n FROM counted"), count)
        assert self.one("SELECT CAST(sum(sum) AS BIGINT) AS n FROM counted") == count * (count - 1) // 2


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    yield made
    made.server.terminate()


@pytest.mark.slow
def test_changing_a_window_under_load_counts_every_row_once(case: Case) -> None:
    with Sender("a", case.server.port) as sender:
        for number, length in enumerate(("3s", "2s", "1s"), 1):
            time.sleep(1.2)
            case.write(length)
            case.applied(number)
        time.sleep(1.2)
    assert set(sender.statuses) == {200}
    assert case.one("SELECT count(*) AS n FROM events") == sender.acknowledged
    case.windows_hold(sender.acknowledged)
    lengths = case.server.query(
        "SELECT DISTINCT epoch_us(window_end) - epoch_us(window_start) AS us FROM counted"
    )
    assert {row["us"] for row in lengths} == {1_000_000, 2_000_000, 3_000_000}
    assert case.one("SELECT count(*) AS n FROM dead_letters") == 0


@pytest.mark.slow
def test_pipelines_and_sinks_come_and_go_under_load(case: Case) -> None:
    with Sender("a", case.server.port) as sender:
        time.sleep(0.5)
        case.write("1s", COPY + SINK)
        case.applied(1)
        time.sleep(1)
        case.write("1s", COPY)  # the sink is gone
        case.applied(2)
        time.sleep(0.5)
    total = sender.acknowledged
    assert set(sender.statuses) == {200}
    wait_for(lambda: case.one("SELECT count(*) AS n FROM copied"), total)
    assert (
        case.one("SELECT count(DISTINCT seq) AS n FROM copied") == total
    )  # also what came before the pipeline
    case.windows_hold(total)

    def archived() -> list[int]:
        files = case.server.data_dir.glob("archive/events/0/*.ndjson")
        return sorted(
            int(json.loads(line)["payload"]["seq"])
            for file in files
            for line in file.read_text().splitlines()
        )

    before = archived()
    assert before == list(range(len(before)))  # once each
    assert 0 < len(before) < total
    case.write("1s", COPY + SINK)  # back again: it goes on where it stopped
    case.applied(3)
    wait_for(archived, list(range(total)))


@pytest.mark.slow
def test_a_broken_file_changes_nothing_and_is_told_once(case: Case) -> None:
    with Sender("a", case.server.port) as sender:
        for number, broken in enumerate(
            (
                CONFIG.replace("LENGTH", "1s").replace("window:", "windw:"),
                CONFIG.replace("LENGTH", "1s") + "  broken: [",
                CONFIG.replace("LENGTH", "2s").replace("sum: payload.seq", "sum: nothing_there"),
                CONFIG.replace("LENGTH", "1s").replace(
                    "{seq: double}", "{seq: timestamp}"
                ),  # contradicts what is stored
            ),
            1,
        ):
            case.text(broken)
            wait_for(lambda: len(case.said("the changed configuration is not used")), number, 10)
            time.sleep(1.2)
            assert len(case.said("the changed configuration is not used")) == number
        case.write("1s")
        case.applied(1)
    assert all(line["level"] == "error" for line in case.said("is not used"))
    assert set(sender.statuses) == {200}
    case.windows_hold(sender.acknowledged)


@pytest.mark.slow
def test_sighup_takes_the_file_over_at_once(case: Case) -> None:
    stamp = case.file.stat()
    case.write("1s", COPY)
    os.utime(case.file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # by its time the file hasn't changed
    time.sleep(1.5)
    assert case.said("configuration applied") == []
    case.server.process.send_signal(signal.SIGHUP)
    case.applied(1)
    case.server.post([{"sourceId": "a", "payload": {"seq": 1}}])
    wait_for(lambda: case.one("SELECT count(*) AS n FROM copied"), 1)
