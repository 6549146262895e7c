"""Resident memory under a steady load: whether it stays flat.

    python -m bench.memory [--minutes M] [--rate EVENTS_PER_SECOND]

The slope is fitted to samples after the first third; the baseline is the memory just after the start.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench import report
from bench.http_windows import CONFIG, bodies, events
from bench.server import running

SINK = """
sinks:
  lake: {kind: delta, from: windows, path: lake}
topics:
  events: {retention: 1m}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rate", type=int, default=100_000)
    options = parser.parse_args()
    seconds = options.minutes * 60
    samples: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        config = work / "memory.yaml"
        config.write_text(CONFIG.replace("sources: {}\n", "") + SINK)
        with running(config, work / "data") as server:
            start = server.rss_bytes()
            began, start_time = time.monotonic(), "2024-01-01T00:00:00Z"
            while time.monotonic() - began < seconds:
                lines = events(min(1_000_000, options.rate * 20), start_time)
                start_time = json.loads(lines[-1])["timestamp"]  # event time goes on with the next lap
                blocks = b"".join(struct.pack("<I", len(body)) + body for body in bodies(lines))
                command = [sys.executable, str(Path(__file__).parent / "load.py"), str(server.port), "4"]
                lap = [
                    *command,
                    str(max(1.0, seconds - (time.monotonic() - began))),
                    str(options.rate / 1000),
                ]
                sender = subprocess.Popen(lap, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                assert sender.stdin is not None
                sender.stdin.write(blocks)
                sender.stdin.close()
                while sender.poll() is None:
                    samples.append((time.monotonic() - began, server.rss_bytes()))
                    time.sleep(0.5)
            status = server.get("/api/stream/status")["pipelines"]["windows"]
    steady = np.array([sample for sample in samples if sample[0] > seconds / 3])
    slope = float(np.polyfit(steady[:, 0], steady[:, 1], 1)[0]) * 60 / 2**20
    peak = max(size for _, size in samples)
    report.table(
        f"{options.minutes:g} minutes at {options.rate:,} events/s: {status['received']:,} events through",
        ("what", "MiB", "x start"),
        [
            ("after the start", start / 2**20, 1.0),
            (
                "mean of the last two thirds",
                float(steady[:, 1].mean()) / 2**20,
                float(steady[:, 1].mean()) / start,
            ),
            ("highest", peak / 2**20, peak / start),
            ("slope, MiB a minute", slope, slope * 2**20 / start),
        ],
    )


if __name__ == "__main__":
    main()
