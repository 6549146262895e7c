"""The local engine over both logs."""

from __future__ import annotations

from pathlib import Path

from headrace.clock import Clock
from headrace.log import Log
from headrace.log.memory import MemoryLog
from headrace.log.sqlite import SqliteLog
from headrace.testing.engine_conformance import EngineConformance


class TestEngineOverMemory(EngineConformance):
    durable = False

    def open(self, path: Path, clock: Clock) -> Log:
        return MemoryLog(clock=clock)


class TestEngineOverSqlite(EngineConformance):
    def open(self, path: Path, clock: Clock) -> Log:
        return SqliteLog(path / "log.db", clock=clock, observe=lambda name, value: None)
