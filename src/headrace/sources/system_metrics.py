"""Load of this very machine: processors, memory, disks, network, processes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Annotated

import psutil
import pyarrow as pa

from headrace.clock import SystemClock
from headrace.component import EVENTS, Arrival, Cursor, Duration, PlanError, Source, option
from headrace.model import TIMESTAMP, open_struct

_FIELDS = (
    "cpu_percent",
    "load_1m",
    "memory_percent",
    "memory_used_bytes",
    "swap_percent",
    "disk_percent",
    "disk_read_bytes_per_second",
    "disk_write_bytes_per_second",
    "network_received_bytes_per_second",
    "network_sent_bytes_per_second",
    "process_count",
)
_ALIVE = 0.5  # seconds between signs of life while waiting for a longer interval


class SystemMetrics(Source, frozen=True, kw_only=True):
    """Processor, memory, disk, network and process figures of this machine, one event each interval.

    A figure that the system doesn't give is left out of the event. Rates are averages since the event before; the first
    event has none.
    """

    interval: Annotated[Duration, option("time between events")] = Duration.parse("1s")
    source_id: Annotated[str, option("source of the events; empty: the host's name")] = ""
    per_core: Annotated[bool, option("also `cpu_0_percent` and so on, one for each core")] = False
    path: Annotated[str, option("a path on the disk whose fill is measured", min_length=1)] = "/"
    count: Annotated[int, option("events in all; 0: for ever", ge=0)] = 0

    @classmethod
    def example(cls) -> SystemMetrics:
        return cls(interval=Duration.parse("50ms"), count=4, per_core=True)

    def check(self) -> None:
        if self.interval.us < 10_000:
            raise PlanError("system_metrics: interval is at least 10ms")

    def schema(self) -> pa.Schema:
        fields = [pa.field(name, pa.float64()) for name in _FIELDS]
        return EVENTS.set(EVENTS.get_field_index("payload"), open_struct(fields))

    def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
        """The cursor is `{"count": events so far}`: the machine's past can't be measured again."""
        clock = SystemClock()
        never = threading.Event()
        source_id = self.source_id or socket.gethostname() or "localhost"
        sent = int(cursor["count"]) if cursor else 0
        meter = _Meter(self.path, self.per_core)
        meter.read(clock.monotonic())  # psutil's processor figures are since the call before
        due = clock.monotonic()
        while not self.count or sent < self.count:
            due += self.interval.seconds
            wait = due - clock.monotonic()
            while wait > _ALIVE:
                clock.wait(never, _ALIVE)
                yield Arrival()
                wait = due - clock.monotonic()
            if wait > 0:
                clock.wait(never, wait)
            else:
                due = (
                    clock.monotonic()
                )  # the machine slept, or was too busy: don't make up for what was missed
            sent += 1
            yield Arrival(_event(source_id, clock.now_us(), meter.read(clock.monotonic())), {"count": sent})


def _event(source_id: str, now_us: int, values: dict[str, float]) -> pa.RecordBatch:
    payload = pa.array([values], pa.struct([pa.field(name, pa.float64()) for name in values]))
    now = pa.array([now_us], TIMESTAMP)
    arrays = [pa.array([source_id], pa.string()), now, now, pa.array(["system"], pa.string()), payload]
    schema = EVENTS.set(EVENTS.get_field_index("payload"), open_struct(list(payload.type)))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class _Meter:
    """Reads the figures; keeps the last totals, of which rates are the differences."""

    def __init__(self, path: str, per_core: bool) -> None:
        self._path = path
        self._per_core = per_core
        self._totals: dict[str, float] = {}
        self._at: float | None = None

    def read(self, now: float) -> dict[str, float]:
        """All figures that there are, by name. `now` is a monotonic clock's reading in seconds."""
        values: dict[str, float] = {}
        for read in (self._processor, self._memory, self._disk, self._processes):
            _try(read, values)
        totals: dict[str, float] = {}
        for read in (self._disk_totals, self._network_totals):
            _try(read, totals)
        elapsed = now - self._at if self._at is not None else 0.0
        if elapsed > 0:
            for name, total in totals.items():
                # Totals fall when a device is removed or a counter wraps: then there is no rate.
                if name in self._totals and total >= self._totals[name]:
                    values[f"{name}_bytes_per_second"] = (total - self._totals[name]) / elapsed
        self._totals, self._at = totals, now
        return values

    def _processor(self, into: dict[str, float]) -> None:
        into["cpu_percent"] = psutil.cpu_percent(None)
        if self._per_core:
            into |= {
                f"cpu_{i}_percent": share for i, share in enumerate(psutil.cpu_percent(None, percpu=True))
            }
        into["load_1m"] = psutil.getloadavg()[0]

    def _memory(self, into: dict[str, float]) -> None:
        memory = psutil.virtual_memory()
        into["memory_percent"] = memory.percent
        into["memory_used_bytes"] = float(memory.used)
        into["swap_percent"] = psutil.swap_memory().percent

    def _disk(self, into: dict[str, float]) -> None:
        into["disk_percent"] = psutil.disk_usage(self._path).percent

    def _processes(self, into: dict[str, float]) -> None:
        into["process_count"] = float(len(psutil.pids()))

    def _disk_totals(self, into: dict[str, float]) -> None:
        disks = psutil.disk_io_counters()
        if disks is not None:
            into |= {"disk_read": float(disks.read_bytes), "disk_write": float(disks.write_bytes)}

    def _network_totals(self, into: dict[str, float]) -> None:
        network = psutil.net_io_counters()
        if network is not None:
            into |= {"network_received": float(network.bytes_recv), "network_sent": float(network.bytes_sent)}


def _try(read: Callable[[dict[str, float]], None], into: dict[str, float]) -> None:
    """Leave out what this system doesn't have: containers and small boards lack some figures, each in its own way."""
    try:
        read(into)
    except (OSError, RuntimeError, AttributeError, NotImplementedError, ValueError, KeyError, psutil.Error):
        return
