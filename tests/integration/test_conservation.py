"""Every row is accounted for: for each component, received = sent + filtered + dead + in flight, at rest and under load."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from headrace.config import load_config
from headrace.runtime import Runtime
from tests.integration.load import Sender
from tests.integration.process import Headrace

CONFIG = """
sources:
  fleet:
    kind: generate
    devices: 50
    rate: 2000
    anomalies: 0.01
    late: 0.02
    duplicates: 0.02
    malformed: 0.02
  machine:
    kind: system_metrics
    interval: 200ms
pipelines:
  measurements:
    from: events
    steps:
      - unpivot: {}
    to: measurements
    key: sensor_id
  aggregations:
    from: measurements
    steps:
      - window: {length: 1s, by: [sensor_id, metric], late: late_measurements, count: value, avg: value}
    to: aggregations
    key: sensor_id
  warm:
    from: events
    steps:
      - where: payload.temperature > 20
      - sample: {share: 0.5}
    to: warm
  checked:
    from: events
    steps:
      - validate: {range: {payload.temperature: [0, 25]}}
      - where: payload.humidity IS NOT NULL
      - dedupe: {by: [source_id, timestamp], within: 10s}
    to: checked
  both:
    from: [events, dead_letters]
    steps:
      - select: {source_id: source_id, timestamp: timestamp}
      - window: {length: 1s, by: source_id, count: "*"}
    to: both
sinks:
  bronze: {kind: delta, from: events, path: lake, flush_interval: 300ms}
  archive: {kind: files, from: [warm, aggregations], path: archive, flush_interval: 300ms}
engine: {checkpoint_interval: 1s}
"""
LAKE = "sinks: {lake: {kind: delta, from: events, path: lake, flush_interval: 50ms}}"
INPUTS = {
    "measurements": ["events"], "aggregations": ["measurements"], "warm": ["events"], "checked": ["events"],
    "both": ["events", "dead_letters"],
}  # fmt: skip
UNITS = ("_seconds", "_bytes", "_records", "_ratio", "_info")
LABELS = {
    "component", "component_kind", "topic", "pipeline", "code", "stage", "reason", "le", "method", "route", "status",
    "implementation", "major", "minor", "patchlevel", "version",
}  # fmt: skip
Counts = dict[tuple[str, str], dict[str, float]]


def scrape(server: Headrace) -> list[Metric]:
    status, text, headers = server.request("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    return list(text_string_to_metric_families(text.decode()))


def counts(families: list[Metric]) -> Counts:
    """(component, kind) -> received, sent, filtered, dead, in_flight."""
    found: Counts = defaultdict(dict)
    for family in families:
        name = re.fullmatch(
            r"headrace_component_(received|sent|filtered|dead|in_flight)_records", family.name
        )
        for sample in family.samples if name else ():
            found[sample.labels["component"], sample.labels["component_kind"]][name[1]] = sample.value
    return found


def balanced(found: Counts) -> None:
    for component, count in found.items():
        assert min(count.values()) >= 0, (component, count)
        rest = count["sent"] + count["filtered"] + count["dead"] + count["in_flight"]
        assert count["received"] == rest, (component, count)


def ends(server: Headrace) -> dict[str, int]:
    """Topic -> rows ever stored; nothing is deleted in so short a time."""
    return {name: topic["rows"] for name, topic in server.get("/api/stream/status")["topics"].items()}


def at_rest(server: Headrace) -> Counts:
    """Counts once nothing is on its way any more, and has not been for a while."""
    before: Counts = {}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = counts(scrape(server))
        if found == before and not any(count["in_flight"] for count in found.values()):
            return found
        before = found
        time.sleep(2.5)
    raise AssertionError(f"never at rest: {before}")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(CONFIG)
    with Headrace(config, tmp_path / "data") as server:
        before: Counts = {}
        sent_wrong = sent_twice = 0
        with Sender("pushed", server.port, rows=20) as sender:
            for round_ in range(12):
                event = {"sourceId": "x", "payload": {"temperature": 30.0, "humidity": 1}}
                lines = [
                    json.dumps(event),
                    '{"payload": {}}',
                    "{broken",
                    json.dumps({**event, "timestamp": "then"}),
                ]
                headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": f"round/{round_}"}
                for _ in range(2):
                    status, body, _ = server.request("POST", "/ingest", "\n".join(lines).encode(), headers)
                    assert status in (200, 207, 422), body
                sent_wrong += 3
                sent_twice += 4
                assert server.request("POST", "/ingest/nowhere", b"{}")[0] == 404
                assert server.request("POST", "/ingest", b"\xff\xfe", {"Content-Encoding": "gzip"})[0] == 400
                until = time.monotonic() + 0.5
                while time.monotonic() < until:
                    found = counts(scrape(server))
                    balanced(found)
                    for component, values in before.items():
                        for name in ("received", "sent", "filtered", "dead"):
                            assert found[component][name] >= values[name], (component, name, "went back")
                    before = found
        assert set(sender.statuses) == {200}
        for source in ("fleet", "machine"):
            body = json.dumps({"source": source}).encode()
            status, text, _ = server.request(
                "POST", "/api/stream/stop", body, {"Content-Type": "application/json"}
            )
            assert status < 300, text
        found = at_rest(server)
        balanced(found)
        rows = ends(server)
        http = found["http", "source"]
        fleet, machine = (
            found["fleet", "generate"] if ("fleet", "generate") in found else found["fleet", "source"],
            found["machine", "source"],
        )
        # Against the topics, which know nothing of the counters.
        assert http["filtered"] == sent_twice
        assert http["sent"] == sender.acknowledged + 12
        assert http["dead"] >= sent_wrong
        assert fleet["dead"] > 0
        assert http["sent"] + fleet["sent"] + machine["sent"] == rows["events"]
        for name, topics in INPUTS.items():
            assert found[name, "pipeline"]["received"] == sum(rows[topic] for topic in topics), name
        assert found["checked", "pipeline"]["sent"] == rows["checked"]
        assert found["warm", "pipeline"]["sent"] == rows["warm"]
        for name in ("warm", "checked"):
            assert found[name, "pipeline"]["filtered"] > 0
        assert found["checked", "pipeline"]["dead"] > 0
        assert found["bronze", "sink"]["sent"] == rows["events"]
        assert found["archive", "sink"]["sent"] == rows["warm"] + rows["aggregations"]
        dead = sum(count["dead"] for (_, kind), count in found.items() if kind != "pipeline")
        dead += found["checked", "pipeline"]["dead"] + found["both", "pipeline"]["dead"]
        dead += found["measurements", "pipeline"]["dead"]
        assert dead == rows["dead_letters"]
        (windows,) = server.query("SELECT CAST(sum(count) AS BIGINT) AS n FROM aggregations")
        late = rows.get("late_measurements", 0)
        assert found["aggregations", "pipeline"]["dead"] == late
        assert windows["n"] <= rows["measurements"] - late


def test_rows_that_have_left_the_log_are_found_in_the_lake_once(tmp_path: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text("topics: {events: {retention: 0s}}\n" + LAKE)
    runtime = Runtime(load_config(config, env={}, data_dir=tmp_path / "data"))

    def count() -> int:
        return int(runtime.store.query("SELECT count(*) AS n FROM events").table.column("n")[0].as_py())

    def push(source: str) -> None:
        lines = [json.dumps({"sourceId": source, "payload": {"n": n}}) for n in range(100)]
        runtime.push("events", "\n".join(lines).encode(), media_type="application/x-ndjson")

    try:
        runtime.start_all()
        push("a")
        assert count() == 100
        deadline = time.monotonic() + 20
        while runtime.status()["sinks"]["lake"]["written"] < 100 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert count() == 100  # in both
        assert runtime.log.retain(runtime.clock.now_us() + 1_000_000) == 100
        assert count() == 100
        push("b")
        assert count() == 200
    finally:
        runtime.close()


@pytest.mark.slow
def test_metrics_follow_the_naming_rules(tmp_path: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(CONFIG)
    with Headrace(config, tmp_path / "data") as server:
        for number in range(200):  # a label made of data would show
            event = {"sourceId": f"sensor-{number}", "payload": {f"metric_{number % 10}": 1.0}}
            server.request("POST", f"/ingest/unknown-{number}", b"{}")
            if number % 10 == 0:
                server.post([event, {"payload": number}])
        families = scrape(server)
        assert {f.type for f in families} <= {"counter", "gauge", "histogram", "info"}
        for family in families:
            if family.name.startswith(("process_", "python_")):
                continue  # of prometheus_client itself
            assert re.fullmatch(r"headrace(_[a-z0-9]+)+", family.name), family.name
            assert family.documentation.endswith("."), family.name
            samples = {sample.name for sample in family.samples}
            if family.type == "counter":
                assert all(name.endswith(("_total", "_created")) for name in samples), samples
            else:
                assert not family.name.endswith("_total"), family.name
            if family.type == "histogram":
                assert family.name.endswith("_seconds"), family.name
            for unit in ("_ms", "_milliseconds", "_us", "_kb", "_mb", "_percent", "_minutes"):
                assert not family.name.endswith(unit), family.name
            for sample in family.samples:
                assert set(sample.labels) <= LABELS, (family.name, sample.labels)
                for value in sample.labels.values():
                    assert "sensor-" not in value
                    assert "unknown-" not in value
            assert len(family.samples) < 1_000, family.name
