"""This machine's figures, and what happens when it lacks some."""

from __future__ import annotations

import socket
from typing import Any

import psutil
import pytest

from headrace.component import Duration
from headrace.sources.system_metrics import SystemMetrics


def read(**options: Any) -> list[dict[str, Any]]:
    source = SystemMetrics(interval=Duration.parse("20ms"), **({"count": 2} | options))
    return [arrival.rows.to_pylist()[0] for arrival in source.read("0", None) if arrival.rows is not None]


def test_figures_are_of_this_host() -> None:
    first, second = read()
    assert first["source_id"] == socket.gethostname()
    assert first["timestamp"] < second["timestamp"]
    assert 0 <= second["payload"]["cpu_percent"] <= 100
    assert second["payload"]["memory_used_bytes"] > 1_000_000
    assert second["payload"]["process_count"] >= 1
    assert "cpu_0_percent" not in second["payload"]
    assert "cpu_0_percent" in read(per_core=True, source_id="x")[0]["payload"]


def test_a_missing_figure_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError("/proc/diskstats")

    monkeypatch.setattr(psutil, "disk_io_counters", missing)
    monkeypatch.setattr(psutil, "swap_memory", missing)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    payload = read(path="/there/is/no/such/path")[1]["payload"]
    assert not payload.keys() & {
        "disk_percent",
        "disk_read_bytes_per_second",
        "network_sent_bytes_per_second",
        "swap_percent",
    }
    assert "memory_percent" in payload


def test_a_long_interval_still_shows_signs_of_life() -> None:
    arrivals = SystemMetrics(interval=Duration.parse("1h")).read("0", None)
    assert next(arrivals).rows is None
    arrivals.close()  # type: ignore[attr-defined]
