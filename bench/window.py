"""Windowed aggregates: the window step against NumPy written by hand for the case and Polars group_by, in one run.

    python bench/window.py

Rows of 200 sensors x 5 metrics (two string columns), 10 s windows, count, sum, avg, min and max. Times are CPU
time of all threads, so that the rates are for one core. The baselines only aggregate one batch: no lateness, no state over batches.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model import TIMESTAMP, Rows
from headrace.steps.window import Window
from headrace.units import Duration

SCHEMA = pa.schema(
    [("sensor_id", pa.string()), ("metric", pa.string()), ("value", pa.float64()), ("timestamp", TIMESTAMP)]
)
START_US = 1_700_000_000_000_000
METRICS = np.array(["temperature", "humidity", "pressure", "voltage", "current"])


def batches(rows: int, count: int, sensors: int = 200, *, encoded: bool = False) -> list[Rows]:
    """Batches that together cover 30 s of event time."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(count):
        sensor = pa.array([f"sensor-{i:05d}" for i in rng.integers(0, sensors, rows)])
        codes = pa.array(rng.integers(0, len(METRICS), rows), pa.int32())
        metric = pa.DictionaryArray.from_arrays(codes, pa.array(METRICS))
        begin = START_US + 30_000_000 * number // count
        at = begin + np.sort(rng.integers(0, 30_000_000 // count, rows))
        columns = [sensor, metric if encoded else metric.dictionary_decode()]
        columns += [pa.array(rng.normal(20, 5, rows)), pa.array(at).cast(TIMESTAMP)]
        made.append(pa.RecordBatch.from_arrays(columns, names=SCHEMA.names))
    return made


def of_step(work: list[Rows]) -> Iterator[float]:
    """CPU seconds of each `process`."""
    step = Window(
        length=Duration.parse("10s"),
        by=["sensor_id", "metric"],
        count="*", sum="value", avg="value", min="value", max="value",
    )  # fmt: skip
    operator = step.open(work[0].schema)
    for rows in work:
        watermark = pc.max(rows.column("timestamp").cast(pa.int64())).as_py()
        began = time.process_time()
        operator.process(rows, watermark)
        yield time.process_time() - began


def of_function(function: Callable[[Rows], object]) -> Callable[[list[Rows]], Iterator[float]]:
    def run(work: list[Rows]) -> Iterator[float]:
        for rows in work:
            began = time.process_time()
            function(rows)
            yield time.process_time() - began

    return run


def numpy_by_hand(rows: Rows) -> object:
    sensor, metric = rows.column(0).dictionary_encode(), rows.column(1).dictionary_encode()
    window = rows.column(3).cast(pa.int64()).to_numpy() // 10_000_000
    window -= window.min()
    values = rows.column(2).to_numpy()
    width = len(metric.dictionary) * (int(window.max()) + 1)
    group = sensor.indices.to_numpy() * width + metric.indices.to_numpy() * (int(window.max()) + 1) + window
    size = len(sensor.dictionary) * width
    least, most = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(least, group, values)
    np.maximum.at(most, group, values)
    return np.bincount(group, minlength=size), np.bincount(group, values, size), least, most


def polars_group_by(rows: Rows) -> object:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    value = pl.col("value")
    return frame.group_by("sensor_id", "metric", pl.col("timestamp").dt.truncate("10s")).agg(
        pl.len(), value.sum(), value.mean().alias("avg"), value.min().alias("min"), value.max().alias("max")
    )


def main() -> None:
    print(
        f"{platform.platform()}, Python {platform.python_version()}, pyarrow {pa.__version__}, NumPy {np.__version__}, Polars {pl.__version__}"
    )
    print(
        f"{'rows a batch':>12} {'keys':>7} {'':<24} {'ms a batch (p50)':>16} {'p99':>8} {'M rows/s':>9} {'to NumPy':>9}"
    )
    for rows, sensors, count in (
        (100, 200, 1500),
        (1_000, 200, 300),
        (10_000, 200, 100),
        (100_000, 200, 12),
        (10_000, 20_000, 60),
    ):
        work = batches(rows, count, sensors)
        runs = {
            "NumPy by hand": (of_function(numpy_by_hand), work),
            "Polars group_by": (of_function(polars_group_by), work),
            "window": (of_step, work),
            "window, metric encoded": (of_step, batches(rows, count, sensors, encoded=True)),
        }
        base = 0.0
        for name, (run, given) in runs.items():
            list(run(given[: count // 10 + 1]))  # warm up
            took = list(run(given))
            total = sum(took)
            base = base or total
            p99 = statistics.quantiles(took, n=100)[98] * 1e3
            speed = rows * count / total / 1e6
            print(
                f"{rows:>12,} {sensors * 5:>7,} {name:<24} {statistics.median(took) * 1e3:>16.3f} {p99:>8.2f} {speed:>9.1f} {base / total:>8.2f}x"
            )


if __name__ == "__main__":
    main()
