"""The door for pushed bodies and the loop of sources."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from headrace.clock import FakeClock
from headrace.component import Arrival, Cursor, RetryableError, Source
from headrace.ingest import Ingest, Shard
from headrace.log.memory import MemoryLog
from headrace.metrics import Metrics
from headrace.model import DEAD_LETTERS, EVENTS, Receipt, Topic
from headrace.push import IdempotencyError, Limits, Push


def door(log: MemoryLog, metrics: Metrics | None = None) -> Push:
    metrics = metrics or Metrics()
    return Push(Ingest(log, FakeClock(), metrics), log, FakeClock(), metrics, Limits())


def make(**options: Any) -> tuple[Push, MemoryLog, Metrics]:
    clock = FakeClock()
    log, metrics = MemoryLog(clock=clock), Metrics()
    log.create(Topic("events", EVENTS, key=("source_id",), **options))
    log.create(Topic("dead_letters", DEAD_LETTERS))
    return door(log, metrics), log, metrics


def rows(log: MemoryLog, topic: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = log.read(topic, 0, log.extent(topic, 0)).to_pylist()
    return found


def body(*payloads: dict[str, Any]) -> bytes:
    return "\n".join(json.dumps({"sourceId": "a", "payload": payload}) for payload in payloads).encode()


def test_a_body_is_stored_with_its_rejects_in_one_go() -> None:
    ingest, log, metrics = make()
    receipt = ingest.push("events", body({"t": 1}) + b"\n{broken\n" + body({"t": 2}))
    assert (receipt.accepted, receipt.rejected, receipt.rejects[0].row) == (2, 1, 1)
    assert [row["payload"]["t"] for row in rows(log, "events")] == [1.0, 2.0]
    assert rows(log, "dead_letters")[0]["raw"] == b"{broken"
    count = metrics.counts()["http", "source"]
    assert (count.received, count.sent, count.dead, count.in_flight) == (3, 2, 1, 0)


def test_the_same_key_and_body_is_stored_once_also_after_a_restart() -> None:
    ingest, log, _ = make()
    first = ingest.push("events", body({"t": 1}, {"t": 2}), idempotency_key="k")
    again = ingest.push("events", body({"t": 1}, {"t": 2}), idempotency_key="k")
    assert (again.accepted, again.duplicate, first.duplicate) == (2, True, False)
    restarted = door(log)
    assert restarted.push("events", body({"t": 1}, {"t": 2}), idempotency_key="k").duplicate
    assert log.extent("events", 0).end == 2
    with pytest.raises(IdempotencyError):
        restarted.push("events", body({"t": 3}), idempotency_key="k")


def test_only_rows_with_a_field_too_many_are_rejected() -> None:
    ingest, log, _ = make(max_fields=6)
    ingest.push("events", body({"t": 1}))
    receipt = ingest.push("events", body({"t": 2}, {"t": 3, "u": 1, "v": 2, "w": 3, "x": 4}, {"t": 5}))
    assert (receipt.accepted, receipt.rejected, [r.row for r in receipt.rejects]) == (2, 1, [1])
    assert [row["payload"]["t"] for row in rows(log, "events")] == [1.0, 2.0, 5.0]
    assert rows(log, "dead_letters")[0]["code"] == "too_many_fields"


def test_senders_that_disagree_on_a_type_are_told_apart() -> None:
    ingest, log, _ = make()
    gate = threading.Barrier(4)
    receipts = []

    def send(value: object) -> None:
        gate.wait()
        receipts.append((value, ingest.push("events", body({"field": value}))))

    threads = [threading.Thread(target=send, args=(value,)) for value in (1.5, {"deep": 1}, 2.5, {"deep": 2})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = sum(receipt.accepted for _, receipt in receipts)
    assert accepted == log.extent("events", 0).end
    assert sum(receipt.rejected for _, receipt in receipts) == log.extent("dead_letters", 0).end
    assert accepted >= 2


def test_bodies_committed_together_get_a_receipt_each() -> None:
    push, log, metrics = make()
    push.push("events", body({"t": 1}))
    numbers = push.prepare("events", body({"x": 1}))
    texts = push.prepare("events", body({"x": "text"}))  # as long as nobody has sent it, x may be anything
    plain = push.prepare("events", body({"t": 5}, {"t": 6}))
    results = push.commit([numbers, plain, texts])
    assert [(r.accepted, r.rejected) for r in results if isinstance(r, Receipt)] == [(1, 0), (2, 0), (0, 1)]
    assert [row["payload"]["t"] for row in rows(log, "events")] == [1.0, None, 5.0, 6.0]
    assert rows(log, "dead_letters")[0]["code"] == "schema"
    count = metrics.counts()["http", "source"]
    assert (count.received, count.sent, count.dead, count.in_flight) == (5, 4, 1, 0)


def test_a_log_that_fails_fails_every_body_of_the_group() -> None:
    push, log, metrics = make()
    intakes = [push.prepare("events", body({"t": n})) for n in range(3)]
    log.close()
    results = push.commit(intakes)
    assert all(isinstance(result, RetryableError) for result in results)
    assert metrics.counts()["http", "source"].received == 0


class Flaky(Source, frozen=True, kw_only=True):
    """Yields 0..4 and breaks once, after 2."""

    def schema(self) -> pa.Schema:
        return EVENTS

    def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
        for number in range(int(cursor or 0), 5):
            if number == 3 and cursor is None:
                raise RetryableError("away")
            events = pa.RecordBatch.from_pylist(
                [{"source_id": "s", "timestamp": number, "event_type": str(number)}],
                schema=pa.schema([EVENTS.field(0), EVENTS.field(1), EVENTS.field(3)]),
            )
            yield Arrival(events, number + 1)


def test_a_source_goes_on_from_its_durable_cursor_after_an_outage() -> None:
    _, log, metrics = make()
    shard = Shard("flaky", "flaky", "events")
    Ingest(log, FakeClock(), metrics).run(Flaky(), shard, "0", threading.Event())
    assert shard.state == "finished"
    assert [row["event_type"] for row in rows(log, "events")] == ["0", "1", "2", "3", "4"]
    assert log.cursor("source:flaky:0") == 5


def test_the_code_after_a_yield_does_not_run_when_the_append_fails() -> None:
    _, log, metrics = make()
    acknowledged = []

    class Queue(Source, frozen=True, kw_only=True):
        def schema(self) -> pa.Schema:
            return EVENTS

        def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
            yield Arrival(
                pa.record_batch({"source_id": ["x"], "timestamp": [1]}, schema=pa.schema(list(EVENTS)[:2])), 1
            )
            acknowledged.append(1)

    log.close()
    shard = Shard("queue", "queue", "events")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    Ingest(log, FakeClock(), metrics).run(Queue(), shard, "0", stop)
    assert acknowledged == []
    assert shard.state == "stopped"
    assert shard.last_error == "the log is closed"
