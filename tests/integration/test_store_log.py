"""The store over the real log: in the server's process, and beside it in another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from headrace.clock import SystemClock
from headrace.log import open_log
from headrace.model import EVENTS, TIMESTAMP, Span, Topic
from headrace.sinks.delta import Delta
from headrace.store import DeltaTableRef, Store

READER = """
import sys
from pathlib import Path
from headrace.clock import SystemClock
from headrace.log import open_log
from headrace.store import DeltaTableRef, Store
folder = Path(sys.argv[1])
log = open_log("sqlite", folder, clock=SystemClock())
try:
    with Store(log, {"events": DeltaTableRef(str(folder / "lake"), {}, "bronze")}) as store:
        print(store.query("SELECT count(*), count(DISTINCT payload.n), max(payload.n) FROM events").table.to_pylist())
finally:
    log.close()
"""


def events(start: int, end: int) -> pa.RecordBatch:
    numbers = range(start, end)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"s{n % 3}" for n in numbers]),
            pa.array([1_700_000_000_000_000 + n for n in numbers], TIMESTAMP),
            pa.nulls(len(numbers), TIMESTAMP),
            pa.array(["reading"] * len(numbers)),
            pa.array([{"n": n} if n % 2 else {"n": n, "deep": {"x": float(n)}} for n in numbers]),
        ],
        names=EVENTS.names,
    )


def test_complete_up_to_the_last_row_also_from_another_process(tmp_path: Path) -> None:
    log = open_log("sqlite", tmp_path, clock=SystemClock())
    try:
        log.create(Topic("events", EVENTS, partitions=2, key=("source_id",)))
        for i in range(20):
            log.append("events", i % 2, events(i * 10, i * 10 + 10))
        sink = Delta(path=str(tmp_path / "lake"), partition_by=("event_type", "year"))
        writer = sink.open(log.topics()["events"], name="bronze")
        for partition, end in ((0, 35), (1, 60)):
            writer.write(partition, log.read("events", partition, Span(0, end)), end)
        refs = {"events": DeltaTableRef(str(tmp_path / "lake"), {}, "bronze")}
        with Store(log, refs) as store:
            assert store.query(
                "SELECT count(*), count(DISTINCT payload.n) FROM events"
            ).table.to_pylist() == [{"count_star()": 200, "count(DISTINCT payload.n)": 200}]
            newest = store.data("events", source_id="s1", limit=2).table
            assert [p["n"] for p in newest["payload"].to_pylist()] == [199, 196]
        done = subprocess.run(
            [sys.executable, "-c", READER, str(tmp_path)],
            capture_output=True, text=True, timeout=50, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert (
            done.stdout.strip()
            == "[{'count_star()': 200, 'count(DISTINCT payload.n)': 200, 'max(payload.n)': 199}]"
        ), done.stderr
    finally:
        log.close()
