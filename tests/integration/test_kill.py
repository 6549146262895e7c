"""kill -9 of the real process under load: every acknowledged row is there afterwards, exactly once, in order per key,
in the log, in the windows and in Delta."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable

from headrace.clock import SystemClock
from headrace.log.sqlite import SqliteLog
from tests.integration.process import Headrace, free_port

KILLS = 60
SENDERS = 4
CONFIG = """
topics:
  events:
    schema: {payload: {seq: double}}
pipelines:
  counted:
    from: events
    delay: 2s
    idle_after: 1s
    steps:
      - window: {length: 1s, by: source_id, count: payload.seq, min: payload.seq, max: payload.seq}
    to: counted
sinks:
  lake:
    kind: delta
    from: [events, counted]
    path: lake
    flush_interval: 200ms
    flush_rows: 500
engine: {checkpoint_interval: 1s}
"""


class Sender(threading.Thread):
    """Sends numbered events of one key, each body again and again until it is acknowledged."""

    def __init__(self, number: int, port: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.key = f"sender-{number}"
        self.acknowledged = 0
        self._port = port
        self._ended = stop

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        body_number = 0
        while not self._ended.is_set():
            count = 1 + body_number % 40
            first = self.acknowledged
            lines = [
                json.dumps({"sourceId": self.key, "payload": {"seq": seq}})
                for seq in range(first, first + count)
            ]
            headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": f"{self.key}/{first}"}
            try:
                connection.request("POST", "/ingest", "\n".join(lines), headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.02)
                continue
            if answer.status == 200:
                assert json.loads(text)["accepted"] == count
                self.acknowledged += count
                body_number += 1
            else:
                assert answer.status in (409, 429, 503), (answer.status, text)
                time.sleep(0.02)
        connection.close()


def stored_order(data_dir: Path) -> dict[str, list[int]]:
    """The numbers of each key in the order of the log."""
    log = SqliteLog(data_dir / "log.db", clock=SystemClock())
    rows = log.read("events", 0, log.extent("events", 0))
    log.close()
    order: dict[str, list[int]] = {}
    for source, payload in zip(
        rows.column("source_id").to_pylist(), rows.column("payload").to_pylist(), strict=True
    ):
        order.setdefault(source, []).append(int(payload["seq"]))
    return order


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(CONFIG)
    port, stop, random_ = free_port(), threading.Event(), random.Random(7)
    server = Headrace(config, tmp_path / "data", port)
    senders = [Sender(number, port, stop) for number in range(SENDERS)]
    server.wait_ready()
    for sender in senders:
        sender.start()
    for _ in range(KILLS):
        time.sleep(random_.uniform(0.05, 0.8))
        server.kill()
        server = Headrace(config, tmp_path / "data", port)
        if random_.random() < 0.8:  # the others are killed while they start
            server.wait_ready()
    server.wait_ready()
    time.sleep(1)
    stop.set()
    for sender in senders:
        sender.join(20)
        assert not sender.is_alive()
    expected = {sender.key: sender.acknowledged for sender in senders}
    assert min(expected.values()) > 100

    order = stored_order(tmp_path / "data")  # read beside the running server
    for key, count in expected.items():
        # Exactly once and in order: the numbers are 0, 1, 2, ... without a gap or a repetition.
        assert order[key] == list(range(len(order[key])))
        assert len(order[key]) >= count, "acknowledged rows are missing"

    # The stream is silent now, so its windows close with the clock.
    by_source, totals = Counter({key: len(seqs) for key, seqs in order.items()}), Counter[str]()
    deadline = time.monotonic() + 30
    while totals != by_source and time.monotonic() < deadline:
        time.sleep(0.5)
        rows = server.query(
            "SELECT source_id, CAST(sum(count) AS BIGINT) AS count FROM counted GROUP BY source_id"
        )
        totals = Counter({row["source_id"]: row["count"] for row in rows})
    assert totals == by_source, "each stored row is in exactly one window"
    assert server.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    server.terminate()

    table = DeltaTable(str(tmp_path / "data" / "lake" / "events"))
    with duckdb.connect() as lake:
        stored = lake.execute(
            f"SELECT source_id, CAST(payload.seq AS BIGINT), count(*) FROM read_parquet({table.file_uris()!r}, union_by_name=true) "
            "GROUP BY 1, 2"
        ).fetchall()
    assert all(seq < len(order[source]) for source, seq, _ in stored)
    assert [row for row in stored if row[2] > 1] == []
