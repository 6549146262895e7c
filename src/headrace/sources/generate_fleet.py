"""The simulated fleet behind `generate`: values of every device at every reading, as a function of the seed alone.

Event `n` is reading `n // devices` of device `n % devices`. Noise comes from a random stream keyed by (seed, block of
readings), anomalies from one keyed by (seed, slot of readings), and the rest is closed-form in device and time; so any range
of events can be made again without what came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.model import TIMESTAMP

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SLOT = 600  # readings of one device in which at most one anomaly lies
KINDS = ("spike", "level_shift", "drift", "stuck", "dropout")
_SHORTEST = np.array([1, 20, 40, 20, 5])  # readings that an anomaly of each kind lasts
_LONGEST = np.array([3, 60, 100, 60, 20])
_MEAN_LENGTH = float(np.mean((_SHORTEST + _LONGEST) / 2))
_STREAM_SLOT, _STREAM_DEVICE = 1 << 62, 1 << 63  # apart from blocks, which count from 0
_DAY_US = 86_400_000_000

TRUTH = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field(
            "timestamp", TIMESTAMP, nullable=False
        ),  # the start again, under the name of every event time
        pa.field("metric", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("start", TIMESTAMP, nullable=False),
        pa.field("end", TIMESTAMP, nullable=False),
        pa.field(
            "value", pa.float64()
        ),  # what was added at its height, in the metric's unit; null for stuck and dropout
    ]
)
"""Columns of the ground truth: one row for each injected anomaly."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric behaves: level, its spread over devices, amplitude by day and over minutes, noise, drift a day."""

    level: float
    spread: float
    daily: float
    short: float
    noise: float
    drift: float = 0.0


METRICS = {
    "temperature": Metric(21.0, 3.0, 4.0, 0.6, 0.25, 0.05),
    "humidity": Metric(50.0, 6.0, 6.0, 1.5, 0.8),
    "pressure": Metric(1013.0, 3.0, 2.0, 0.4, 0.15),
    "vibration": Metric(2.0, 0.3, 0.1, 0.15, 0.06, 0.02),
    "voltage": Metric(230.0, 1.5, 1.5, 0.5, 0.4),
    "current": Metric(8.0, 1.5, 1.5, 0.6, 0.2),
    "power": Metric(1800.0, 300.0, 250.0, 80.0, 25.0),
    "co2": Metric(600.0, 80.0, 120.0, 30.0, 10.0),
    "speed": Metric(1480.0, 40.0, 20.0, 12.0, 4.0),
    "battery": Metric(3.7, 0.1, 0.05, 0.01, 0.005, -0.01),
}
_OTHER = Metric(100.0, 15.0, 8.0, 3.0, 1.0)


class Fleet:
    """All devices. `rounds` gives a matrix of readings by device for each metric."""

    def __init__(
        self, *, devices: int, metrics: Sequence[str], seed: int, anomalies: float, season_us: int
    ) -> None:
        self.devices = devices
        self.metrics = tuple(metrics)
        self.seed = seed
        self._kinds = [METRICS.get(name, _OTHER) for name in metrics]
        self._season_us = season_us
        self._chance = min(1.0, anomalies * SLOT / _MEAN_LENGTH)
        rng = stream(seed, _STREAM_DEVICE)
        shape = (len(metrics), devices)
        levels = np.array([[metric.level] for metric in self._kinds])
        spreads = np.array([[metric.spread] for metric in self._kinds])
        self._level: Floats = levels + spreads * np.clip(rng.standard_normal(shape), -2.5, 2.5)
        daily, short = rng.random(shape) * 0.6, rng.random(shape) * 2 * np.pi
        drift = rng.uniform(-1, 1, shape)
        self._by_device: list[Floats] = [
            np.stack(
                [
                    self._level[i],
                    metric.daily * np.cos(daily[i]),
                    metric.daily * np.sin(daily[i]),
                    metric.short * np.cos(short[i]),
                    metric.short * np.sin(short[i]),
                    metric.drift * drift[i],
                ]
            )
            for i, metric in enumerate(self._kinds)
        ]
        self.slot = lru_cache(maxsize=4)(self._slot)
        width = max(4, len(str(devices)))
        self.ids: pa.Array = pa.array([f"sensor-{i + 1:0{width}d}" for i in range(devices)], pa.string())

    def rounds(self, first: int, count: int, times_us: Integers, rng: np.random.Generator) -> list[Floats]:
        """For each metric, the values of readings `first` to `first + count` by device. `times_us` has one time a reading
        since the start; `rng` gives the noise. NaN where a device dropped out."""
        day = times_us / _DAY_US
        daily, short = day * (2 * np.pi), times_us * (2 * np.pi / self._season_us)
        # sin(a + b) as products of what depends on time and what depends on the device: one small matrix product.
        over_time = np.stack(
            [np.ones(count), np.sin(daily), np.cos(daily), np.sin(short), np.cos(short), day], axis=1
        )
        out = []
        for metric, by_device in zip(self._kinds, self._by_device, strict=True):
            values = rng.standard_normal((count, self.devices), np.float32) * np.float64(metric.noise)
            values += over_time @ by_device
            out.append(values)
        for slot in range(first // SLOT, (first + count - 1) // SLOT + 1):
            self._disturb(out, first, count, slot)
        for values in out:
            values *= 1000
            np.rint(values, out=values)
            values /= 1000
        return out

    def _slot(self, slot: int) -> dict[str, npt.NDArray[Any]]:
        """The anomalies of one slot: for each that there is, its device, kind, metric, first reading, length and size."""
        rng = stream(self.seed, _STREAM_SLOT + slot)
        drawn = rng.random((6, self.devices))
        device = np.flatnonzero(drawn[0] < self._chance)
        kind = (drawn[1, device] * len(KINDS)).astype(np.int64)
        metric = (drawn[2, device] * len(self.metrics)).astype(np.int64)
        length = _SHORTEST[kind] + (drawn[3, device] * (_LONGEST - _SHORTEST + 1)[kind]).astype(np.int64)
        start = slot * SLOT + (drawn[4, device] * (SLOT - length)).astype(np.int64)
        noise = np.array([max(m.noise, m.short / 3) for m in self._kinds])[metric]
        size = np.where(drawn[5, device] < 0.5, -1, 1) * (8 + 8 * np.abs(drawn[5, device] * 2 - 1)) * noise
        return {
            "device": device,
            "kind": kind,
            "metric": metric,
            "start": start,
            "length": length,
            "size": size,
        }

    def _disturb(self, out: list[Floats], first: int, count: int, slot: int) -> None:
        found = self.slot(slot)
        readings = np.arange(first, first + count)[:, None]
        for i in range(len(self.metrics)):
            mine = found["metric"] == i
            if not mine.any():
                continue
            device, kind = found["device"][mine], found["kind"][mine]
            start, length, size = found["start"][mine], found["length"][mine], found["size"][mine]
            since = readings - start
            inside = (since >= 0) & (since < length)
            if not inside.any():
                continue
            values = out[i][:, device]
            added = np.where(kind == KINDS.index("drift"), size * (since + 1) / length, size)
            values = np.where(inside & (kind <= KINDS.index("drift")), values + added, values)
            # Stuck at the device's own level: the reading before may lie in another block.
            values = np.where(inside & (kind == KINDS.index("stuck")), self._level[i, device], values)
            values = np.where(inside & (kind == KINDS.index("dropout")), np.nan, values)
            out[i][:, device] = values

    def truth(self, first: int, end: int, start_us: int, step_us: float) -> pa.RecordBatch | None:
        """The anomalies that begin with an event in `[first, end)`; None when there is none."""
        parts = []
        for slot in range(first // self.devices // SLOT, (end - 1) // self.devices // SLOT + 1):
            found = self.slot(slot)
            begins = found["start"] * self.devices + found["device"]
            mine = (begins >= first) & (begins < end)
            if mine.any():
                parts.append({name: values[mine] for name, values in found.items()})
        if not parts:
            return None
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        begins = found["start"] * self.devices + found["device"]
        order = np.argsort(begins)  # so that it doesn't matter where events were cut into batches
        found = {name: values[order] for name, values in found.items()}
        begins = begins[order]
        ends = (found["start"] + found["length"]) * self.devices + found["device"]
        start = pa.array(event_times(begins, start_us, step_us), TIMESTAMP)
        end_at = pa.array(event_times(ends, start_us, step_us), TIMESTAMP)
        names = pa.array(self.metrics, pa.string()).take(pa.array(found["metric"]))
        kinds = pa.array(KINDS, pa.string()).take(pa.array(found["kind"]))
        sizes = pa.array(found["size"], pa.float64(), mask=found["kind"] > KINDS.index("drift"))
        ids = self.ids.take(pa.array(found["device"]))
        return pa.RecordBatch.from_arrays([ids, start, names, kinds, start, end_at, sizes], schema=TRUTH)


def event_times(numbers: Integers, start_us: int, step_us: float) -> Integers:
    """Times of events by number: `step_us` apart."""
    times: Integers = start_us + np.rint(numbers * step_us).astype(np.int64)
    return times


def stream(seed: int, number: int) -> np.random.Generator:
    """The random stream of one block or slot, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
