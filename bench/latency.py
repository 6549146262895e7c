"""From receiving an event to its result being durable, at 10,000 events/s over HTTP in bodies of 100.

    python -m bench.latency [--seconds N]

The clock starts when the server begins to read the rows (`received_at`) and stops when the epoch that holds their
result is committed; each epoch counts with its oldest row. The baseline is fdatasync of 8 KiB on the same disk.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import report
from bench.http_windows import events
from bench.server import running

RATE = 10_000
BODY = 100
PASSED = """
  passed:
    from: events
    steps:
      - where: "payload.temperature > -1000"
    to: passed
"""
WINDOWS = """
  windows:
    from: events
    delay: 1m
    idle_after: 2s
    steps:
      - unpivot: {}
      - window: {length: 10s, by: [sensor_id, metric], count: value, avg: value, min: value, max: value}
    to: windows
"""
CASES = {
    "filtered rows": "pipelines:" + PASSED,
    "windows of 10 s per sensor and metric": "pipelines:" + WINDOWS,
    "both pipelines at once": "pipelines:" + PASSED + WINDOWS[1:],
}


def fdatasync_ms(folder: Path, count: int = 300) -> tuple[float, float]:
    times = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    times.sort()
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def measure(config: str, bodies: list[bytes], work: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Latency in the server over the last 30 s, and as the sender sees it; milliseconds."""
    work.mkdir()
    file = work / "latency.yaml"
    file.write_text(config)
    with running(file, work / "data") as server:
        blocks = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
        command = [sys.executable, str(Path(__file__).parent / "load.py"), str(server.port), "4", "300"]
        sent = subprocess.run([*command, str(RATE // BODY)], input=blocks, stdout=subprocess.PIPE, check=True)
        answer = json.loads(sent.stdout)
        assert answer["errors"] == 0, answer
        return server.get("/api/stream/status")["latency_ms"], answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="of each case")
    seconds = parser.parse_args().seconds
    lines = events(RATE * seconds)
    bodies = [b"\n".join(lines[i : i + BODY]) for i in range(0, len(lines), BODY)]
    rows: list[tuple[str, float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        sync = fdatasync_ms(Path(folder))
        for number, (name, config) in enumerate(CASES.items()):
            inside, seen = measure(config, bodies, Path(folder) / str(number))
            rows.append(
                (f"received -> output durable: {name}", inside["p50"], inside["p99"], inside["p50"] / sync[0])
            )
            rows.append(
                ("    request -> acknowledged", seen["p50_ms"], seen["p99_ms"], seen["p50_ms"] / sync[0])
            )
    rows.append(("fdatasync of 8 KiB on this disk", *sync, 1.0))
    report.table(
        f"{RATE:,} events/s in bodies of {BODY}, milliseconds",
        ("what", "p50", "p99", "x fdatasync p50"),
        rows,
    )


if __name__ == "__main__":
    main()
