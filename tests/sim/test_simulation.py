"""The whole chain on a disk that forgets: many seeds, several crashes each, at any disk operation.

HEADRACE_SEEDS=N runs N seeds a block instead of 15, for a night.
"""

from __future__ import annotations

import os
import random

import pyarrow as pa
import pytest

from headrace.model import TIMESTAMP, Topic
from headrace.pipeline import Pipeline, pipeline
from headrace.steps.window import Window
from headrace.testing.simulation import Simulation
from headrace.units import Duration

SEEDS = int(os.environ.get("HEADRACE_SEEDS", "15"))
START = 1_700_000_000_000_000
INPUT = Topic(
    "readings",
    pa.schema(
        [
            pa.field("timestamp", TIMESTAMP),
            pa.field("sensor_id", pa.string()),
            pa.field("value", pa.float64()),
        ]
    ),
    key=("sensor_id",),
)
HEAT = pipeline("heat", "readings", delay="2s").step(
    Window(length=Duration.parse("10s"), by="sensor_id", count="*", sum="value", min="value", max="value")
)


def batches(seed: int) -> list[pa.RecordBatch]:
    """Readings of three sensors, at most two seconds out of order."""
    random_ = random.Random(seed)
    made, at = [], START
    for _ in range(25):
        rows = []
        for _ in range(random_.randint(1, 8)):
            at += random_.randint(0, 3_000_000)
            rows.append(
                (at - random_.randint(0, 1_900_000), random_.choice("abc"), float(random_.randint(-5, 5)))
            )
        times, sensors, values = zip(*rows, strict=True)
        made.append(
            pa.RecordBatch.from_arrays(
                [pa.array(times, TIMESTAMP), pa.array(sensors), pa.array(values)], schema=INPUT.schema
            )
        )
    return made


def oracle(rows: list[pa.RecordBatch]) -> dict[tuple[str, int], list[float]]:
    """Values by sensor and window start, the slow way."""
    windows: dict[tuple[str, int], list[float]] = {}
    for batch in rows:
        for time, sensor, value in zip(
            batch.column(0).cast(pa.int64()).to_pylist(),
            batch.column(1).to_pylist(),
            batch.column(2).to_pylist(),
            strict=True,
        ):
            windows.setdefault((sensor, time // 10_000_000 * 10_000_000), []).append(value)
    return windows


def run(seed: int, plan: Pipeline = HEAT) -> Simulation:
    output = Topic("heat_windows", plan.schemas({"readings": INPUT})[-1], at="window_end")
    simulation = Simulation(seed, plan.to("heat_windows"), INPUT, output, batches(seed))
    simulation.run()
    return simulation


@pytest.mark.parametrize("block", range(10))
def test_crashes_lose_nothing_and_repeat_nothing(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        simulation = run(seed)
        found = {}
        log = simulation.log
        for row in log.read("heat_windows", 0, log.extent("heat_windows", 0)).to_pylist():
            key = (row["sensor_id"], int(row["window_start"].timestamp() * 1e6))
            assert key not in found, f"seed {seed}: window {key} came twice"
            found[key] = (row["count"], row["sum"], row["min"], row["max"])
        wanted = {key: (len(v), sum(v), min(v), max(v)) for key, v in oracle(batches(seed)).items()}
        assert found == wanted, f"seed {seed}"
        assert simulation.log.extent("dead_letters", 0).end == 0


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = run(11), run(11)
    assert (first.steps, first.crashes, first.output()) == (second.steps, second.crashes, second.output())
    assert first.crashes > 0
