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
CONFIG = """
pipelines:
  passed:
    from: events
    steps:
      - where: "payload.temperature > -1000"
    to: passed
  windows:
    from: events
    idle_after: 2s
    steps:
      - unpivot: {}
      - window: {length: 10s, by: [sensor_id, metric], count: value, avg: value, min: value, max: value}
    to: windows
"""


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=25)
    seconds = parser.parse_args().seconds
    lines = events(RATE * seconds)
    bodies = [b"\n".join(lines[i : i + BODY]) for i in range(0, len(lines), BODY)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sync = fdatasync_ms(work)
        config = work / "latency.yaml"
        config.write_text(CONFIG)
        with running(config, work / "data") as server:
            blocks = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
            command = [
                sys.executable,
                str(Path(__file__).parent / "load.py"),
                str(server.port),
                "4",
                "300",
                str(RATE // BODY),
            ]
            sent = subprocess.run(command, input=blocks, stdout=subprocess.PIPE, check=True)
            answer = json.loads(sent.stdout)
            latency = server.get("/api/stream/status")["latency_ms"]
    assert answer["errors"] == 0, answer
    rate = len(lines) / answer["seconds"]
    report.table(
        f"{rate:,.0f} events/s in bodies of {BODY}: milliseconds",
        ("what", "p50", "p99", "x fdatasync p50"),
        [
            (
                "headrace, received -> output durable",
                latency["p50"],
                latency["p99"],
                latency["p50"] / sync[0],
            ),
            (
                "headrace, request -> acknowledged, as the sender sees it",
                answer["p50_ms"],
                answer["p99_ms"],
                answer["p50_ms"] / sync[0],
            ),
            ("fdatasync of 8 KiB on this disk", *sync, 1.0),
        ],
    )


if __name__ == "__main__":
    main()
