"""Parts of `log_conformance`: how schemas grow, finding, waiting, retention; and the rows that the suite uses."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.clock import Clock, FakeClock, SystemClock
from headrace.errors import PlanError
from headrace.log import Log
from headrace.model import OnNewField, Rows, Span, Topic, open_struct
from headrace.units import Duration, Size

NUMBERS = pa.schema([pa.field("n", pa.int64())])
FOREVER = Duration(2**60)


def numbers(*values: int) -> Rows:
    """Rows of one column `n`."""
    return pa.RecordBatch.from_arrays([pa.array(values, pa.int64())], schema=NUMBERS)


def rows_of(values: list[dict[str, Any]], schema: pa.Schema | None = None) -> Rows:
    """Rows from Python dicts."""
    table = pa.Table.from_pylist(values, schema=schema).combine_chunks()
    return table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)


def contents(log: Log, topic: str, partition: int = 0) -> list[dict[str, Any]]:
    """All that is in a partition, as dicts."""
    found: list[dict[str, Any]] = log.read(topic, partition, log.extent(topic, partition)).to_pylist()
    return found


class LogRules:
    """What holds for any log; `LogConformance` adds histories, transactions and concurrency."""

    def open(self, path: Path, clock: Clock) -> Log:
        """The log in directory `path`, made if it isn't there."""
        raise NotImplementedError

    @contextmanager
    def opened(self, path: Path, clock: Clock | None = None) -> Iterator[Log]:
        log = self.open(path, clock or SystemClock())
        try:
            yield log
        finally:
            log.close()

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def log(self, tmp_path: Path, clock: FakeClock) -> Iterator[Log]:
        with self.opened(tmp_path, clock) as log:
            yield log

    # -- schemas -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("policy", "names", "second"),
        [("evolve", ["n", "m"], {"n": 2, "m": "x"}), ("discard", ["n"], {"n": 2}), ("freeze", ["n"], None)],
    )
    def test_new_fields_follow_the_policy(
        self, log: Log, policy: OnNewField, names: list[str], second: Mapping[str, Any] | None
    ) -> None:
        log.create(Topic("t", NUMBERS, on_new_field=policy))
        log.append("t", 0, numbers(1))
        if second is None:
            with pytest.raises(PlanError, match=r"topic t: m: unknown field.*freeze"):
                log.append("t", 0, rows_of([{"n": 2, "m": "x"}]))
        else:
            log.append("t", 0, rows_of([{"n": 2, "m": "x"}]))
        assert log.topics()["t"].schema.names == names
        first = {"n": 1, "m": None} if policy == "evolve" else {"n": 1}
        assert contents(log, "t") == [first, *([second] if second else [])]

    def test_structs_grow_from_nothing(self, log: Log) -> None:
        log.create(Topic("t", pa.schema([("id", pa.string()), open_struct()])))
        steps: list[dict[str, Any]] = [
            {"id": "a", "payload": {}},
            {"id": "b", "payload": None},
            {"id": "c"},
            {"id": "d", "payload": {"x": 1}},
            {"id": "e", "payload": {"x": 2**60, "deep": {"er": [{"y": "text"}]}}},
            {"id": "f", "payload": {"x": 1.5, "deep": {"er": [{"z": True}], "more": {}}}},
            {"payload": {"deep": None}},
        ]
        for row in steps:
            log.append("t", 0, rows_of([row]))
        found = contents(log, "t")
        assert [row["id"] for row in found] == ["a", "b", "c", "d", "e", "f", None]
        nothing = {"x": None, "deep": None}
        assert [row["payload"] for row in found[:3]] == [nothing, None, None]
        assert [found[i]["payload"]["x"] for i in (3, 4, 5)] == [1.0, float(2**60), 1.5]
        assert found[4]["payload"]["deep"] == {"er": [{"y": "text", "z": None}], "more": None}
        assert found[5]["payload"]["deep"]["er"] == [{"y": None, "z": True}]
        assert log.read("t", 0, Span(4, 6)).schema == log.topics()["t"].schema

    def test_the_number_of_fields_is_bounded(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS, max_fields=3))
        log.append("t", 0, rows_of([{"n": 1, "s": {"a": 1, "b": 2}}]))
        with pytest.raises(PlanError, match="4 fields, more than its max_fields of 3"):
            log.append("t", 0, rows_of([{"n": 1, "s": {"c": 1}}]))
        assert log.append("t", 0, rows_of([{"s": {"b": 5}}])) == Span(1, 2)

    def test_values_that_would_not_fit_later_are_refused_now(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS))
        big = pa.record_batch([pa.array([2**64 - 1], pa.uint64())], names=["n"])
        with pytest.raises(PlanError, match="topic t: some values do not fit"):
            log.append("t", 0, big)
        log.append("t", 0, pa.record_batch([pa.array([5], pa.uint64())], names=["n"]))
        log.append("t", 0, rows_of([{"n": math.nan}]))
        assert [str(row["n"]) for row in contents(log, "t")] == ["5.0", "nan"]

    def test_slices_are_kept_as_what_they_show(self, log: Log) -> None:
        rows = rows_of(
            [{"n": i, "s": {"t": f"text {i}" if i % 3 else None}, "l": [i] * (i % 4)} for i in range(3_000)]
        )
        log.create(Topic("t", rows.schema))
        for start, length in ((0, 1), (1_001, 1_500), (2_999, 1), (7, 100)):
            span = log.append("t", 0, rows.slice(start, length))
            assert log.read("t", 0, span).to_pylist() == rows.slice(start, length).to_pylist()

    # -- finding and waiting -----------------------------------------------------------------------

    def test_bounded_keeps_both_bounds_and_gives_at_least_one_row(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS))
        for start in range(0, 1_000, 100):
            log.append("t", 0, numbers(*range(start, start + 100)))
        assert log.bounded("t", 0, 0, max_rows=250, max_bytes=10**9) == Span(0, 250)
        assert log.bounded("t", 0, 950, max_rows=10**6, max_bytes=10**9) == Span(950, 1_000)
        assert log.bounded("t", 0, 40, max_rows=10**6, max_bytes=1) == Span(40, 41)
        assert log.bounded("t", 0, 1_000, max_rows=10, max_bytes=10) == Span(1_000, 1_000)
        assert 250 <= len(log.bounded("t", 0, 40, max_rows=10**6, max_bytes=2_400)) <= 350

    def test_nearest_finds_by_time_of_append(self, log: Log, clock: FakeClock) -> None:
        log.create(Topic("t", NUMBERS))
        began = clock.now_us()
        for n in range(3):
            log.append("t", 0, numbers(n, n))
            clock.advance(1)
        assert [log.nearest("t", 0, began + us) for us in (-1, 0, 1, 1_000_000, 2_000_001)] == [0, 0, 2, 2, 6]

    def test_wait_ends_when_rows_arrive(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as log:
            log.create(Topic("t", NUMBERS, partitions=2))
            assert not log.wait({("t", 0): 0}, 0.02)
            log.append("t", 1, numbers(1))
            assert log.wait({("t", 0): 0, ("t", 1): 0}, 0)
            took = []
            for n in range(20):
                timer = threading.Timer(0.01, log.append, ("t", 0, numbers(n)))
                timer.start()
                assert log.wait({("t", 0): n, ("t", 1): 1}, 20)
                began = time.monotonic()
                timer.join()
                took.append(time.monotonic() - began)
            assert max(took) < 5

    def test_wait_is_ended_by_wake_and_by_close(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as log:
            log.create(Topic("t", NUMBERS))
            answers: list[bool] = []
            for end in (log.wake, log.close):
                answers.clear()
                waiting = [
                    threading.Thread(target=lambda: answers.append(log.wait({("t", 0): 0}, 50)))
                    for _ in range(3)
                ]
                for thread in waiting:
                    thread.start()
                time.sleep(0.1)
                end()
                for thread in waiting:
                    thread.join(10)
                assert answers == [False] * 3

    # -- retention ---------------------------------------------------------------------------------

    def test_retention_by_age_honours_readers(self, log: Log, clock: FakeClock) -> None:
        log.create(Topic("t", NUMBERS, retention=Duration.parse("10s")))
        log.create(Topic("kept", NUMBERS, retention=FOREVER))
        log.append("kept", 0, numbers(1))
        for n in range(10):
            log.append("t", 0, numbers(n, n))
            clock.advance(1)
        with log.transaction() as transaction:
            transaction.position("slow", "t", 0, 5)
            transaction.position("fast", "t", 0, 9)
        assert log.retain(clock.now_us()) == 0
        assert log.retain(clock.now_us() + 3_000_000) == 4
        assert log.extent("t", 0) == Span(4, 20)
        with pytest.raises(PlanError, match=r"\[3, 6\) is not in the log; it holds \[4, 20\)"):
            log.read("t", 0, Span(3, 6))
        with pytest.raises(PlanError, match="offset 0 is not in the log"):
            log.bounded("t", 0, 0, max_rows=1, max_bytes=1)
        log.forget("slow")
        assert log.retain(clock.now_us() + 3_500_000) == 4
        assert log.retain(clock.now_us() + 10**12) == 0
        log.forget("fast")
        assert log.retain(clock.now_us() + 10**12) == 12
        assert (log.extent("t", 0), log.bytes("t", 0)) == (Span(20, 20), 0)
        assert log.append("t", 0, numbers(1)) == Span(20, 21)
        assert log.extent("kept", 0) == Span(0, 1)

    def test_retention_by_size_takes_the_oldest_of_all_partitions(self, log: Log, clock: FakeClock) -> None:
        log.create(Topic("t", NUMBERS, partitions=2, retention=FOREVER))
        for n in range(20):
            log.append("t", n % 2, numbers(*range(n, n + 200)))
            clock.advance(1)
        full = log.bytes("t", 0) + log.bytes("t", 1)
        log.create(Topic("t", NUMBERS, partitions=2, retention=FOREVER, max_size=Size(full // 2)))
        assert log.retain(clock.now_us()) == 2_000
        assert log.bytes("t", 0) + log.bytes("t", 1) <= full // 2
        assert (log.extent("t", 0), log.extent("t", 1)) == (Span(1_000, 2_000), Span(1_000, 2_000))
        assert log.retain(clock.now_us()) == 0
