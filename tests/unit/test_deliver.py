"""Rows that a target will never take are in the dead letters, whatever happens while the others are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.component import Sink, Writer
from headrace.deliver import Deliver, Delivery
from headrace.errors import DataError, HeadraceError, RetryableError
from headrace.log.memory import MemoryLog
from headrace.metrics import Metrics
from headrace.model import DEAD_LETTERS, Rows, Topic

NUMBERS = Topic("numbers", pa.schema([pa.field("n", pa.int64())]))


class Died(BaseException):
    """The process was killed."""


class Even(Sink, frozen=True):
    """Takes even numbers. `fate` says what becomes of the next writes that get that far."""

    target: ClassVar[list[int]] = []
    end: ClassVar[list[int]] = [0]
    fate: ClassVar[list[str]] = []

    def open(self, topic: Topic, *, name: str) -> Writer:
        return EvenWriter()


class EvenWriter(Writer):
    def committed(self, partition: int) -> int:
        return Even.end[0]

    def write(self, partition: int, rows: Rows, end: int) -> None:
        odd = [i for i, n in enumerate(rows.column(0).to_pylist()) if n % 2]
        if odd:
            raise DataError("numbers must be even", odd)
        fate = Even.fate.pop(0) if Even.fate else ""
        if fate == "down":
            raise RetryableError("the target is down")
        Even.target.extend(rows.column(0).to_pylist())
        Even.end[0] = end
        if fate == "dies after its commit":
            raise Died

    def close(self) -> None:
        pass


@pytest.mark.parametrize("fate", [[], ["down", "down"], ["dies after its commit"]])
def test_a_refused_row_is_a_dead_letter_and_the_others_arrive_once(fate: list[str]) -> None:
    Even.target.clear()
    Even.end[0] = 0
    Even.fate[:] = fate
    clock, metrics = FakeClock(), Metrics()
    log = MemoryLog(clock=clock)
    for topic in (NUMBERS, Topic("dead_letters", DEAD_LETTERS)):
        log.create(topic)
    log.append("numbers", 0, pa.RecordBatch.from_pydict({"n": [0, 1, 2, 3, 4]}, schema=NUMBERS.schema))
    deliver, sink = Deliver(log, clock, metrics), Even()
    state = Delivery("even", "even", "numbers")
    for _ in range(len(fate) + 1):
        writer = sink.open(NUMBERS, name="even")
        deliver.begin(sink, writer, state, "earliest")
        try:
            deliver.step(sink, writer, state, threading.Event())
        except RetryableError:
            pass
        except Died:
            state = Delivery("even", "even", "numbers")
    letters = log.read("dead_letters", 0, log.extent("dead_letters", 0)).to_pylist()
    assert [(row["offset"], row["raw"]) for row in letters] == [(1, b'{"n":1}'), (3, b'{"n":3}')]
    assert Even.target == [0, 2, 4]
    assert log.positions("sink:even") == {("numbers", 0): 5}
    log.close()


class Forgetful(Even, frozen=True):
    """Doesn't remember how far it got; the log does."""

    exactly_once: ClassVar[bool] = False


@pytest.fixture
def numbers() -> Iterator[MemoryLog]:
    Even.target.clear()
    Even.end[0] = 0
    log = MemoryLog(clock=FakeClock())
    for topic in (NUMBERS, Topic("dead_letters", DEAD_LETTERS)):
        log.create(topic)
    log.append("numbers", 0, pa.RecordBatch.from_pydict({"n": [0, 2, 4]}, schema=NUMBERS.schema))
    yield log
    log.close()


def test_a_target_without_a_memory_gets_the_rows_of_a_failed_write_after_a_restart(
    numbers: MemoryLog,
) -> None:
    Even.fate[:] = ["down"]
    deliver, sink = Deliver(numbers, FakeClock(), Metrics()), Forgetful()
    for outcome in ("down", "up", "nothing new"):
        state = Delivery("even", "even", "numbers")  # as after a restart
        deliver.begin(sink, sink.open(NUMBERS, name="even"), state, "earliest")
        if outcome == "down":
            with pytest.raises(RetryableError):
                deliver.step(sink, sink.open(NUMBERS, name="even"), state, threading.Event())
        else:
            deliver.step(sink, sink.open(NUMBERS, name="even"), state, threading.Event())
    assert Even.target == [0, 2, 4]


def test_a_target_with_a_memory_is_believed_more_than_the_log(numbers: MemoryLog) -> None:
    """It was restored from a backup, say, or the process died between the two."""
    Even.fate.clear()
    with numbers.transaction() as transaction:
        transaction.position("sink:even", "numbers", 0, 3)
    Even.end[0] = 1
    deliver, sink, state = (
        Deliver(numbers, FakeClock(), Metrics()),
        Even(),
        Delivery("even", "even", "numbers"),
    )
    deliver.begin(sink, sink.open(NUMBERS, name="even"), state, "earliest")
    deliver.step(sink, sink.open(NUMBERS, name="even"), state, threading.Event())
    assert Even.target == [2, 4]


def test_a_target_that_is_ahead_of_the_log_is_refused(numbers: MemoryLog) -> None:
    Even.end[0] = 99
    deliver, sink, state = (
        Deliver(numbers, FakeClock(), Metrics()),
        Even(),
        Delivery("even", "even", "numbers"),
    )
    with pytest.raises(HeadraceError, match="belongs to another data directory"):
        deliver.begin(sink, sink.open(NUMBERS, name="even"), state, "earliest")
