"""How fast bodies become rows: `headrace.formats` beside plain pyarrow.json and msgspec, which check and reshape nothing.

    python bench/parse.py            # under 20 s; --json for a program

Events are those of the simulated fleet with three metrics. Everything runs in one thread; each figure is the best of
several rounds that take turns, so that a busy moment of the machine hits none of them alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from headrace.formats import decode
from headrace.model import Topic
from headrace.sources.file_tail import FileTail
from headrace.sources.generate import Generate

NOW_US = 1_704_067_200_000_000 + 10**12
ROUNDS = 25
FILE_EVENTS = 300_000
BASELINE = "pyarrow.json alone"


def fleet(count: int, **options: Any) -> Generate:
    """Events of 200 sensors with three metrics each."""
    return Generate(
        rate=0, count=count, batch=count, start="2024-01-01T00:00:00Z", metrics=("temperature", "humidity", "pressure"),
        anomalies=0, **options,
    )  # fmt: skip


def contenders(lines: bytes, bad: bytes, topic: Topic) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is measured: events in one call, and the call."""
    array = b"[" + lines.rstrip(b"\n").replace(b"\n", b",") + b"]"
    one = lines[: lines.index(b"\n")]
    untyped = lines.replace(b'"type":"reading",', b"").replace(b'"type":"error",', b"")
    payload = msgspec.defstruct(
        "Payload", [(n, float) for n in ("temperature", "humidity", "pressure")], gc=False
    )
    event = msgspec.defstruct(
        "Event", [("sourceId", str), ("timestamp", str), ("type", str), ("payload", payload)], gc=False
    )
    structs, dicts = msgspec.json.Decoder(event), msgspec.json.Decoder()
    rows = lines.count(b"\n")

    def read(body: bytes, media_type: str = "application/x-ndjson", **options: Any) -> Callable[[], object]:
        return lambda: decode(body, media_type=media_type, topic=topic, now_us=NOW_US, **options)

    def arrow() -> object:
        options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        return pyarrow.json.read_json(pa.BufferReader(lines), read_options=options)

    return {
        BASELINE: (rows, arrow),
        "msgspec to structs alone": (rows, lambda: structs.decode_lines(lines)),
        "msgspec to dicts, then pyarrow": (rows, lambda: pa.array(dicts.decode_lines(lines))),
        "headrace, lines": (rows, read(lines)),
        "headrace, lines without a type": (rows, read(untyped)),
        "headrace, array": (rows, read(array, "application/json")),
        "headrace, lines, 1 % malformed": (rows, read(bad)),
        "headrace, row by row": (rows, read(lines, fast=False)),
        "headrace, a body of one event": (1, read(one, "application/json")),
    }


def from_file(folder: Path) -> float:
    """Seconds that file_tail takes for a file of FILE_EVENTS."""
    path = folder / "events.ndjson"
    path.write_bytes(b"".join(fleet(FILE_EVENTS).lines()))
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        arrivals = FileTail(path=str(path), follow=False).read("0", None)
        rows = sum(arrival.rows.num_rows for arrival in arrivals if arrival.rows is not None)
        best = min(best, time.perf_counter() - began)
        assert rows == FILE_EVENTS
    return best


def generating() -> float:
    """Seconds that `generate` takes for a million events as rows."""
    began = time.perf_counter()
    rows = sum(
        arrival.rows.num_rows for arrival in fleet(1_000_000).read("0", None) if arrival.rows is not None
    )
    assert rows == 1_000_000
    return time.perf_counter() - began


def measure() -> list[dict[str, Any]]:
    """One dict a contender: name, events a second, microseconds a call, ratio to the baseline."""
    lines = b"".join(fleet(1_000).lines())
    bad = b"".join(fleet(1_000, malformed=0.01).lines())
    topic = Topic("events", fleet(1).schema())
    found = contenders(lines, bad, topic)
    best = dict.fromkeys(found, float("inf"))
    for _ in range(ROUNDS):
        for name, (_, call) in found.items():
            call()
            for _ in range(4):
                began = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - began)
    speed = {name: found[name][0] / seconds for name, seconds in best.items()}
    with tempfile.TemporaryDirectory() as folder:
        seconds = from_file(Path(folder))
    speed["headrace, file_tail from a file"] = FILE_EVENTS / seconds
    speed["generate, as rows"] = 1_000_000 / min(generating() for _ in range(2))
    return [
        {
            "what": name,
            "events_per_second": round(speed[name]),
            "microseconds_per_call": round(best[name] * 1e6, 1) if name in best else None,
            "ratio": round(speed[name] / speed[BASELINE], 2),
        }
        for name in speed
    ]


def machine() -> dict[str, str]:
    """What it ran on."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "msgspec": msgspec.__version__,
        "numpy": np.__version__,
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    as_json = options.parse_args().json
    rows = measure()
    if as_json:
        print(json.dumps({"machine": machine(), "results": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{'bodies of 1,000 events':34} {'events/s':>12} {'us a call':>12} {'ratio':>7}")
    for row in rows:
        call = "" if row["microseconds_per_call"] is None else f"{row['microseconds_per_call']:,.1f}"
        print(f"{row['what']:34} {row['events_per_second']:>12,} {call:>12} {row['ratio']:>7.2f}")


if __name__ == "__main__":
    main()
