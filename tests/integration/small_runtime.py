"""A small real runtime for the HTTP edge: a memory log, real decoding, DuckDB over the rows, no pipelines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from typing import Any

import prometheus_client
import pyarrow as pa

from headrace.clock import Clock, SystemClock
from headrace.config import Config, ServerOptions
from headrace.errors import ConfigError
from headrace.ingest import Ingest, Intake
from headrace.log.memory import MemoryLog
from headrace.metrics import Metrics
from headrace.model import DEAD_LETTERS, EVENTS, TIMESTAMP, Receipt, Reject, Rows, Span, Topic, dead_letters
from headrace.push import Limits, Push
from headrace.serve.app import App, create_app
from headrace.serve.server import Server
from headrace.store import Store
from headrace.units import Duration

MEASUREMENTS = pa.schema(
    [
        pa.field("sensor_id", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("timestamp", TIMESTAMP, nullable=False),
    ]
)
AGGREGATIONS = pa.schema(
    [
        pa.field("sensor_id", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("period", pa.string()),
        pa.field("window_start", TIMESTAMP, nullable=False),
        pa.field("window_end", TIMESTAMP, nullable=False),
        pa.field("count", pa.int64()),
        pa.field("avg_value", pa.float64()),
        pa.field("min_value", pa.float64()),
        pa.field("max_value", pa.float64()),
    ]
)


@dataclasses.dataclass
class SmallRuntime:
    """See `headrace.serve.runtime.Runtime`."""

    config: Config = dataclasses.field(default_factory=Config)
    clock: Clock = dataclasses.field(default_factory=SystemClock)
    fault: Exception | None = None
    """Raised by the next pushes, as a full disk would."""
    unwell: str = ""
    ready: bool = True
    pipelines: dict[str, Any] = dataclasses.field(default_factory=dict)
    sinks: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open()

    def reset(self) -> None:
        """As new, for the next test on the same server."""
        self.close()
        self.fault, self.unwell, self.ready = None, "", True
        self.open()

    def close(self) -> None:
        self.store.close()
        self.log.close()

    def open(self) -> None:
        self.log = MemoryLog(clock=self.clock)
        for name, schema, at in (
            ("events", EVENTS, "timestamp"),
            ("measurements", MEASUREMENTS, "timestamp"),
            ("aggregations", AGGREGATIONS, "window_start"),
            ("dead_letters", DEAD_LETTERS, "timestamp"),
        ):
            self.log.create(Topic(name, schema, at=at))
        self.store = Store(self.log, {})
        self.registry = prometheus_client.CollectorRegistry()
        self.accepted = prometheus_client.Counter(
            "headrace_accepted_records", "Rows accepted", registry=self.registry
        )
        self.lock = threading.Lock()
        limits = Limits(max_decompressed=self.config.server.max_decompressed.bytes)
        metrics = Metrics()
        self._push = Push(Ingest(self.log, self.clock, metrics), self.log, self.clock, metrics, limits)
        self.causes: Tally[tuple[str, str]] = Tally()
        self.examples: dict[tuple[str, str], str] = {}
        self.counts: Tally[str] = Tally()
        self.running = {"system": True, "fleet": True}
        self.started_at = self.clock.now_us()
        self.gate = threading.Event()
        self.gate.set()
        """Closed: pushes wait, as they do for a slow disk."""

    def push(
        self,
        topic: str,
        body: bytes,
        *,
        media_type: str,
        encoding: str,
        idempotency_key: str | None,
        client: str,
    ) -> Receipt:
        self._hold()
        receipt = self._push.push(
            topic, body, media_type=media_type, encoding=encoding, idempotency_key=idempotency_key
        )
        return receipt if receipt.duplicate else self._noted(topic, receipt)

    def prepare(self, topic: str, body: bytes, *, media_type: str, encoding: str, client: str) -> Intake:
        self._hold()
        return self._push.prepare(topic, body, media_type=media_type, encoding=encoding)

    def commit(self, intakes: Sequence[Intake]) -> list[Receipt | Exception]:
        results = self._push.commit(intakes)
        return [
            self._noted(intake.topic, result) if isinstance(result, Receipt) else result
            for intake, result in zip(intakes, results, strict=True)
        ]

    def _hold(self) -> None:
        self.gate.wait(20)
        if self.fault is not None:
            raise self.fault

    def _noted(self, topic: str, receipt: Receipt) -> Receipt:
        with self.lock:
            self.counts["accepted"] += receipt.accepted
            self.accepted.inc(receipt.accepted)
            self._tally(receipt.rejects, topic)
        return receipt

    def _tally(self, rejects: Sequence[Reject], topic: str) -> None:
        for reject in rejects:
            self.causes[reject.code, topic] += 1
            self.examples[reject.code, topic] = reject.raw[:200].decode("utf-8", "replace")

    def put_aside(self, rejects: Sequence[Reject], topic: str) -> None:
        if rejects:
            now_us = self.clock.now_us()
            self.log.append(
                "dead_letters", 0, dead_letters(rejects, now_us=now_us, topic=topic, component="http")
            )
            self._tally(rejects, topic)

    def table(self, topic: str) -> pa.Table:
        """All rows of a topic."""
        return pa.Table.from_batches([self.log.read(topic, 0, self.log.extent(topic, 0))])

    def append(self, topic: str, rows: Rows) -> Span:
        self.counts[topic] += rows.num_rows
        return self.log.append(topic, 0, rows)

    def status(self) -> dict[str, Any]:
        sources = {
            name: {
                "state": "running" if on else "stopped", "kind": kind, "topic": "events", "received": self.counts[name],
                "accepted": self.counts[name], "rejected": 0, "last_error": None, "since": self.started_at,
            }
            for (name, on), kind in zip(self.running.items(), ("system_metrics", "generate"), strict=True)
        }  # fmt: skip
        topics = {
            name: {
                "partitions": 1, "rows": len(self.log.extent(name, 0)), "bytes": self.log.bytes(name, 0),
                "rate": float(self.counts[f"rate {name}"]),
            }
            for name in self.log.topics()
        }  # fmt: skip
        return {
            "started_at": self.started_at, "sources": sources, "pipelines": self.pipelines, "sinks": self.sinks,
            "topics": topics, "log": {"bytes": sum(t["bytes"] for t in topics.values())},
            "rates": {"ingest_per_second": float(self.counts["rate"])}, "latency_ms": {"p50": 1.5, "p99": 4.0},
        }  # fmt: skip

    def health(self) -> dict[str, Any]:
        components = [{"name": "log", "kind": "log", "status": "ok", "reason": "", "since": self.started_at}]
        if self.unwell:
            components.append(
                {
                    "name": "lake",
                    "kind": "sink",
                    "status": "failing",
                    "reason": self.unwell,
                    "since": self.started_at,
                }
            )
        return {"status": "degraded" if self.unwell else "ok", "ready": self.ready, "components": components}

    def start(self, source: str, interval: str | None) -> None:
        if interval is not None:
            try:
                Duration.parse(interval)
            except ValueError as error:
                raise ConfigError(f"interval: {error}") from None
        if source not in self.running:
            raise LookupError(source)
        self.running[source] = True

    def stop(self, source: str | None) -> None:
        if source is not None and source not in self.running:
            raise LookupError(source)
        for name in [source] if source is not None else list(self.running):
            self.running[name] = False

    def dead_letter_causes(self) -> list[dict[str, Any]]:
        return [
            {
                "code": code, "topic": topic, "component": "http", "count": count,
                "last_seen": self.clock.now_us(), "example": self.examples[code, topic],
            }
            for (code, topic), count in self.causes.items()
        ]  # fmt: skip


def measurements(
    sensors: Sequence[str], metric: str, values: Sequence[float | None], at_us: Sequence[int]
) -> Rows:
    """Rows of the topic `measurements`."""
    columns = [
        pa.array(sensors, pa.string()), pa.array([metric] * len(sensors), pa.string()),
        pa.array(values, pa.float64()), pa.array(at_us, TIMESTAMP),
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=MEASUREMENTS)


def options(**changes: Any) -> Config:
    """A configuration with these server options."""
    return Config(server=ServerOptions(**changes))


@dataclasses.dataclass
class Running:
    """A server on a free port of this machine, and raw requests to it."""

    runtime: SmallRuntime
    app: App
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def raw(self, request: bytes) -> tuple[int, dict[str, str], Any]:
        """Send bytes as they are; the status, headers and JSON body of what comes back. Needs a closing answer."""
        with self.connect() as sock:
            sock.sendall(request)
            answer = b""
            while part := sock.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = json.loads(body) if "json" in headers.get("content-type", "") else body
        return int(first.split()[1]), headers, content


@contextlib.contextmanager
def running(runtime: SmallRuntime) -> Iterator[Running]:
    """The app of a runtime, served by the real server in a thread."""
    app = create_app(runtime)
    server = Server(app, "127.0.0.1", 0)
    server.start()
    try:
        yield Running(runtime, app, server.port)
    finally:
        runtime.gate.set()
        server.stop()
        runtime.close()
