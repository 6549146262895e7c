"""Both logs of the package against the shipped suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.clock import Clock, FakeClock
from headrace.errors import RetryableError
from headrace.log import Log
from headrace.log.memory import MemoryLog
from headrace.log.sqlite import SqliteLog
from headrace.model import Span, Topic
from headrace.testing.log_conformance import NUMBERS, LogConformance, contents, numbers


class TestSqliteLog(LogConformance):
    def open(self, path: Path, clock: Clock) -> Log:
        return SqliteLog(path / "log.db", clock=clock)


class TestSqliteLogWithoutTail(LogConformance):
    """The same, always reading from the disk."""

    def open(self, path: Path, clock: Clock) -> Log:
        return SqliteLog(path / "log.db", clock=clock, cache_bytes=0)


class TestMemoryLog(LogConformance):
    durable = False

    def open(self, path: Path, clock: Clock) -> Log:
        return MemoryLog(clock=clock)

    def test_crash_keeps_only_what_was_committed(self) -> None:
        log = MemoryLog(clock=FakeClock())
        log.create(Topic("t", NUMBERS))
        log.append("t", 0, numbers(1))
        with pytest.raises(RetryableError, match="cut off by a crash"), log.transaction() as transaction:  # noqa: PT012
            transaction.append("t", 0, numbers(2))
            log.crash()
        assert contents(log, "t") == [{"n": 1}]
        assert log.append("t", 0, numbers(3)) == Span(1, 2)
