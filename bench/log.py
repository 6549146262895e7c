"""How fast rows become durable in the log, against a hand-made segment file in the same run.

    python bench/log.py [--seconds 1.0] [--dir DIR]

The baseline encodes the same batches the same way (Arrow IPC, lz4 from 1,000 rows, CRC-32), appends them to one file
and calls fdatasync after each; with several appenders, a lock and a queue give it group commit too.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.clock import SystemClock
from headrace.log.frame import encode
from headrace.log.sqlite import SqliteLog
from headrace.model import TIMESTAMP, Rows, Span, Topic


def events(count: int) -> Rows:
    """Envelopes with three metrics each."""
    random = np.random.default_rng(7)
    metrics = [pa.array(random.normal(20, 5, count).round(2)) for _ in range(3)]
    times = pa.array(np.arange(count) * 1_000 + 1_700_000_000_000_000, TIMESTAMP)
    return pa.record_batch(
        {
            "source_id": pa.array([f"sensor-{n % 200:03}" for n in range(count)]),
            "timestamp": times,
            "received_at": times,
            "event_type": pa.array(["measurement"] * count),
            "payload": pa.StructArray.from_arrays(metrics, ["temperature", "humidity", "pressure"]),
        }
    )


class SegmentFile:
    """The least that a durable log can be: frames one after another, synced, with group commit and nothing else."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lock = threading.Lock()
        self._mutex = threading.Lock()
        self._pending: list[tuple[bytes, threading.Event]] = []

    def append(self, rows: Rows) -> None:
        data = encode(rows)
        done = threading.Event()
        with self._mutex:
            self._pending.append((b"%08x%08x" % (data.nbytes, zlib.crc32(data)) + bytes(data), done))
        with self._lock:
            if done.is_set():
                return
            with self._mutex:
                group, self._pending = self._pending, []
            os.write(self._fd, b"".join(frame for frame, _ in group))
            os.fdatasync(self._fd)
            for _, event in group:
                event.set()

    def close(self) -> None:
        os.close(self._fd)


def measure(
    append: Callable[[Rows], object], rows: Rows, appenders: int, seconds: float
) -> tuple[float, float, float]:
    """Rows per second, and p50 and p99 of one append in milliseconds."""
    append(rows)
    until = time.perf_counter() + seconds
    took: list[list[float]] = [[] for _ in range(appenders)]

    def work(mine: list[float]) -> None:
        began = time.perf_counter()
        while began < until:
            append(rows)
            ended = time.perf_counter()
            mine.append(ended - began)
            began = ended

    threads = [threading.Thread(target=work, args=(mine,)) for mine in took]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    all_of = sorted(one for mine in took for one in mine)
    return (
        len(all_of) * rows.num_rows / elapsed,
        statistics.median(all_of) * 1e3,
        all_of[int(len(all_of) * 0.99)] * 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement (default 1)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="alternating rounds, of which the median counts (default 3)"
    )
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {platform.platform()}")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, pyarrow {pa.__version__}")
    print("rows = events with three metrics; durable = after fdatasync or commit with synchronous=FULL\n")
    print(
        f"{'batch':>7} {'appenders':>9} | {'log rows/s':>12} {'p50 ms':>7} {'p99 ms':>7} | {'file rows/s':>12} {'p50 ms':>7} {'p99 ms':>7} | ratio"
    )
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for size in (100, 1_000, 10_000):
            rows = events(size)
            for appenders in (1, 64):
                results: list[tuple[tuple[float, float, float], tuple[float, float, float]]] = []
                for number in range(options.rounds):
                    place = Path(folder) / f"{size}-{appenders}-{number}"
                    place.mkdir()
                    seconds = options.seconds / options.rounds * 2
                    log = SqliteLog(place / "log.db", clock=SystemClock())
                    log.create(Topic("events", rows.schema))
                    ours = measure(lambda rows: log.append("events", 0, rows), rows, appenders, seconds)  # noqa: B023
                    log.close()
                    file = SegmentFile(place / "segment")
                    theirs = measure(file.append, rows, appenders, seconds)
                    file.close()
                    results.append((ours, theirs))
                    for used in place.glob("*"):
                        if used.is_file():
                            used.unlink()
                ours, theirs = sorted(results, key=lambda pair: pair[0][0] / pair[1][0])[len(results) // 2]
                print(
                    f"{size:>7,} {appenders:>9} | {ours[0]:>12,.0f} {ours[1]:>7.2f} {ours[2]:>7.2f} "
                    f"| {theirs[0]:>12,.0f} {theirs[1]:>7.2f} {theirs[2]:>7.2f} | {ours[0] / theirs[0]:.2f}"
                )
        reading(Path(folder))


def reading(folder: Path) -> None:
    """Reading back, and opening what is large."""
    rows = events(10_000)
    path = folder / "reading" / "log.db"
    log = SqliteLog(path, clock=SystemClock(), cache_bytes=0)
    log.create(Topic("events", rows.schema))
    for _ in range(100):
        log.append("events", 0, rows)
    began = time.perf_counter()
    for start in range(0, 1_000_000, 10_000):
        log.read("events", 0, Span(start, start + 10_000))
    rate = 1_000_000 / (time.perf_counter() - began)
    log.close()
    print(f"\nread back, decoded from disk: {rate:,.0f} rows/s")


if __name__ == "__main__":
    main()
