"""What there is to tell viewers: looks at the runtime and at the newest rows of the log, and finds what changed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import __version__
from headrace.errors import HeadraceError
from headrace.jsonrows import to_json_columns
from headrace.model import Rows, Span, Topic, concat
from headrace.serve.runtime import Runtime

TAIL_ROWS = 2_000
"""Rows read of a topic at one look; of more, only the newest count."""
SENT_ROWS = 400
"""Rows of a topic in one update: the newest of each key."""
STATE_ROWS = 2_000
LIVE: Mapping[str, tuple[str, ...]] = {
    "measurements": ("sensor_id", "metric"),
    "aggregations": ("sensor_id", "metric", "period"),
    "anomalies": ("sensor_id", "metric"),
    "alerts": ("alert_id", "sensor_id", "metric", "type"),
}
"""Topics shown live -> columns of which the newest row of each combination is sent."""
METRICS_EVERY = 2
ERRORS_EVERY = 4
"""Ticks between two looks at what costs more or changes less."""
HISTORY_POINTS = 660
"""Seconds of rate and latency kept for the next viewer's charts."""


class Observer:
    """Remembers what it saw last. `state` gives everything, `tick` what is new; both may run in any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], int] = {}
        self._states: Any = None
        self._causes: dict[tuple[str, str, str], int] = {}
        self._unwell: dict[str, str] = {}
        self._ticks = 0
        self._primed = False
        self._history: deque[tuple[int, Any, Any, Any]] = deque(maxlen=HISTORY_POINTS)

    def state(self) -> dict[str, Any]:
        """All that a new viewer needs: counts, health, dead letters by cause, and the newest rows."""
        runtime = self._runtime
        tables = {}
        for name, topic in self._live_topics().items():
            spans = [(p, runtime.log.extent(name, p)) for p in range(topic.partitions)]
            share = STATE_ROWS // topic.partitions
            rows = self._read(topic, [(p, Span(max(s.start, s.end - share), s.end)) for p, s in spans])
            tables[name] = to_json_columns(newest(rows, LIVE[name], topic.at, STATE_ROWS))
        return {
            "version": __version__,
            "status": runtime.status(),
            "health": runtime.health(),
            "dead_letters": runtime.dead_letter_causes(),
            "tables": tables,
            "history": self._past(),
        }

    def rest(self) -> None:
        """One look while nobody watches: a point of history; what happens meanwhile is no news to anybody."""
        with self._lock:
            self._seen.clear()
            self._primed = False
            self._note(self._runtime.status())

    def _note(self, status: Mapping[str, Any]) -> None:
        """Keep one point a second."""
        now = self._runtime.clock.now_us() // 1_000
        if self._history and now - self._history[-1][0] < 900:
            return
        rates, latency = status.get("rates", {}), status.get("latency_ms", {})
        self._history.append((now, rates.get("ingest_per_second"), latency.get("p50"), latency.get("p99")))

    def _past(self) -> dict[str, list[Any]]:
        points = list(self._history)
        names = ("at", "ingest_per_second", "p50", "p99")
        return {name: [point[column] for point in points] for column, name in enumerate(names)}

    def tick(self) -> list[tuple[str, Any]]:
        """(event, data) of what is new since the last call. The first call finds where things stand, and tells less."""
        with self._lock:
            number, self._ticks = self._ticks, self._ticks + 1
            first, self._primed = not self._primed, True
            news: list[tuple[str, Any]] = []
            tables = self._new_rows()
            if tables:
                news.append(("data_update", tables))
            if first or number % METRICS_EVERY == 0:
                news += self._metrics(quiet=first)
            if first or number % ERRORS_EVERY == 0:
                news += self._errors(quiet=first)
            return news

    # -- rows --------------------------------------------------------------------------------------

    def _live_topics(self) -> dict[str, Topic]:
        topics = self._runtime.log.topics()
        return {name: topics[name] for name in LIVE if name in topics}

    def _new_rows(self) -> dict[str, Any]:
        tables = {}
        for name, topic in self._live_topics().items():
            share = max(1, TAIL_ROWS // topic.partitions)
            spans, count = [], 0
            for partition in range(topic.partitions):
                extent = self._runtime.log.extent(name, partition)
                seen = self._seen.get((name, partition), extent.end)
                self._seen[name, partition] = extent.end
                count += max(0, extent.end - seen)
                start = max(extent.start, extent.end - share, min(seen, extent.end))
                spans.append((partition, Span(start, extent.end)))
            if count:
                rows = newest(self._read(topic, spans), LIVE[name], topic.at, SENT_ROWS)
                tables[name] = {"rows": count, "columns": to_json_columns(rows)}
        return tables

    def _read(self, topic: Topic, spans: Sequence[tuple[int, Span]]) -> Rows:
        batches = []
        for partition, span in spans:
            if len(span):
                try:
                    batches.append(self._runtime.log.read(topic.name, partition, span))
                except HeadraceError:
                    continue  # retention was faster; what is gone is not news
        return concat(batches, batches[0].schema if batches else topic.schema)

    # -- counts and troubles -----------------------------------------------------------------------

    def _metrics(self, *, quiet: bool) -> list[tuple[str, Any]]:
        status = self._runtime.status()
        self._note(status)
        states = {
            family: {
                name: {key: part.get(key) for key in ("kind", "state", "circuit", "last_error")}
                for name, part in status.get(family, {}).items()
            }
            for family in ("sources", "pipelines", "sinks")
        }
        news: list[tuple[str, Any]] = [("metrics_update", status)]
        if states != self._states and not quiet:
            news.append(("stream_status", states))
        self._states = states
        return news

    def _errors(self, *, quiet: bool) -> list[tuple[str, Any]]:
        news: list[tuple[str, Any]] = []
        causes = self._runtime.dead_letter_causes()
        fresh = []
        for cause in causes:
            key = (cause["code"], cause["topic"], cause["component"])
            more = cause["count"] - self._causes.get(key, 0)
            if more:  # fewer than before: some were dropped or replayed
                fresh.append({**cause, "new": more})
            self._causes[key] = cause["count"]
        if fresh and not quiet:
            news.append(("error_alert", {"kind": "dead_letters", "causes": fresh[:50]}))
        health = self._runtime.health()
        for part in health["components"]:
            name, status = f"{part['kind']}/{part['name']}", part["status"]
            if status != self._unwell.get(name, "ok") and not quiet:
                news.append(("error_alert", {"kind": "component", "component": part, "health": health}))
            self._unwell[name] = status
        return news


def newest(rows: Rows, keys: Sequence[str], at: str, most: int) -> pa.Table:
    """The newest row of each combination of those key columns that are there, at most `most`, oldest first."""
    table = pa.Table.from_batches([rows])
    if not rows.num_rows:
        return table
    codes = np.zeros(rows.num_rows, np.int64)
    for name in keys:
        if name in rows.schema.names:
            encoded = pc.dictionary_encode(rows.column(name), null_encoding="encode")
            codes = codes * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy(zero_copy_only=False)
    times: npt.NDArray[np.int64] = np.arange(rows.num_rows)
    if at in rows.schema.names and pa.types.is_timestamp(rows.schema.field(at).type):
        times = pc.fill_null(pc.cast(rows.column(at), pa.int64()), 0).to_numpy(zero_copy_only=False)
    order = np.argsort(times, kind="stable")[::-1]
    _, first = np.unique(codes[order], return_index=True)
    chosen = order[np.sort(first)[:most]][::-1]
    return table.take(pa.array(chosen))
