"""What every log must do. A backend's test subclasses `LogConformance` and says how to open one:

    class TestAcmeLog(LogConformance):
        def open(self, path, clock):
            return AcmeLog(path, clock=clock)

pytest then runs every test here against it. `durable = False` is for logs that forget everything when closed.
"""

# ruff: noqa: PT012 - a transaction is a block, and what it raises comes at its end

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.clock import FakeClock
from headrace.errors import FencedError, PlanError
from headrace.log import Log
from headrace.model import EVENTS, Epoch, Span, Topic
from headrace.testing.log_rules import NUMBERS, LogRules, contents, numbers, rows_of
from headrace.units import Duration, Size

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


class LogConformance(LogRules):
    durable = True

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


__all__ = ["NUMBERS", "LogConformance", "contents", "numbers", "rows_of"]
