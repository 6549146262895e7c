"""A full disk: senders are told so, what is there can still be read, and everything goes on by itself once there is room."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.load import Sender
from tests.integration.process import Headrace

_TEST = "test_a_full_disk_refuses_writes_serves_reads_and_recovers"
SIZE = 64 * 2**20
CONFIG = """
topics:
  events:
    schema: {payload: {seq: double, padding: string}}
pipelines:
  counted:
    from: events
    delay: 5s # a body that waits for the disk was stamped when it came
    idle_after: 1s
    steps:
      - window: {length: 1s, by: source_id, count: payload.seq, sum: payload.seq}
    to: counted
engine: {checkpoint_interval: 1s}
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of SIZE bytes, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.skipif(os.geteuid() == 0, reason="root mounts the small disk itself, in the test below")
def test_a_full_disk_without_root() -> None:
    """The test below in a user namespace, in which anybody may mount."""
    command = [
        "unshare",
        "-Urm",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}::{_TEST}",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=190)
    assert ran.returncode == 0, ran.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="run by the test above, in a user namespace")
def test_a_full_disk_refuses_writes_serves_reads_and_recovers(tmp_path: Path, small_disk: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(CONFIG)
    ballast = small_disk / "ballast"
    ballast.write_bytes(os.urandom(32 * 2**20))
    with Headrace(config, small_disk / "data") as server, contextlib.ExitStack() as senders:
        load = [senders.enter_context(Sender(f"s{n}", server.port, rows=100, padding=500)) for n in range(2)]
        deadline = time.monotonic() + 60
        while not all(507 in sender.statuses for sender in load) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [set(sender.statuses) for sender in load] == [{200, 507}] * 2
        assert all(sender.retry_after for sender in load)
        time.sleep(2)  # full, and asked again and again

        # Reads go on, and say what is the matter.
        stored = server.query("SELECT count(*) AS n FROM events")[0]["n"]
        assert stored >= sum(sender.acknowledged for sender in load)
        rows = server.get("/data?topic=events&limit=5")
        assert len(rows["data"]) == 5
        assert server.request("GET", "/metrics")[0] == 200
        status, body, _ = server.request("GET", "/api/v1/health")
        health = json.loads(body)
        disk = next(c for c in health["components"] if c["name"] == "disk")
        assert (health["status"], disk["status"]) == ("failing", "failing")
        assert server.request("GET", "/health")[0] in (200, 503)
        event = json.dumps({"sourceId": "x", "payload": {"seq": 1, "padding": "x" * 300_000}}).encode()
        status, body, headers = server.request("POST", "/ingest", event, {"Content-Type": "application/json"})
        assert status == 507
        assert headers["content-type"] == "application/problem+json"
        assert int(headers["retry-after"]) >= 1
        assert "disk" in json.loads(body)["title"]

        # Room again: it goes on without being asked.
        held = [sender.acknowledged for sender in load]
        ballast.unlink()
        freed = time.monotonic()
        while any(s.acknowledged <= before for s, before in zip(load, held, strict=True)):
            assert time.monotonic() < freed + 10, "still refusing"
            time.sleep(0.02)
        print(f"accepted again {time.monotonic() - freed:.2f} s after space was freed")
        for sender in load:
            sender.stop()  # at once, or the disk is full again
        for sender in load:
            where = f"WHERE source_id = '{sender.key}'"
            found = server.query(
                f"SELECT count(*) AS n, count(DISTINCT payload.seq) AS d FROM events {where}"
            )
            assert found == [{"n": sender.acknowledged, "d": sender.acknowledged}]
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                sql = f"SELECT CAST(sum(count) AS BIGINT) AS n, CAST(sum(sum) AS BIGINT) AS s FROM counted {where}"
                windows = server.query(sql)[0]
                if windows["n"] == sender.acknowledged:
                    break
                time.sleep(0.3)
            n = sender.acknowledged
            assert windows == {"n": n, "s": n * (n - 1) // 2}, server.get("/api/stream/status")["pipelines"][
                "counted"
            ]["last_error"]
        status, body, _ = server.request("GET", "/api/v1/health")
        states = {c["name"]: c["status"] for c in json.loads(body)["components"]}
        assert states["counted"] == "ok"
    assert shutil.disk_usage(small_disk).free > 0
