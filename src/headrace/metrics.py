"""Every metric of headrace, in one place. Names follow the Prometheus conventions: base units, `_total` for counters.

For each component, at any moment: received = sent + filtered + dead + in flight. Sources, the HTTP door and sinks count
here as they go; pipelines keep their totals in the log, in the transaction of each epoch, and are read from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COMPONENT = ("component", "component_kind")


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

        self.received = counter("headrace_component_received_records_total", "Rows that reached a component.")
        self.received_bytes = counter(
            "headrace_component_received_bytes_total", "Bytes that reached a component."
        )
        self.sent = counter(
            "headrace_component_sent_records_total", "Rows that a component passed on durably."
        )
        self.filtered = counter(
            "headrace_component_filtered_records_total", "Rows that a component left out on purpose."
        )
        self.dead = counter(
            "headrace_component_dead_records_total", "Rows that a component put into the dead letters."
        )
        self.in_flight = gauge(
            "headrace_component_in_flight_records", "Rows received and not yet sent, filtered or dead."
        )
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
