"""The Python API end to end: pipelines built by calls, run from Python, DataStreamer, and the old config.json."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest

import headrace as hr
from headrace.model import Rows

YAML = """
topics:
  events:
    schema: {payload: {temperature: double, room: string}}
pipelines:
  heat:
    from: events
    delay: 2s
    steps:
      - validate: {range: {payload.temperature: [-50, 100]}}
      - where: payload.temperature > 30
      - derive: {kelvin: payload.temperature + 273.15}
      - dedupe: {by: [source_id, timestamp], within: 1m}
      - window: {length: 10s, by: source_id, avg: kelvin, count: "*"}
      - apply: tests.integration.test_python_api:doubled
    to: hot
    key: source_id
"""


def doubled(rows: Rows) -> Rows:
    """For the pipelines of these tests: `count` twice as high."""
    place = rows.schema.get_field_index("count")
    return rows.set_column(place, "count", pc.multiply(rows.column(place), 2))


HEAT = (
    hr.pipeline("heat", "events", delay="2s")
    .validate(range={"payload.temperature": [-50, 100]})
    .where("payload.temperature > 30")
    .derive(kelvin="payload.temperature + 273.15")
    .dedupe(["source_id", "timestamp"], within="1m")
    .window("10s", by="source_id", avg="kelvin", count="*")
    .apply(doubled)
    .to("hot", key="source_id")
)


def test_calls_and_yaml_make_the_same_frozen_object(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(YAML)
    config = hr.load_config(file, env={})
    assert config.pipelines["heat"] == HEAT
    assert config.topics["hot"].schema == HEAT.schemas(config.topics)[-1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        HEAT.output = "cold"  # type: ignore[misc]
    assert HEAT.where("true") != HEAT  # a new one; the old one is as it was
    assert config.pipelines["heat"] == HEAT


def test_a_pipeline_made_in_python_runs_in_python(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(YAML[: YAML.index("pipelines:")])
    config = hr.load_config(file, env={}, data_dir=tmp_path / "data")
    hot = dataclasses.replace(
        config.topics["events"],
        name="hot",
        schema=HEAT.schemas(config.topics)[-1],
        key=("source_id",),
        at="window_end",
    )
    config = dataclasses.replace(config, topics={**config.topics, "hot": hot}, pipelines={"heat": HEAT})
    runtime = hr.Runtime(config)
    try:
        runtime.start_all()
        begin = 1_700_000_000
        lines = [
            {"sourceId": "a", "timestamp": begin + n, "payload": {"temperature": t}}
            for n, t in enumerate([29, 31, 33, 500, 32])
        ]
        lines += [lines[1], {"sourceId": "a", "timestamp": begin + 60, "payload": {"temperature": 40}}]
        receipt = runtime.push("events", json.dumps(lines).encode(), media_type="application/json")
        assert receipt.accepted == 7
        deadline = time.monotonic() + 20
        while runtime.log.extent("hot", 0).end < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        (row,) = runtime.log.read("hot", 0, runtime.log.extent("hot", 0)).to_pylist()
        assert (row["source_id"], row["count"], round(row["avg"], 2)) == ("a", 6, 305.15)
        (letter,) = runtime.log.read("dead_letters", 0, runtime.log.extent("dead_letters", 0)).to_pylist()
        assert (letter["code"], letter["component"]) == ("invalid", "heat.validate")
        assert json.loads(letter["raw"])["payload"]["temperature"] == 500
    finally:
        runtime.close()


def test_data_streamer_reads_a_simulated_fleet_and_a_file(tmp_path: Path) -> None:
    readings = tmp_path / "readings.ndjson"
    rows = [
        {"sourceId": "file", "timestamp": 1_700_000_000 + n, "payload": {"temperature": 25 + n}}
        for n in range(10)
    ]
    readings.write_text("".join(json.dumps(row) + "\n" for row in rows))
    warm = (
        hr.pipeline("warm", "events")
        .where("payload.temperature > 30")
        .select(source_id="source_id", t="payload.temperature")
    )
    heard: list[Rows] = []
    with hr.DataStreamer(warm) as streamer:
        streamer.add_source(
            "fleet", {"kind": "generate", "devices": 3, "count": 500, "rate": 100_000, "seed": 5}
        )
        streamer.add_source("file", {"path": str(readings), "follow": False})
        streamer.connect(heard.append)
        streamer.start_stream()
        seen = 0
        for batch in streamer.get_stream():
            seen += batch.num_rows
            assert streamer.send_to_clients(streamer.process_data(batch)) == 1
        assert seen + len(streamer.dead_letters()) >= 510
        assert {shard["state"] for shard in streamer.status()} == {"finished"}
    found = [row for batch in heard for row in batch.to_pylist()]
    assert [row["t"] for row in found if row["source_id"] == "file"] == [31, 32, 33, 34]
    assert all(row["t"] > 30 for row in found)
    assert {name for batch in heard for name in batch.schema.names} == {"source_id", "t"}


def test_an_old_config_json_runs_as_it_is(tmp_path: Path) -> None:
    readings = tmp_path / "readings.ndjson"
    rows = [{"sourceId": "old", "timestamp": 1_700_000_000 + n, "payload": {"t": n}} for n in range(20)]
    readings.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = {
        "stream_config": {
            "buffer_size": 1000,
            "batch_size": 100,
            "processing_interval": 0.5,
            "max_connections": 50,
        },
        "data_sources": {
            "readings": {"type": "file", "path": str(readings)},
            "fleet": {"type": "simulated", "devices": 2, "rate": 100},
            "pigeon": {"type": "carrier_pigeon", "url": "https://example.org"},
        },
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(old))
    config = hr.load_config(file, env={}, data_dir=tmp_path / "data")
    assert set(config.sources) == {"readings", "fleet"}
    assert (config.engine.max_epoch_rows, config.server.max_connections) == (100, 50)
    assert "measurements" in config.pipelines
    said = [str(warning) for warning in config.warnings]
    assert any("carrier_pigeon" in text for text in said)
    assert any("buffer_size" in text for text in said)
    runtime = hr.Runtime(config)
    try:
        runtime.start_all()
        deadline = time.monotonic() + 30
        count = 0
        sql = "SELECT count(*) AS n FROM measurements WHERE sensor_id = 'old'"
        while count < 20 and time.monotonic() < deadline:
            time.sleep(0.1)
            (row,) = runtime.store.query(sql, timeout=10.0).table.to_pylist()
            count = row["n"]
        assert count == 20
        assert runtime.status()["sources"]["fleet"]["accepted"] > 0
    finally:
        runtime.close()
