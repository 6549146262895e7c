"""The catalog and the sink that fills it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.catalog import SENSORS, Catalog
from headrace.clock import FakeClock
from headrace.errors import ConfigError, DataError, FormatError, PlanError, RetryableError
from headrace.model import EVENTS, TIMESTAMP, Rows, Topic
from headrace.sinks.sensors import Sensors

TOPIC = Topic("events", EVENTS)


def events(*entries: tuple[str, int, str | None, dict[str, object] | None]) -> Rows:
    ids, times, kinds, payloads = zip(*entries, strict=True)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(ids).dictionary_encode(),
            pa.array(times, TIMESTAMP),
            pa.array(kinds, pa.string()),
            pa.array(payloads),
        ],
        names=["source_id", "timestamp", "event_type", "payload"],
    )


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'catalog.db'}"


def test_sensors_register_themselves_and_keep_what_is_known(tmp_path: Path) -> None:
    writer = Sensors(url=url(tmp_path)).open(TOPIC, name="sensors")
    writer.write(
        0,
        events(
            ("b", 50, "reading", {"location": "hall"}),
            ("a", 10, None, None),
            ("b", 40, None, {"location": None}),
        ),
        3,
    )
    writer.write(0, events(("b", 20, None, {"type": "thermo"}), ("a", 90, "status", {"type": None})), 5)
    assert writer.committed(0) == 5
    assert writer.committed(1) == 0
    writer.close()
    with Catalog(url(tmp_path)) as catalog:
        table = catalog.sensors()
    assert table.schema.equals(SENSORS)
    got = [
        (s["sensor_id"], s["type"], s["location"], s["first_seen"].microsecond, s["last_seen"].microsecond)
        for s in table.to_pylist()
    ]
    assert got == [("a", "status", None, 10, 90), ("b", "thermo", "hall", 20, 50)]


def test_online_is_decided_when_asked(tmp_path: Path) -> None:
    clock = FakeClock()
    with Catalog(url(tmp_path), clock=clock) as catalog:
        now = clock.now_us()
        catalog.register(
            [("new", None, None, now, now), ("old", None, None, 0, now - 61_000_000)], "r", "events", 0, 2
        )
        assert catalog.sensors()["online"].to_pylist() == [True, False]
        clock.advance(60.5)
        assert catalog.sensors()["online"].to_pylist() == [False, False]


def test_sensors_by_pages(tmp_path: Path) -> None:
    with Catalog(url(tmp_path)) as catalog:
        catalog.register([(f"s{i}", None, None, i, i) for i in range(10)], "r", "events", 0, 10)
        first = catalog.sensors(4)["sensor_id"].to_pylist()
        assert first == ["s0", "s1", "s2", "s3"]
        assert catalog.sensors(100, after=first[-1])["sensor_id"].to_pylist() == [
            f"s{i}" for i in range(4, 10)
        ]


def test_an_id_too_long_is_a_data_fault_of_its_rows(tmp_path: Path) -> None:
    writer = Sensors(url=url(tmp_path)).open(TOPIC, name="sensors")
    with pytest.raises(DataError, match="too long") as refused:
        writer.write(0, events(("a", 1, None, None), ("x" * 201, 1, None, None)), 2)
    assert refused.value.rows == (1,)
    assert writer.committed(0) == 0
    writer.close()


def test_opening_at_the_same_moment_is_fine(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    gate = threading.Barrier(6)

    def run(number: int) -> None:
        try:
            gate.wait()
            with Catalog(url(tmp_path)) as catalog:
                catalog.register([(f"s{number}", None, None, 1, 1)], "r", "events", number, 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Catalog(url(tmp_path)) as catalog:
        assert catalog.sensors().num_rows == 6


def test_a_newer_catalog_is_refused_and_left_alone(tmp_path: Path) -> None:
    Catalog(url(tmp_path)).open().close()
    connection = sqlite3.connect(tmp_path / "catalog.db")
    connection.execute("UPDATE headrace_meta SET value = 99")
    connection.commit()
    connection.close()
    with pytest.raises(FormatError, match="version 99, this headrace knows up to 1; upgrade headrace"):
        Catalog(url(tmp_path)).open()


def test_urls_that_cannot_work_say_so() -> None:
    for bad in ("nonsense", "oracle://x", "mysql://x/y"):
        with pytest.raises(ConfigError, match="catalog"):
            Catalog(bad).open()
    with pytest.raises(RetryableError, match="opening the catalog"):
        Catalog("sqlite:////nowhere/at/all.db").open()


def test_a_topic_without_senders_is_refused_at_open(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="neither source_id nor sensor_id"):
        Sensors(url=url(tmp_path)).open(Topic("x", pa.schema([("v", pa.int64())])), name="s")
    with pytest.raises(ConfigError, match="no catalog is named"):
        Sensors().open(TOPIC, name="s")
