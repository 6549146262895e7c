"""Every sink of the package passes the suite that plugin authors get too."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from headrace.catalog import Catalog
from headrace.component import Sink, Topic, kind_of
from headrace.lake import table_uri
from headrace.sinks.console import Console
from headrace.sinks.delta import Delta
from headrace.sinks.files import Files
from headrace.sinks.sensors import Sensors
from headrace.testing import sink_conformance as conformance

printed = io.StringIO()


def read_delta(sink: Sink, topic: Topic) -> Iterable[int]:
    assert isinstance(sink, Delta)
    with contextlib.suppress(TableNotFoundError):
        return [
            p["n"]
            for p in DeltaTable(table_uri(sink.path, topic.name)).to_pyarrow_table()["payload"].to_pylist()
        ]
    return []


def read_files(sink: Sink, topic: Topic) -> Iterator[int]:
    assert isinstance(sink, Files)
    for path in Path(sink.path, topic.name).glob("*/*.ndjson.gz"):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            yield json.loads(line)["payload"]["n"]


def read_sensors(sink: Sink, topic: Topic) -> Iterable[int]:
    assert isinstance(sink, Sensors)
    with Catalog(sink.url) as catalog:
        return [int(sensor[1:]) for sensor in catalog.sensors_arrow()["sensor_id"].to_pylist()]


def read_console(sink: Sink, topic: Topic) -> Iterable[int]:
    return [json.loads(line)["payload"]["n"] for line in printed.getvalue().splitlines()]


READ_BACK: dict[str, Callable[[Sink, Topic], Iterable[int]]] = {
    "console": read_console,
    "delta": read_delta,
    "files": read_files,
    "sensors": read_sensors,
}


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("sink", [pytest.param(sink, id=kind_of(sink)) for sink in conformance.sinks()])
def test_sink(
    sink: type[Sink],
    check: Callable[[conformance.Case], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if sink is Console:
        printed.seek(0)
        printed.truncate()
        monkeypatch.setattr(sys, "stdout", printed)
    kind = kind_of(sink)
    assert kind in READ_BACK, f"say here how to read back what {kind} wrote"
    check(conformance.Case(sink.example(), READ_BACK[kind]))
