"""`POST /ingest` over a real server: every accepted form, every wrong one, and that every row sent is accounted for."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pyarrow as pa
import pytest
import zstandard

from headrace.errors import RetryableError, StorageFullError
from headrace.units import Size
from tests.integration.small_runtime import Running, SmallRuntime, options, running

EVENT = b'{"source_id": "a", "timestamp": "2026-01-31T12:00:00Z", "payload": {"t": 1.5}}'
NDJSON = EVENT + b"\n" + EVENT.replace(b'"a"', b'"b"') + b"\n"
JSON = "application/json"


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    config = options(max_body=Size(2**20), max_decompressed=Size(4 * 2**20), max_in_flight=Size(3 * 2**20))
    with running(SmallRuntime(config=config)) as found:
        yield found


@pytest.fixture
def server(shared: Running) -> Running:
    shared.runtime.reset()
    return shared


def post(
    server: Running, body: bytes, kind: str = JSON, path: str = "/ingest", **headers: str
) -> httpx2.Response:
    named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx2.post(server.url + path, content=body, headers=named, timeout=30)


def stored(server: Running, topic: str = "events") -> int:
    return len(server.runtime.log.extent(topic, 0))


def arrow(rows: int) -> bytes:
    schema = pa.schema(
        [
            ("source_id", pa.string()),
            ("timestamp", pa.timestamp("us", "UTC")),
            ("payload", pa.struct([("t", pa.float64())])),
        ]
    )
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(["a"] * rows),
            pa.array([1_700_000_000_000_000] * rows, schema.field(1).type),
            pa.array([{"t": 1.0}] * rows, schema.field(2).type),
        ],
        schema=schema,
    )
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "rows"),
    [
        (EVENT, JSON, "", 1),
        (EVENT.replace(b"source_id", b"sourceId"), JSON, "", 1),
        (b"[" + EVENT + b"," + EVENT + b"]", JSON, "", 2),
        (b"[]", JSON, "", 0),
        (NDJSON, "application/x-ndjson", "", 2),
        (EVENT, "application/x-www-form-urlencoded", "", 1),  # curl -d without a content type
        (EVENT, "application/json; charset=utf-8", "", 1),
        (json.dumps(json.loads(EVENT), indent=2).encode(), JSON, "", 1),
        (b"source_id,timestamp,t\na,2026-01-31T12:00:00Z,1.5\nb,2026-01-31T12:00:00Z,2\n", "text/csv", "", 2),
        (arrow(3), "application/vnd.apache.arrow.stream", "", 3),
        (gzip.compress(NDJSON), "application/x-ndjson", "gzip", 2),
        (zstandard.compress(NDJSON), "application/x-ndjson", "zstd", 2),
    ],
)
def test_every_accepted_form_is_stored(
    server: Running, body: bytes, kind: str, encoding: str, rows: int
) -> None:
    answer = post(server, body, kind, **({"content_encoding": encoding} if encoding else {}))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"accepted": rows, "rejected": 0}
    assert stored(server) == rows


def test_a_body_in_chunks_without_a_length_is_stored(server: Running) -> None:
    parts = [NDJSON[:50], NDJSON[50:90], NDJSON[90:]]
    answer = httpx2.post(
        server.url + "/ingest", content=iter(parts), headers={"content-type": "application/x-ndjson"}
    )
    assert answer.json() == {"accepted": 2, "rejected": 0}


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", JSON, 400, "empty_body"),
        (b"  \n ", JSON, 400, "malformed_body"),
        (EVENT, "application/xml", 415, "unsupported_media_type"),
        (EVENT, "application/json; charset=klingon", 415, "unsupported_media_type"),
        (b"\xff\xfe" + EVENT, "application/vnd.apache.arrow.stream", 400, "malformed_body"),
    ],
)
def test_a_body_of_no_use_is_one_clear_problem(
    server: Running, body: bytes, kind: str, status: int, code: str
) -> None:
    answer = post(server, body, kind)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "code",
        "errors",
        "request_id",
    }
    assert stored(server) == stored(server, "dead_letters") == 0


@pytest.mark.parametrize(
    "bad",
    [
        b'{"source_id": "a", ',
        b'{"payload": {"t": 1}}',
        b'{"source_id": "a", "payload": {"t": NaN}}',
        b'{"source_id": "a", "payload": {"t": "\\ud800"}}',
        b'{"source_id": "a", "payload": ' + b'{"x": ' * 10_000 + b"1" + b"}" * 10_001,
        b"[" * 10_000 + b"]" * 10_000,
        b"42",
        b'"text"',
        b'{"source_id": "a", "timestamp": "9999-01-01T00:00:00Z", "payload": {}}',
        b'{"source_id": "a", "timestamp": "0001-01-01T00:00:00Z", "payload": {}}',
        b'{"source_id": "\xff\xfe", "payload": {}}',
    ],
)
def test_a_bad_row_between_good_ones_is_rejected_alone(server: Running, bad: bytes) -> None:
    answer = post(server, EVENT + b"\n" + bad + b"\n" + EVENT, "application/x-ndjson")
    assert answer.status_code == 207, answer.text
    found = answer.json()
    assert (found["accepted"], found["rejected"], found["total"]) == (2, 1, 3)
    assert found["errors"][0]["row"] == 1
    assert found["errors"][0]["code"]
    assert found["errors"][0]["reason"]
    assert stored(server) == 2
    raw = server.runtime.table("dead_letters")["raw"].to_pylist()
    assert len(raw) == 1
    assert raw[0].strip() == bad.strip()


def test_when_no_row_is_accepted_the_answer_is_a_problem_that_lists_them(server: Running) -> None:
    answer = post(server, b'[{"payload": {}}, 7]')
    found = answer.json()
    assert (answer.status_code, found["code"]) == (422, "all_rejected")
    assert [error["row"] for error in found["errors"]] == [0, 1]
    assert (found["accepted"], found["rejected"], found["total"]) == (0, 2, 2)
    assert stored(server, "dead_letters") == 2


def test_at_most_a_hundred_rejected_rows_are_listed_and_all_are_kept(server: Running) -> None:
    answer = post(server, EVENT + b"\n" + b"x\n" * 250, "application/x-ndjson")
    found = answer.json()
    assert (answer.status_code, found["rejected"], len(found["errors"])) == (207, 250, 100)
    assert stored(server, "dead_letters") == 250


def test_an_unknown_topic_is_named(server: Running) -> None:
    answer = post(server, EVENT, path="/ingest/evnts")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_topic")
    assert "evnts" in answer.json()["detail"]
    assert post(server, EVENT, path="/ingest/a/b").status_code == 404
    assert post(server, EVENT, path="/ingest/%00%ff").status_code == 404


def test_another_topic_takes_its_own_columns(server: Running) -> None:
    row = b'{"sensor_id": "a", "metric": "t", "value": 1.5, "timestamp": "2026-01-31T12:00:00Z"}'
    assert post(server, row, path="/ingest/measurements").json()["accepted"] == 1
    assert stored(server, "measurements") == 1


def test_another_method_is_refused_with_the_one_that_works(server: Running) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        answer = httpx2.request(method, server.url + "/ingest")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_key_seen_before_stores_nothing_twice(server: Running) -> None:
    first = post(server, NDJSON, "application/x-ndjson", idempotency_key="one")
    again = post(server, NDJSON, "application/x-ndjson", idempotency_key="one")
    assert first.json() == {"accepted": 2, "rejected": 0}
    assert again.json() == {"accepted": 2, "rejected": 0, "duplicate": True}
    assert stored(server) == 2
    other = post(server, EVENT, idempotency_key="one")
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert post(server, EVENT, idempotency_key="x" * 300).status_code == 400


def test_a_declared_length_over_the_limit_is_refused_without_reading(server: Running) -> None:
    status, headers, problem = server.raw(
        b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{"
    )
    assert (status, problem["code"], headers["connection"]) == (413, "body_too_large", "close")


def test_a_sender_who_has_sent_too_much_gets_to_see_the_answer(server: Running) -> None:
    answer = post(server, b"[" + b" " * (3 * 2**20) + b"]")
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    chunks = [b" " * 65536] * 40
    answer = httpx2.post(server.url + "/ingest", content=iter(chunks))
    assert answer.status_code == 413
    assert server.app.ingest.in_flight == 0


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_decompression_bomb_is_refused(server: Running, encoding: str, pack: object) -> None:
    bomb = pack(b" " * (200 * 2**20))  # type: ignore[operator]
    answer = post(server, bomb, content_encoding=encoding)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_broken_or_unknown_encoding_is_refused(server: Running) -> None:
    assert post(server, gzip.compress(EVENT)[:-9], content_encoding="gzip").status_code == 400
    assert post(server, b"not gzip", content_encoding="gzip").status_code == 400
    assert post(server, EVENT, content_encoding="snappy").status_code == 415


def test_a_field_of_megabytes_is_rejected_and_its_neighbour_stored() -> None:
    with running(SmallRuntime(config=options(max_body=Size(32 * 2**20)))) as wide:
        big = b'{"source_id": "a", "payload": {"s": "' + b"x" * (10 * 2**20) + b'"}}'
        answer = post(wide, EVENT + b"\n" + big, "application/x-ndjson")
        assert answer.status_code == 207, answer.text
        assert answer.json()["errors"][0]["row"] == 1


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: -1",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: x",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    ],
)
def test_contradictory_lengths_are_refused(server: Running, head: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /ingest HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\nhello")
        assert sock.recv(1000).startswith(b"HTTP/1.1 400")
    assert stored(server) == 0


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + EVENT)
        wait_until(lambda: server.app.ingest.in_flight > 0)
    wait_until(lambda: server.app.ingest.in_flight == 0)
    assert stored(server) == 0


def test_a_body_that_comes_too_slowly_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.serve.ingest_route.PATIENCE", 0.3)
    status, _, problem = server.raw(
        b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    )
    assert (status, problem["code"]) == (408, "slow_body")


def test_a_head_that_never_ends_is_given_up(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000)
        assert sock.recv(1000).startswith(b"HTTP/1.1 400")


def test_bytes_in_flight_are_bounded(server: Running) -> None:
    server.runtime.gate.clear()
    big = b"[" + b" " * (900 * 1024) + b"]"
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(post, server, big) for _ in range(6)]
        wait_until(lambda: sum(a.done() for a in answers) >= 3)
        server.runtime.gate.set()
        found = [answer.result() for answer in answers]
    assert sorted({answer.status_code for answer in found}) == [200, 429]
    refused = next(answer for answer in found if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert server.app.ingest.in_flight == 0


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (StorageFullError("the disk is full"), 507, "storage_full"),
        (RetryableError("the log is moving", after=3), 503, "unavailable"),
        (RuntimeError("secret inside"), 500, "internal"),
    ],
)
def test_a_fault_below_is_answered_and_recovers_by_itself(
    server: Running, fault: Exception, status: int, code: str
) -> None:
    server.runtime.fault = fault
    answer = post(server, EVENT)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "secret" not in answer.text
    if status != 500:
        assert int(answer.headers["retry-after"]) >= 1
    server.runtime.fault = None
    assert post(server, EVENT).status_code == 200


def test_many_senders_of_single_events_each_get_their_own_verdict(server: Running) -> None:
    def send(number: int) -> tuple[int, int]:
        with httpx2.Client(base_url=server.url) as client:
            codes = [
                client.post(
                    "/ingest",
                    content=b"{broken}" if (number + i) % 5 == 0 else EVENT,
                    headers={"content-type": JSON},
                ).status_code
                for i in range(40)
            ]
        wrong = sum((number + i) % 5 == 0 for i in range(40))
        assert codes == [422 if (number + i) % 5 == 0 else 200 for i in range(40)]
        return 40 - wrong, wrong

    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(send, range(16)))
    assert stored(server) == sum(accepted for accepted, _ in verdicts)
    assert stored(server, "dead_letters") == sum(rejected for _, rejected in verdicts)


def test_accepted_and_rejected_add_up_to_what_was_sent(server: Running) -> None:
    sent = accepted = rejected = 0
    for count in range(1, 60):
        lines = [b"{}" if (count * i) % 7 == 3 else EVENT for i in range(count)]
        found = post(server, b"\n".join(lines), "application/x-ndjson").json()
        sent, accepted, rejected = sent + count, accepted + found["accepted"], rejected + found["rejected"]
    assert accepted + rejected == sent
    assert (stored(server), stored(server, "dead_letters")) == (accepted, rejected)


def test_requests_in_one_packet_are_answered_in_order(server: Running) -> None:
    request = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(EVENT) + EVENT
    last = request.replace(b"Host", b"Connection: close\r\nHost")
    with server.connect() as sock:
        sock.sendall(request * 9 + last)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    assert answer.count(b'{"accepted":1,"rejected":0}') == 10


def test_stopping_answers_what_is_at_work_and_takes_a_second_at_most() -> None:
    runtime = SmallRuntime()
    with running(runtime) as server:
        runtime.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, server, EVENT)
            wait_until(lambda: server.app.ingest.in_flight > 0)
            threading.Timer(0.2, runtime.gate.set).start()
            assert answer.result().status_code == 200
        started = time.monotonic()
    assert time.monotonic() - started < 1.5


def wait_until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
