"""What a running headrace knows of itself: rates, lag, latency, health, dead letters by cause, metrics read on demand."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.component import kind_of
from headrace.metrics import Count
from headrace.model import Span

if TYPE_CHECKING:
    from headrace.log import Positions
    from headrace.runtime import Runtime

_MAX_CAUSES = 200  # topics x components x codes; the rest is counted as `other`
_CHUNK = 20_000  # dead letters looked at in one go


class Monitor:
    """Looks once a second. `status`, `health` and `readings` may be called from any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._started_us = runtime.clock.now_us()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._lock = threading.Lock()
        self._ages: deque[tuple[float, float]] = deque(maxlen=10_000)  # (monotonic, seconds)
        self._ends: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._arrived = 0
        self._ingest_rate = 0.0
        self._looked = 0.0
        self._causes: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._causes_read = 0
        self._started = False

    def start(self) -> None:
        self._started = True
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        retained = self._runtime.clock.monotonic()
        while not self._runtime.clock.wait(self._stop, 1.0):
            self._measure()
            self._read_causes()
            now = self._runtime.clock.monotonic()
            if now - retained >= 30:
                retained = now
                self._runtime.log.retain(self._runtime.clock.now_us())

    # -- measuring ---------------------------------------------------------------------------------

    def epoch_done(self, pipeline: str, seconds: float, age: float | None) -> None:
        """Told by the engine after each epoch."""
        self._runtime.metrics.epoch.labels(pipeline, "pipeline").observe(seconds)
        if age is not None:
            self._runtime.metrics.end_to_end.labels(pipeline).observe(age)
            self._ages.append((self._runtime.clock.monotonic(), age))

    def _measure(self) -> None:
        log, now = self._runtime.log, self._runtime.clock.monotonic()
        elapsed = now - self._looked
        ends = {
            name: sum(log.extent(name, partition).end for partition in range(topic.partitions))
            for name, topic in log.topics().items()
        }
        fed = {entry.topic for entry in self._runtime.config.sources.values()} | {"events"}
        arrived = sum(ends.get(name, 0) for name in fed)
        with self._lock:
            if self._looked:
                self._rates = {name: (end - self._ends.get(name, 0)) / elapsed for name, end in ends.items()}
                self._ingest_rate = (arrived - self._arrived) / elapsed
            self._ends, self._arrived, self._looked = ends, arrived, now

    def _read_causes(self) -> None:
        log = self._runtime.log
        extent = log.extent("dead_letters", 0)
        while self._causes_read < extent.end and not self._stop.is_set():
            start = max(self._causes_read, extent.start)
            span = Span(start, min(start + _CHUNK, extent.end))
            if not len(span):
                break
            rows = log.read("dead_letters", 0, span)
            table = rows.select(["topic", "component", "code", "reason", "timestamp"])
            groups = pa.Table.from_batches([table]).group_by(["topic", "component", "code"])
            found = groups.aggregate(
                [("reason", "count"), ("reason", "max"), ("timestamp", "max"), ("timestamp", "min")]
            )
            with self._lock:
                for row in found.to_pylist():  # one for each cause, not for each dead letter
                    key = (row["topic"], row["component"], row["code"])
                    if key not in self._causes and len(self._causes) >= _MAX_CAUSES:
                        key = ("other", "other", "other")
                    cause = self._causes.setdefault(
                        key, {"count": 0, "example": row["reason_max"], "first_seen": row["timestamp_min"]}
                    )
                    cause["count"] += row["reason_count"]
                    cause["last_seen"] = row["timestamp_max"]
                self._causes_read = span.end
            extent = log.extent("dead_letters", 0)

    # -- answers -----------------------------------------------------------------------------------

    def dead_letter_causes(self) -> list[dict[str, Any]]:
        """Dead letters kept, by cause, most frequent first."""
        with self._lock:
            causes = [
                {"topic": topic, "component": component, "code": code, **cause}
                for (topic, component, code), cause in self._causes.items()
            ]
        return sorted(causes, key=lambda cause: -cause["count"])

    def status(self) -> dict[str, Any]:
        """Everything at a glance; times in microseconds since 1970."""
        runtime = self._runtime
        log = runtime.log
        topics = log.topics()
        with self._lock:
            rates, ingest_rate = dict(self._rates), self._ingest_rate
        return {
            "started_at": self._started_us,
            "sources": {name: self._source(name) for name in runtime.config.sources},
            "pipelines": self._pipelines(),
            "sinks": {name: self._sink(name) for name in runtime.config.sinks},
            "topics": {
                name: {
                    "partitions": topic.partitions,
                    "rows": sum(len(log.extent(name, p)) for p in range(topic.partitions)),
                    "bytes": sum(log.bytes(name, p) for p in range(topic.partitions)),
                    "rate": rates.get(name, 0.0),
                }
                for name, topic in topics.items()
                if not name.startswith("_")
            },
            "log": {
                "bytes": sum(log.bytes(name, p) for name, t in topics.items() for p in range(t.partitions))
            },
            "rates": {"ingest_per_second": ingest_rate},
            "latency_ms": self._latency(),
        }

    def _latency(self) -> dict[str, float | None]:
        since = self._runtime.clock.monotonic() - 30
        ages = [age for at, age in list(self._ages) if at >= since]
        if not ages:
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(ages, [50, 99])
        return {"p50": round(float(p50) * 1000, 3), "p99": round(float(p99) * 1000, 3)}

    def _source(self, name: str) -> dict[str, Any]:
        entry = self._runtime.config.sources[name]
        shards = self._runtime.shards().get(name, [])
        first = shards[0] if shards else None
        return {
            "kind": kind_of(entry.source),
            "topic": entry.topic,
            "state": _worst([shard.state for shard in shards]) if shards else "stopped",
            "received": sum(shard.received for shard in shards),
            "accepted": sum(shard.accepted for shard in shards),
            "rejected": sum(shard.rejected for shard in shards),
            "last_error": next((shard.last_error for shard in shards if shard.last_error), ""),
            "since": first.since_us if first else 0,
            "last_at": max((shard.last_us for shard in shards), default=0),
        }

    def _pipelines(self) -> dict[str, dict[str, Any]]:
        log = self._runtime.log
        states = self._runtime.workers()
        while True:
            # Totals and positions change in one transaction: read between two equal looks, they belong together.
            counts = log.counts()
            positions = {name: log.positions(f"pipeline:{name}") for name in self._runtime.config.pipelines}
            if all(log.counts().get(owner, (None,))[0] == epoch for owner, (epoch, _) in counts.items()):
                break
        answer = {}
        for name, pipeline in self._runtime.config.pipelines.items():
            mine = [(epoch, totals) for (owner, _), (epoch, totals) in counts.items() if owner == name]
            workers = states.get(name, [])
            watermarks = [epoch.watermark_us for epoch, _ in mine]
            answer[name] = {
                "state": _worst([worker.state for worker in workers]) if workers else "stopped",
                "from": list(pipeline.topics),
                "to": pipeline.output,
                "lag_records": self._behind(positions[name]),
                "in_flight": self._behind(positions[name], pipeline.topics),
                "watermark": min(watermarks) if watermarks and min(watermarks) > -(2**61) else None,
                "epoch": sum(epoch.number for epoch, _ in mine),
                **{
                    total: sum(totals.get(total, 0) for _, totals in mine)
                    for total in ("received", "sent", "filtered", "dead", "late", "emitted")
                },
                "last_error": next((worker.last_error for worker in workers if worker.last_error), ""),
                "problem": next((worker.problem for worker in workers if worker.problem), ""),
                "since": max((worker.since_us for worker in workers), default=0),
            }
        return answer

    def _behind(self, positions: Positions, topics: Sequence[str] | None = None) -> int:
        """Rows in the log past these positions, in all topics or only some."""
        return sum(
            max(0, self._runtime.log.extent(name, partition).end - position)
            for (name, partition), position in positions.items()
            if topics is None or name in topics
        )

    def _sink(self, name: str) -> dict[str, Any]:
        entry = self._runtime.config.sinks[name]
        deliveries = self._runtime.deliveries().get(name, [])
        return {
            "kind": kind_of(entry.sink),
            "topics": list(entry.topics),
            "state": _worst([delivery.state for delivery in deliveries]) if deliveries else "stopped",
            "position": {d.topic: sum(d.positions.values()) for d in deliveries},
            "lag_records": self._behind(self._runtime.log.positions(f"sink:{name}")),
            "circuit": next((d.circuit for d in deliveries if d.circuit != "closed"), "closed"),
            "retries": sum(delivery.retries for delivery in deliveries),
            "received": sum(
                self._runtime.log.extent(d.topic, partition).end - first
                for d in deliveries
                for partition, first in list(d.first.items())
            ),
            "written": sum(delivery.written for delivery in deliveries),
            "dead": sum(delivery.dead for delivery in deliveries),
            "last_error": next((delivery.last_error for delivery in deliveries if delivery.last_error), ""),
            "since": max((delivery.since_us for delivery in deliveries), default=0),
        }

    def health(self) -> dict[str, Any]:
        """`ok`, `degraded` (something is retried or stopped, nothing is lost) or `failing`; each component with its reason."""
        status = self.status()
        components = []
        for kind in ("sources", "pipelines", "sinks"):
            for name, item in status[kind].items():
                state = item["state"]
                bad = {"failed": "failing", "retrying": "degraded"}.get(state, "ok")
                if bad == "ok" and state != "stopped" and item.get("problem"):
                    bad = "degraded"
                components.append(
                    {
                        "name": name,
                        "kind": kind[:-1],
                        "status": bad,
                        "reason": _reason(kind[:-1], bad, item),
                        "since": item["since"],
                    }
                )
        free = shutil.disk_usage(self._runtime.config.data_dir).free
        disk = "failing" if free < 50 * 2**20 else "degraded" if free < 500 * 2**20 else "ok"
        components.append(
            {
                "name": "disk",
                "kind": "log",
                "status": disk,
                "reason": f"{free // 2**20} MiB free for {self._runtime.config.data_dir}"
                + ("" if disk == "ok" else "; make room, or lower `retention` and `max_size` of topics"),
                "since": self._started_us,
            }
        )
        states = {component["status"] for component in components}
        overall = "failing" if "failing" in states else "degraded" if "degraded" in states else "ok"
        starting = [  # sinks come at their own pace: rows are accepted, worked on and found without them
            name
            for kind in ("sources", "pipelines")
            for name, item in status[kind].items()
            if item["state"] in ("starting", "recovering")
        ]
        return {"status": overall, "ready": self._started and not starting, "components": components}

    # -- metrics -----------------------------------------------------------------------------------

    def readings(self) -> Iterable[tuple[str, str, bool, dict[str, str], float]]:
        """Metrics whose truth is in the log or on the disk."""
        runtime, status = self._runtime, self.status()
        counts = dict(runtime.metrics.counts())
        for name, item in status["pipelines"].items():
            # What has come in is known from the log's extents, what became of it from the epochs' totals.
            lag = item["in_flight"]
            counts[name, "pipeline"] = Count(
                received=item["received"] + lag,
                sent=item["sent"],
                filtered=item["filtered"],
                dead=item["dead"] + item["late"],
                in_flight=lag,
            )
            labels = {"component": name, "component_kind": "pipeline"}
            yield (
                "headrace_pipeline_emitted_records",
                "Rows written to the output topic.",
                True,
                labels,
                item["emitted"],
            )
            yield (
                "headrace_pipeline_late_records",
                "Rows that came too late for their window.",
                True,
                labels,
                item["late"],
            )
            if item["watermark"] is not None:
                text = "Event time below which nothing more is expected."
                yield (
                    "headrace_pipeline_watermark_timestamp_seconds",
                    text,
                    False,
                    labels,
                    item["watermark"] / 1_000_000,
                )
        for name, item in status["sinks"].items():
            # A target that was set back takes rows again: then it has received more than the log holds.
            settled = item["written"] + item["dead"]
            received = max(item["received"], settled)
            counts[name, "sink"] = Count(
                received=received, sent=item["written"], dead=item["dead"], in_flight=received - settled
            )
        for (name, kind), count in counts.items():
            labels = {"component": name, "component_kind": kind}
            for metric, text, value in (
                ("received", "Rows that reached a component.", count.received),
                ("sent", "Rows that a component passed on durably.", count.sent),
                ("filtered", "Rows that a component left out on purpose.", count.filtered),
                ("dead", "Rows that a component put into the dead letters.", count.dead),
            ):
                yield f"headrace_component_{metric}_records", text, True, labels, value
            text = "Rows received and not yet sent, filtered or dead."
            yield "headrace_component_in_flight_records", text, False, labels, count.in_flight
            if count.bytes:
                yield (
                    "headrace_component_received_bytes",
                    "Bytes that reached a component.",
                    True,
                    labels,
                    count.bytes,
                )
        for kind in ("pipelines", "sinks"):
            for name, item in status[kind].items():
                text = "Rows in the log that a reader has yet to take."
                yield (
                    "headrace_consumer_lag_records",
                    text,
                    False,
                    {"component": name, "component_kind": kind[:-1]},
                    item["lag_records"],
                )
        for name, item in status["topics"].items():
            yield "headrace_log_bytes", "Stored size of a topic.", False, {"topic": name}, item["bytes"]
            yield "headrace_log_records", "Rows kept of a topic.", False, {"topic": name}, item["rows"]
        free = shutil.disk_usage(runtime.config.data_dir).free
        yield "headrace_disk_free_bytes", "Free space under the data directory.", False, {}, free


def _worst(states: Iterable[str]) -> str:
    order = ("failed", "retrying", "recovering", "starting", "running", "idle", "finished", "stopped")
    return min(states, key=lambda state: order.index(state) if state in order else 0)


_WAITS = {"pipeline": "its rows wait in the log", "sink": "rows for it wait in the log"}
_FAILED = {
    "source": "fix that, then start it again by POST /api/stream/start",
    "pipeline": "its rows wait in the log; correct the pipeline, or what it names, and restart headrace",
    "sink": "rows for it wait in the log; correct the sink, or its target, and restart headrace",
}


def _reason(kind: str, status: str, item: dict[str, Any]) -> str:
    """Why a component is as it is, and what to do, if there is anything to do."""
    state, error = item["state"], item["last_error"] or "no reason is known yet"
    if status == "failing":
        return f"stopped: {error}; {_FAILED[kind]}"
    if state == "retrying":
        return "; ".join(filter(None, (error, _WAITS.get(kind), "it is tried again by itself")))
    if status == "degraded":
        return str(item["problem"])
    if state == "stopped" and kind == "source":
        return "stopped; POST /api/stream/start starts it"
    words = {"finished": "finished: all its data is in", "idle": "running; nothing new"}
    return words.get(str(state), str(state))
