"""A server with rows that look like a host and a fleet of sensors, for looking at the page: `python -m tests.e2e.demo_page`."""

from __future__ import annotations

import math
import random
import threading

import pyarrow as pa

from headrace.model import TIMESTAMP, Reject
from tests.integration.small_runtime import AGGREGATIONS, SmallRuntime, measurements, running

HOST = {
    "cpu_percent": lambda t, r: 35 + 20 * math.sin(t / 40) + r.gauss(0, 4),
    "memory_percent": lambda t, r: 61 + 3 * math.sin(t / 90),
    "disk_read_bytes_per_second": lambda t, r: max(0, r.gauss(2e5, 3e5)),
    "disk_write_bytes_per_second": lambda t, r: max(0, 4e6 + 3e6 * math.sin(t / 15) + r.gauss(0, 1e6)),
    "network_received_bytes_per_second": lambda t, r: max(0, r.gauss(9e4, 4e4)),
    "network_sent_bytes_per_second": lambda t, r: max(0, r.gauss(3e4, 1e4)),
}
METRICS = {"temperature": (21, 2.0), "humidity": (55, 8.0), "pressure": (1013, 6.0)}


PIPELINES = {
    "measurements": {
        "state": "running", "from": ["events"], "to": "measurements", "lag_records": 12, "watermark": 1_795_300_000_000_000,
        "epoch": 81, "received": 61_204, "sent": 183_612, "filtered": 0, "dead": 3, "late": 0, "last_error": None,
    },
    "aggregations_10s": {
        "state": "running", "from": ["measurements"], "to": "aggregations", "lag_records": 0, "watermark": 1_795_300_000_000_000,
        "epoch": 80, "received": 183_612, "sent": 18_360, "filtered": 0, "dead": 0, "late": 41, "last_error": None,
    },
}  # fmt: skip
SINKS = {
    "bronze": {
        "state": "running", "kind": "delta", "topics": ["events"], "position": 61_000, "lag_records": 204,
        "circuit": "closed", "retries": 0, "last_error": None,
    },
    "warehouse": {
        "state": "retrying", "kind": "postgres", "topics": ["aggregations"], "position": 0, "lag_records": 18_360,
        "circuit": "open", "retries": 7, "last_error": "connecting to db:5432: connection refused",
    },
}  # fmt: skip


def second(runtime: SmallRuntime, now_us: int, r: random.Random) -> None:
    """One second of the host's metrics and, every ten, the fleet's windows."""
    t = now_us / 1e6
    for metric, value in HOST.items():
        runtime.append("measurements", measurements(["laptop"], metric, [value(t, r)], [now_us]))
    names = [f"sensor-{i:03}" for i in range(1, 201)]
    for metric, (middle, spread) in METRICS.items():
        runtime.append(
            "measurements",
            measurements(names, metric, [r.gauss(middle, spread) for _ in names], [now_us] * 200),
        )
        if int(t) % 10 == 0:
            start = int(t) // 10 * 10_000_000 - 10_000_000
            means = [r.gauss(middle, spread / 4) + (9 * spread if r.random() < 0.004 else 0) for _ in names]
            columns = [
                names, [metric] * 200, ["10s"] * 200, pa.array([start] * 200, TIMESTAMP),
                pa.array([start + 10_000_000] * 200, TIMESTAMP), [10] * 200, means,
                [m - spread * 1.5 for m in means], [m + spread * 1.6 for m in means],
            ]  # fmt: skip
            arrays = [
                c if isinstance(c, pa.Array) else pa.array(c, f.type)
                for c, f in zip(columns, AGGREGATIONS, strict=True)
            ]
            runtime.append("aggregations", pa.RecordBatch.from_arrays(arrays, schema=AGGREGATIONS))
    for code, share, raw in (
        ("malformed_json", 0.8, b'{"sensor_id": "sensor-17", "temperature": 21.'),
        (
            "wrong_type",
            0.4,
            b'{"source_id": "sensor-40", "timestamp": "yesterday?", "payload": {"temperature": "hot"}}',
        ),
        (
            "future_timestamp",
            0.2,
            b'{"source_id": "sensor-99", "timestamp": "2199-01-01T00:00:00Z", "payload": {}}',
        ),
    ):
        if r.random() < share:
            runtime.put_aside([Reject(raw, code, "as the example shows", "sensor-17")], "events")
    runtime.counts["system"] += 6
    runtime.counts["fleet"] += 600
    runtime.counts["rate"] = round(606 + r.gauss(0, 20))
    for name, rate in (("events", 206), ("measurements", 606), ("aggregations", 60)):
        runtime.counts[f"rate {name}"] = rate


def fill(runtime: SmallRuntime, seconds: int = 290) -> random.Random:
    """Some minutes of the past."""
    r = random.Random(7)
    now_us = runtime.clock.now_us()
    for back in range(seconds, 0, -1):
        second(runtime, now_us - back * 1_000_000, r)
    return r


if __name__ == "__main__":
    demo = SmallRuntime(pipelines=PIPELINES, sinks=SINKS)
    randomness = fill(demo)
    with running(demo) as server:
        print(server.url, flush=True)
        while not threading.Event().wait(1.0):
            second(demo, demo.clock.now_us(), randomness)
