"""HTTP NDJSON -> durable log -> 10 s windows per sensor and metric -> durable output, and the same from a file.

    python -m bench.http_windows [--events N] [--quick]

Baselines in the same run, on the same bytes and without any durability: a hand-written Python loop, and Polars on the
whole input at once.
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

import polars as pl

from bench import report
from bench.server import Server, running
from headrace.sources.generate import Generate

BODY = 1_000
CONFIG = """
sources: {}
pipelines:
  windows:
    from: events
    delay: 1m
    idle_after: 2s
    steps:
      - unpivot: {}
      - window: {length: 10s, by: [sensor_id, metric], count: value, avg: value, min: value, max: value}
    to: windows
"""
FILE_SOURCE = "  file: {kind: file_tail, path: PATH, format: ndjson}\n"


def events(count: int, start: str = "2026-01-01T00:00:00Z") -> list[bytes]:
    """NDJSON lines of a simulated fleet in order of time, so long ago that none lies in the future."""
    fleet = Generate(
        devices=200, rate=0, count=count, seed=1, anomalies=0, start=start,
        metrics=("temperature", "humidity", "pressure"),
    )  # fmt: skip
    return b"".join(fleet.lines()).splitlines()


def bodies(lines: list[bytes]) -> list[bytes]:
    return [b"\n".join(lines[i : i + BODY]) for i in range(0, len(lines), BODY)]


def drained(server: Server, count: int, began: float, limit: float = 120) -> float:
    """Seconds since `began` until the pipeline has committed an epoch for every event."""
    while time.perf_counter() - began < limit:
        pipeline = server.get("/api/stream/status")["pipelines"]["windows"]
        if pipeline["received"] >= count and pipeline["lag_records"] == 0:
            return time.perf_counter() - began
        time.sleep(0.05)
    raise RuntimeError("the pipeline did not keep up")


WORKERS = "engine: {workers: 2}\n"
"""The pipeline in a process of its own, so that decoding and windows don't share one interpreter."""


def over_http(
    lines: list[bytes], work: Path, *, more: str = "", rate: float = 0
) -> tuple[float, float, dict[str, float]]:
    """Events/s until all are durable as output; events/s acknowledged; what the sender saw."""
    config = work / "http.yaml"
    config.write_text(CONFIG.replace("sources: {}\n", "") + more)
    made = bodies(lines)
    with running(config, work / f"http{len(more)}") as server:
        blocks = b"".join(struct.pack("<I", len(body)) + body for body in made)
        command = [
            sys.executable,
            str(Path(__file__).parent / "load.py"),
            str(server.port),
            "4",
            "300",
            str(rate),
        ]
        sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdin.write(blocks)
        sender.stdin.close()
        began = time.perf_counter()
        answer = json.loads(sender.stdout.read())
        sender.wait()
        took = drained(server, len(lines), began)
        assert answer["errors"] == 0, answer
        return len(lines) / took, len(lines) / answer["seconds"], answer


def from_file(lines: list[bytes], work: Path) -> float:
    path = work / "events.ndjson"
    path.write_bytes(b"\n".join(lines) + b"\n")
    config = work / "file.yaml"
    config.write_text(CONFIG.replace("sources: {}\n", "sources:\n" + FILE_SOURCE.replace("PATH", str(path))))
    with running(config, work / "file") as server:
        # Started with the file there: from the first row accepted to the last window durable.
        first = None
        while True:
            status = server.get("/api/stream/status")
            if first is None and status["sources"]["file"]["received"]:
                first = (time.perf_counter(), status["sources"]["file"]["received"])
            pipeline = status["pipelines"]["windows"]
            if pipeline["received"] >= len(lines) and pipeline["lag_records"] == 0:
                assert first is not None
                if first[1] >= len(lines):
                    raise RuntimeError("too few events to time")
                return (len(lines) - first[1]) / (time.perf_counter() - first[0])
            time.sleep(0.02)


def python_loop(lines: list[bytes]) -> float:
    began = time.perf_counter()
    windows: dict[tuple[str, str, int], list[float]] = {}
    for line in lines:
        event = json.loads(line)
        stamp = event["timestamp"]
        slot = hash(stamp[:18])  # ten seconds: the digits up to the tens of seconds
        for metric, value in event["payload"].items():
            state = windows.get((event["sourceId"], metric, slot))
            if state is None:
                windows[event["sourceId"], metric, slot] = [1, value, value, value]
            else:
                state[0] += 1
                state[1] += value
                state[2] = min(state[2], value)
                state[3] = max(state[3], value)
    return len(lines) / (time.perf_counter() - began)


def polars_batch(lines: list[bytes]) -> float:
    data = b"\n".join(lines)
    began = time.perf_counter()
    frame = pl.read_ndjson(data)
    metrics = frame["payload"].struct.fields
    (
        frame.lazy()
        .with_columns(pl.col("timestamp").str.to_datetime(time_zone="UTC").dt.truncate("10s"))
        .unnest("payload")
        .unpivot(metrics, index=["sourceId", "timestamp"])
        .group_by("sourceId", "variable", "timestamp")
        .agg(
            pl.len(),
            pl.col("value").mean().alias("avg"),
            pl.col("value").min().alias("min"),
            pl.col("value").max().alias("max"),
        )
        .collect()
    )
    return len(lines) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=3_000_000)
    count = parser.parse_args().events
    lines = events(count)
    size = sum(len(line) for line in lines) / len(lines)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        loop = python_loop(lines[: count // 5])
        batch = polars_batch(lines)
        http, acknowledged, seen = over_http(lines, work)
        apart, _, _ = over_http(lines, work, more=WORKERS)
        file = from_file(lines, work)
    report.table(
        f"{count:,} events of {size:.0f} bytes -> windows of 10 s per sensor and metric",
        ("what", "events/s", "x Python loop"),
        [
            ("headrace, HTTP bodies of 1,000 on 4 connections, output durable", round(http), http / loop),
            ("  of these acknowledged", round(acknowledged), acknowledged / loop),
            ("headrace, HTTP as above, engine: {workers: 2}", round(apart), apart / loop),
            ("headrace, NDJSON file, output durable", round(file), file / loop),
            ("Polars, whole input in memory, nothing durable", round(batch), batch / loop),
            ("Python loop, json.loads and a dict, nothing durable", round(loop), 1.0),
        ],
    )
    print(f"sender: p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms a body")


if __name__ == "__main__":
    main()
