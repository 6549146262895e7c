"""What every log must do. A backend's test subclasses `LogConformance` and says how to open one:

    class TestAcmeLog(LogConformance):
        def open(self, path, clock):
            return AcmeLog(path, clock=clock)

pytest then runs every test here against it. `durable = False` is for logs that forget everything when closed.
"""

# ruff: noqa: PT012 - a transaction is a block, and what it raises comes at its end

from __future__ import annotations

import itertools
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.clock import Clock, FakeClock, SystemClock
from headrace.errors import FencedError, PlanError
from headrace.log import Log
from headrace.model import EVENTS, Epoch, OnNewField, Rows, Span, Topic, open_struct
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


_actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 1), st.integers(0, 40)),
        st.tuples(st.just("transaction"), st.integers(1, 4), st.integers(0, 30)),
        st.tuples(st.just("failing"), st.integers(0, 1), st.integers(1, 5)),
        st.tuples(st.just("large"), st.integers(0, 1), st.integers(1_000, 1_500)),
        st.tuples(st.just("position"), st.integers(0, 1), st.integers(0, 60)),
        st.tuples(st.just("retain"), st.integers(0, 1), st.integers(0, 4)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


class LogConformance:
    durable = True

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

    # -- a list is the oracle ----------------------------------------------------------------------

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(actions=_actions, cuts=st.lists(st.integers(0, 400), max_size=4))
    def test_any_history_reads_like_a_list(
        self, actions: list[tuple[str, int, int]], cuts: list[int]
    ) -> None:
        clock = FakeClock()
        lists: dict[int, list[int]] = {0: [], 1: []}
        counter = iter(range(10**9))
        with tempfile.TemporaryDirectory() as folder:
            log = self.open(Path(folder), clock)
            try:
                log.create(
                    Topic("t", NUMBERS, partitions=2, retention=Duration.parse("2s"), max_size=Size(10**9))
                )
                for action, a, b in actions:
                    clock.advance(1)
                    before = {p: log.extent("t", p).start for p in lists}
                    if action == "append" or action == "large":
                        new = [next(counter) for _ in range(b)]
                        span = log.append("t", a, numbers(*new))
                        assert span == Span(len(lists[a]), len(lists[a]) + b)
                        lists[a] += new
                    elif action == "transaction":
                        expected = []
                        with log.transaction() as transaction:
                            for number in range(a):
                                new = [next(counter) for _ in range(b)]
                                transaction.append("t", number % 2, numbers(*new))
                                start = len(lists[number % 2])
                                lists[number % 2] += new
                                expected.append(Span(start, start + b))
                        assert list(transaction.spans) == expected
                    elif action == "failing":
                        with pytest.raises(PlanError), log.transaction() as transaction:
                            transaction.append("t", a, numbers(*range(b)))
                            transaction.append("t", 1 - a, rows_of([{"n": "no number"}]))
                    elif action == "position":
                        with log.transaction() as transaction:
                            transaction.position("reader", "t", a, b)
                    elif action == "retain":
                        log.retain(clock.now_us() + b * 1_000_000)
                        wanted = log.positions("reader")
                        for p, start in before.items():
                            after = log.extent("t", p).start
                            assert start <= after <= max(start, wanted.get(("t", p), len(lists[p])))
                    elif action == "reopen" and self.durable:
                        log.close()
                        log = self.open(Path(folder), clock)
                for p, values in lists.items():
                    extent = log.extent("t", p)
                    assert extent.end == len(values)
                    assert [row["n"] for row in contents(log, "t", p)] == values[extent.start :]
                    edges = sorted(
                        {extent.start, extent.end, *(min(max(c, extent.start), extent.end) for c in cuts)}
                    )
                    for start, end in itertools.pairwise(edges):
                        assert log.read("t", p, Span(start, end)).column("n").to_pylist() == values[start:end]
            finally:
                log.close()

    # -- topics ------------------------------------------------------------------------------------

    def test_creating_again_takes_over_settings_and_new_fields(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS, key=("n",), partitions=2))
        changed = log.create(
            Topic(
                "t",
                pa.schema([("m", pa.string())]),
                key=("n",),
                partitions=2,
                retention=Duration(5),
                on_new_field="freeze",
            )
        )
        assert changed.schema.names == ["n", "m"]
        assert (changed.retention, changed.on_new_field) == (Duration(5), "freeze")
        assert log.topics() == {"t": changed}

    @pytest.mark.parametrize(
        ("topic", "says"),
        [
            (Topic("t", pa.schema([("n", pa.string())]), partitions=2), "n: is int64"),
            (Topic("t", NUMBERS, partitions=3), "2 partitions"),
            (Topic("t", NUMBERS, partitions=2, key=("n",)), "keyed by"),
            (Topic("u", NUMBERS, partitions=0), "at least one partition"),
            (Topic("u", pa.schema([("n", pa.int8()), ("n", pa.int8())])), "n is there twice"),
            (
                Topic("u", pa.schema([(f"f{i}", pa.int8()) for i in range(9)]), max_fields=8),
                "max_fields of 8",
            ),
        ],
    )
    def test_a_topic_that_contradicts_is_refused(self, log: Log, topic: Topic, says: str) -> None:
        log.create(Topic("t", NUMBERS, partitions=2))
        with pytest.raises(PlanError, match=says):
            log.create(topic)
        assert list(log.topics()) == ["t"]
        assert log.topics()["t"].schema == NUMBERS

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda log: log.append("nope", 0, numbers(1)), "there is no topic 'nope'"),
            (lambda log: log.append("t", 1, numbers(1)), "no partition 1"),
            (lambda log: log.append("t", -1, numbers(1)), "no partition -1"),
            (lambda log: log.append("t", 0, rows_of([{"n": "text"}])), "t: n: is int64"),
            (
                lambda log: log.append("t", 0, pa.record_batch([[1], [2]], names=["n", "n"])),
                "n is there twice",
            ),
            (lambda log: log.append("t", 0, numbers(1), writer="w", cursor=object()), "plain JSON"),
            (lambda log: log.append("t", 0, numbers(1), writer="\ud800", cursor=1), "Unicode"),
            (lambda log: log.read("t", 0, Span(0, 4)), r"\[0, 4\) is not in the log; it holds \[0, 3\)"),
            (lambda log: log.read("t", 0, Span(3, 4)), r"\[3, 4\) is not in the log"),
            (lambda log: log.extent("t", 7), "no partition 7"),
        ],
    )
    def test_mistakes_are_told_and_change_nothing(
        self, log: Log, call: Callable[[Log], object], says: str
    ) -> None:
        log.create(Topic("t", NUMBERS))
        log.append("t", 0, numbers(1, 2, 3))
        with pytest.raises(PlanError, match=says):
            call(log)
        assert contents(log, "t") == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert log.cursor("w") is None

    # -- transactions ------------------------------------------------------------------------------

    def test_cursor_comes_with_the_rows(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS))
        assert log.cursor("w") is None
        cursor = {"file": "a\udcff.csv", "byte": 2**60, "parts": [1, None, 2.5]}
        log.append("t", 0, numbers(1), writer="w", cursor=cursor)
        assert log.cursor("w") == cursor
        assert log.append("t", 0, numbers(), writer="w", cursor=7) == Span(1, 1)
        assert log.cursor("w") == 7

    def test_a_failed_block_keeps_nothing(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS))
        with pytest.raises(ZeroDivisionError), log.transaction() as transaction:
            transaction.append("t", 0, numbers(1))
            transaction.cursor("w", 1)
            raise ZeroDivisionError
        with pytest.raises(PlanError), log.transaction() as transaction:
            transaction.append("t", 0, rows_of([{"n": 1, "new": 1}]))
            transaction.cursor("w", 1)
            transaction.position("r", "t", 0, 1)
            transaction.epoch("p", 0, Epoch(0), {})
            transaction.append("nope", 0, numbers(1))
        assert (log.extent("t", 0), log.cursor("w"), log.readers(), log.counts()) == (
            Span(0, 0),
            None,
            {},
            {},
        )
        assert log.topics()["t"].schema == NUMBERS

    def test_epochs_are_fenced(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS))

        def run(number: int, worker: int = 0) -> Epoch:
            epoch = Epoch(number, {("t", 0): Span(number, number + 1)}, now_us=5, watermark_us=-7)
            with log.transaction() as transaction:
                transaction.append("t", 0, numbers(number))
                transaction.epoch("p", worker, epoch, {"in": number})
                transaction.position("p", "t", 0, number)
            return epoch

        epochs = [run(41), run(42), run(43)]
        for wrong in (43, 45, 0):
            with pytest.raises(FencedError, match=f"epoch {wrong} can't follow epoch 43"):
                run(wrong)
        assert contents(log, "t") == [{"n": 41}, {"n": 42}, {"n": 43}]
        assert list(log.epochs("p", 0)) == epochs
        assert log.positions("p") == {("t", 0): 43}
        other = run(0, worker=1)
        with log.transaction() as transaction:
            transaction.forget_epochs("p", 0, 43)
        assert list(log.epochs("p", 0)) == epochs[2:]
        with log.transaction() as transaction:
            transaction.forget_epochs("p", 0, 99)
        assert list(log.epochs("p", 0)) == []
        assert log.counts() == {("p", 0): (epochs[2], {"in": 43}), ("p", 1): (other, {"in": 0})}
        with pytest.raises(FencedError):
            run(43)
        run(44)

    def test_everything_is_there_after_reopening(self, tmp_path: Path, clock: FakeClock) -> None:
        if not self.durable:
            pytest.skip("this log keeps nothing when it is closed")
        with self.opened(tmp_path, clock) as log:
            topic = log.create(
                Topic("t", EVENTS, partitions=2, key=("source_id",), retention=Duration(77), max_size=Size(5))
            )
            with log.transaction() as transaction:
                transaction.append("t", 1, rows_of([{"source_id": "s", "payload": {"a": 1}}]))
                transaction.cursor("w", [1])
                transaction.position("r", "t", 1, 1)
                transaction.epoch("p", 0, Epoch(3, {("t", 1): Span(0, 1)}), {"in": 1})
        with self.opened(tmp_path, clock) as log:
            assert log.topics()["t"].schema.field("payload").type.field("a").type == pa.int64()
            assert (
                log.topics()["t"].schema.field("payload").metadata == topic.schema.field("payload").metadata
            )
            assert log.topics()["t"].max_size == Size(5)
            assert contents(log, "t", 1)[0]["payload"] == {"a": 1}
            assert log.cursor("w") == [1]
            assert log.positions("r") == {("t", 1): 1}
            assert list(log.epochs("p", 0)) == [Epoch(3, {("t", 1): Span(0, 1)})]
            assert log.append("t", 1, rows_of([{"source_id": "s"}])) == Span(1, 2)

    # -- several at once ---------------------------------------------------------------------------

    def test_concurrent_appenders_keep_their_order(self, log: Log) -> None:
        log.create(Topic("t", pa.schema([("who", pa.int64()), ("n", pa.int64())]), partitions=2))
        threads, each = 8, 200
        spans: dict[tuple[int, int], tuple[int, Span]] = {}
        faults: list[BaseException] = []

        def work(who: int) -> None:
            try:
                for n in range(each):
                    if n % 50 == 7:  # a faulty neighbour must not spoil the group
                        with pytest.raises(PlanError):
                            log.append("t", 0, rows_of([{"who": "x", "n": n}]))
                    partition = n % 2
                    spans[who, n] = (
                        partition,
                        log.append("t", partition, rows_of([{"who": who, "n": n}] * (1 + n % 3))),
                    )
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                faults.append(error)

        workers = [threading.Thread(target=work, args=(who,)) for who in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not faults
        for partition in (0, 1):
            rows = contents(log, "t", partition)
            taken = sorted(span for p, span in spans.values() if p == partition)
            assert [span.end for span in taken[:-1]] == [span.start for span in taken[1:]]
            assert taken[-1].end == len(rows)
            for who in range(threads):
                mine = [row["n"] for row in rows if row["who"] == who]
                assert mine == sorted(mine)
        for (who, n), (partition, span) in list(spans.items())[::97]:
            assert log.read("t", partition, span).to_pylist() == [{"who": who, "n": n}] * len(span)

    def test_two_readers_are_independent(self, log: Log) -> None:
        log.create(Topic("t", NUMBERS))
        log.append("t", 0, numbers(*range(10)))
        with log.transaction() as transaction:
            transaction.position("a", "t", 0, 3)
        with log.transaction() as transaction:
            transaction.position("b", "t", 0, 8)
        assert log.readers() == {"a": {("t", 0): 3}, "b": {("t", 0): 8}}
        assert log.read("t", 0, Span(3, 8)).column("n").to_pylist() == [3, 4, 5, 6, 7]
        log.forget("a")
        assert log.readers() == {"b": {("t", 0): 8}}
        assert log.positions("a") == {}

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
        assert log.retain(clock.now_us()) == 0
        assert log.retain(clock.now_us() + 3_000_000) == 4
        assert log.extent("t", 0) == Span(4, 20)
        with pytest.raises(PlanError, match=r"\[3, 6\) is not in the log; it holds \[4, 20\)"):
            log.read("t", 0, Span(3, 6))
        with pytest.raises(PlanError, match="offset 0 is not in the log"):
            log.bounded("t", 0, 0, max_rows=1, max_bytes=1)
        log.forget("slow")
        assert log.retain(clock.now_us() + 3_500_000) == 4
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
