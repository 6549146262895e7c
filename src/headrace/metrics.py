"""Every metric of headrace, in one place. Names follow the Prometheus conventions: base units, `_total` for counters.

For each component, at any moment: received = sent + filtered + dead + in flight. Sources, the HTTP door and sinks count
here as they go; pipelines keep their totals in the log, in the transaction of each epoch, and are read from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COMPONENT = ("component", "component_kind")


@dataclass(frozen=True, slots=True)
class Count:
    """Rows of one component so far. Always: received = sent + filtered + dead + in_flight."""

    received: int = 0
    sent: int = 0
    filtered: int = 0
    dead: int = 0
    in_flight: int = 0
    bytes: int = 0


class Metrics:
    """The registry and the metrics that are counted as things happen. Cheap enough for every batch, never for every row."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def counter(name: str, text: str, labels: Iterable[str] = _COMPONENT) -> Counter:
            return Counter(name, text, tuple(labels), registry=self.registry)

        def gauge(name: str, text: str, labels: Iterable[str] = _COMPONENT) -> Gauge:
            return Gauge(name, text, tuple(labels), registry=self.registry)

        def histogram(name: str, text: str, labels: Iterable[str] = ()) -> Histogram:
            return Histogram(name, text, tuple(labels), buckets=_LATENCY, registry=self.registry)

        self.errors = counter(
            "headrace_component_errors_total", "Failed attempts.", (*_COMPONENT, "stage", "reason")
        )
        self.dead_letters = counter(
            "headrace_dead_letters_total",
            "Dead letters by cause, since this process started.",
            ("topic", "component", "code"),
        )
        self.circuit_open = gauge(
            "headrace_sink_circuit_open", "1 while a sink waits after failures.", ("component",)
        )
        self.end_to_end = histogram(
            "headrace_end_to_end_latency_seconds",
            "From accepting a row to its result being durable.",
            ("pipeline",),
        )
        self.epoch = histogram(
            "headrace_component_processing_duration_seconds", "Duration of an epoch or a write.", _COMPONENT
        )
        self.durations = {
            name: histogram(name, text)
            for name, text in {
                "headrace_log_append_duration_seconds": "From handing rows to the log until they are durable.",
                "headrace_log_fsync_duration_seconds": "Committing one group of appends, fsync included.",
                "headrace_log_checkpoint_duration_seconds": "Moving the write-ahead log into the database file.",
            }.items()
        }

        self._counts: dict[tuple[str, str], Count] = {}
        self._lock = threading.Lock()

    def arrive(self, component: str, kind: str, rows: int, size: int = 0) -> None:
        """Rows reached a component and are now on their way."""
        with self._lock:
            count = self._counts.get((component, kind), Count())
            self._counts[component, kind] = replace(
                count,
                received=count.received + rows,
                in_flight=count.in_flight + rows,
                bytes=count.bytes + size,
            )

    def settle(
        self, component: str, kind: str, *, sent: int = 0, filtered: int = 0, dead: int = 0, refused: int = 0
    ) -> None:
        """What became of rows that arrived. `refused` rows were given back to the sender: as if they had never come."""
        with self._lock:
            count = self._counts.get((component, kind), Count())
            self._counts[component, kind] = replace(
                count,
                received=count.received - refused,
                sent=count.sent + sent,
                filtered=count.filtered + filtered,
                dead=count.dead + dead,
                in_flight=count.in_flight - sent - filtered - dead - refused,
            )

    def counts(self) -> dict[tuple[str, str], Count]:
        """(component, kind) -> its count, all from one moment."""
        with self._lock:
            return dict(self._counts)

    def observe(self, name: str, seconds: float) -> None:
        """A duration measured by the log."""
        self.durations[name].observe(seconds)


class Readings(Collector):
    """Values that are read when somebody asks: `read` gives (name, help, is counter, labels, value)."""

    def __init__(self, read: Callable[[], Iterable[tuple[str, str, bool, dict[str, str], float]]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, text, is_counter, labels, value in self._read():
            family = families.get(name)
            if family is None:
                make = CounterMetricFamily if is_counter else GaugeMetricFamily
                family = families[name] = make(name, text, labels=tuple(labels))
            family.add_metric(tuple(labels.values()), value)
        return families.values()
