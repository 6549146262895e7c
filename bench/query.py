"""How fast the store answers: one sensor's last hour, the newest rows, and SQL, over a Delta table.

    python bench/query.py [--rows 5000000] [--sensors 1000] [--days 7]

The baseline in the same run is DuckDB over all the files of the table, without file statistics.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import deltalake
import duckdb
import numpy as np
import pyarrow as pa

from headrace.model import TIMESTAMP, Rows, Span, Topic, empty
from headrace.sinks.delta import Delta
from headrace.store import DeltaTableRef, Store

T0 = 1_700_000_000_000_000
SCHEMA = pa.schema(
    [("sensor_id", pa.string()), ("metric", pa.string()), ("value", pa.float64()), ("timestamp", TIMESTAMP)]
)
TOPIC = Topic("measurements", SCHEMA)
COMMIT = 100_000


class NoTail:
    """A log whose rows are all in the table."""

    def topics(self) -> Mapping[str, Topic]:
        return {"measurements": TOPIC}

    def extent(self, topic: str, partition: int) -> Span:
        return Span(0, 0)

    def read(self, topic: str, partition: int, span: Span) -> Rows:
        return empty(SCHEMA)


def fill(path: Path, rows: int, sensors: int, days: float) -> float:
    """Rows in order of time, as they come; seconds taken."""
    random = np.random.default_rng(1)
    names = pa.array([f"sensor-{i:05d}" for i in range(sensors)])
    metrics = pa.array(["temperature", "humidity", "pressure"])
    step_us = days * 86_400e6 / rows
    writer = Delta(path=str(path), flush_rows=COMMIT).open(TOPIC, name="silver")
    began = time.perf_counter()
    for start in range(0, rows, COMMIT):
        n = min(COMMIT, rows - start)
        batch = pa.RecordBatch.from_arrays(
            [
                names.take(pa.array(random.integers(0, sensors, n))),
                metrics.take(pa.array(random.integers(0, 3, n))),
                pa.array(random.normal(20, 5, n).round(2)),
                pa.array((T0 + (start + np.arange(n)) * step_us).astype(np.int64), TIMESTAMP),
            ],
            schema=SCHEMA,
        )
        writer.write(0, batch, start + n)
    return time.perf_counter() - began


def measure(name: str, ask: Callable[[int], int], repeats: int = 60) -> float:
    ask(0)
    times = []
    found = 0
    for i in range(1, repeats + 1):
        began = time.perf_counter()
        found += ask(i)
        times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
    print(f"{name:52} {found / repeats:10.0f} {p50:9.1f} {p99:9.1f}")
    return p50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--sensors", type=int, default=1_000)
    parser.add_argument("--days", type=float, default=7)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, Python {platform.python_version()}, duckdb {duckdb.__version__}, deltalake {deltalake.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        took = fill(Path(folder), options.rows, options.sensors, options.days)
        files = deltalake.DeltaTable(f"{folder}/measurements").file_uris()
        print(
            f"{options.rows} rows by the delta sink in {took:.1f} s ({options.rows / took / 1e6:.2f} M rows/s), {len(files)} files\n"
        )
        print(f"{'question':52} {'rows':>10} {'p50 ms':>9} {'p99 ms':>9}")
        end_us = int(T0 + options.days * 86_400e6)
        hour_ago_us = end_us - 3_600_000_000
        sensor = lambda i: f"sensor-{i * 17 % options.sensors:05d}"  # noqa: E731
        plain = duckdb.connect(config={"threads": 2})
        question = (
            "SELECT * FROM read_parquet($files) WHERE sensor_id = $sensor AND timestamp >= make_timestamptz($start) "
            "ORDER BY timestamp DESC"
        )
        with Store(NoTail(), {"measurements": DeltaTableRef(folder, {}, "silver")}) as store:  # type: ignore[arg-type]
            ours = measure(
                "data: one sensor, last hour",
                lambda i: (
                    store.data(
                        "measurements", source_id=sensor(i), start_us=hour_ago_us, limit=10_000
                    ).table.num_rows
                ),
            )
            base = measure(
                "baseline: DuckDB over all files, the same",
                lambda i: (
                    plain.sql(question, params={"files": files, "sensor": sensor(i), "start": hour_ago_us})
                    .to_arrow_table()
                    .num_rows
                ),
            )
            measure("data: newest 100 of all", lambda i: store.data("measurements").table.num_rows)
            measure(
                "data: newest 100 of one sensor",
                lambda i: store.data("measurements", source_id=sensor(i)).table.num_rows,
            )
            sql = (
                "SELECT avg(value) FROM measurements WHERE sensor_id = ? AND timestamp >= make_timestamptz(?)"
            )
            measure(
                "SQL: one sensor's average of the last hour",
                lambda i: store.query(sql, params=[sensor(i), hour_ago_us]).table.num_rows,
            )
            measure(
                "SQL: average per metric of everything",
                lambda i: (
                    store.query(
                        "SELECT metric, avg(value) FROM measurements GROUP BY 1", timeout=60
                    ).table.num_rows
                ),
                5,
            )
        print(f"\none sensor's last hour: {base / ours:.1f} times as fast as the baseline")


if __name__ == "__main__":
    main()
