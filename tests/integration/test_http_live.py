"""Live updates: what viewers get, resuming, viewers who don't read, and who may not watch."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pyarrow as pa
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from headrace.model import Reject
from headrace.serve.live import CLIENT_FRAMES, TOO_SLOW, Client, Frame
from headrace.serve.observe import Observer, newest
from tests.integration.small_runtime import MEASUREMENTS, Running, SmallRuntime, measurements, running

NOW_US = 1_769_860_800_000_000


@pytest.fixture
def server() -> Iterator[Running]:
    with running(SmallRuntime()) as found:
        yield found


def watch(server: Running, query: str = "", **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/ws/dashboard{query}", compression=None, **options)


def take(viewer: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first frame that is wanted."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        frame: dict[str, Any] = json.loads(viewer.recv(timeout=10))
        if wanted(frame):
            return frame
    raise AssertionError("no such frame came")


def event(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: bool(frame["event"] == name)


def add(server: Running, value: float, sensor: str = "a", at_us: int = NOW_US) -> None:
    server.runtime.append("measurements", measurements([sensor], "temp", [value], [at_us]))


def test_a_viewer_first_gets_the_present_state(server: Running) -> None:
    add(server, 1.0)
    add(server, 2.0, at_us=NOW_US + 1)
    with watch(server) as viewer:
        hello = json.loads(viewer.recv())
    assert hello["event"] == "hello"
    assert hello["data"]["resumed"] is False
    assert hello["data"]["tables"]["measurements"]["value"] == [2.0]  # the newest of the sensor
    assert hello["data"]["health"]["status"] == "ok"
    assert hello["data"]["status"]["sources"]["fleet"]["state"] == "running"
    assert set(hello["data"]["history"]) == {"at", "ingest_per_second", "p50", "p99"}


def test_each_kind_of_news_has_its_event(server: Running) -> None:
    with watch(server) as viewer:
        take(viewer, event("metrics_update"))
        add(server, 3.5)
        frame = take(viewer, event("data_update"))
        assert frame["data"]["measurements"]["rows"] == 1
        assert frame["data"]["measurements"]["columns"]["value"] == [3.5]
        assert frame["data"]["measurements"]["columns"]["timestamp"] == ["2026-01-31T12:00:00Z"]

        server.runtime.stop("fleet")
        assert take(viewer, event("stream_status"))["data"]["sources"]["fleet"]["state"] == "stopped"

        server.runtime.put_aside([Reject(b"{", "malformed_json", "no end")], "events")
        alert = take(viewer, event("error_alert"))["data"]
        assert (alert["kind"], alert["causes"][0]["code"], alert["causes"][0]["new"]) == (
            "dead_letters",
            "malformed_json",
            1,
        )

        server.runtime.unwell = "connection refused"
        alert = take(viewer, event("error_alert"))["data"]
        assert (alert["kind"], alert["component"]["reason"]) == ("component", "connection refused")


def test_numbers_grow_by_one_and_frames_come_at_most_four_times_a_second(server: Running) -> None:
    with watch(server) as viewer:
        hello = json.loads(viewer.recv())
        seqs, data, started = [], 0, time.monotonic()
        while time.monotonic() - started < 2:
            add(server, 1.0)
            try:
                frame = json.loads(viewer.recv(timeout=0.05))
            except TimeoutError:
                continue
            seqs.append(frame["seq"])
            data += frame["event"] == "data_update"
    assert seqs == list(range(hello["seq"] + 1, hello["seq"] + 1 + len(seqs)))
    assert 3 <= data <= 10


def test_a_viewer_who_comes_back_gets_what_it_missed(server: Running) -> None:
    with watch(server) as viewer:
        take(viewer, event("metrics_update"))
        add(server, 1.0)
        last = take(viewer, event("data_update"))["seq"]
    add(server, 2.0, at_us=NOW_US + 1)
    time.sleep(0.6)
    add(server, 3.0, at_us=NOW_US + 2)
    with watch(server, f"?since={last}") as viewer:
        assert json.loads(viewer.recv())["data"]["resumed"] is True
        frames = []
        while sum(frame["event"] == "data_update" for frame in frames) < 2:
            frames.append(json.loads(viewer.recv(timeout=10)))
    assert [frame["seq"] for frame in frames] == list(range(last + 1, last + 1 + len(frames)))
    values = [f["data"]["measurements"]["columns"]["value"] for f in frames if f["event"] == "data_update"]
    assert values == [[2.0], [3.0]]


@pytest.mark.parametrize("since", ["1", "99999999999999999", "-3", "x", "1e3", "%00"])
def test_a_number_that_is_unknown_here_starts_afresh(server: Running, since: str) -> None:
    with watch(server, f"?since={since}") as viewer:
        assert json.loads(viewer.recv())["data"]["resumed"] is False
        take(viewer, event("metrics_update"))


def test_a_viewer_who_does_not_read_is_sent_away_and_holds_up_nobody(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.serve.live.TICK", 0.01)
    monkeypatch.setattr("headrace.serve.live.DRAIN_SECONDS", 0.5)
    monkeypatch.setattr("headrace.serve.server.ABORT_SECONDS", 1.0)
    server.runtime.sinks["big"] = {"state": "running", "note": "x" * 200_000}
    key = base64.b64encode(os.urandom(16)).decode()
    with server.connect(receive_buffer=4096) as lazy, watch(server, max_size=None) as viewer:
        head = f"GET /ws/dashboard HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        lazy.sendall(head.encode())
        deadline = time.monotonic() + 15
        clients = server.app.hub.viewers
        while clients() < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while clients() > 1:
            assert time.monotonic() < deadline, "the lazy viewer is still there"
            take(viewer, event("metrics_update"))
        unread = b""
        while b"\x03\xf5too slow" not in unread:  # close code 1013
            part = lazy.recv(1 << 20)
            assert part, "the connection ended without a close frame"
            unread = unread[-100:] + part


def test_waiting_data_gives_way_to_newer_data_but_alerts_are_kept() -> None:
    client = Client()
    client.offer(Frame(0, "error_alert", ""))
    for seq in range(1, 500):
        client.offer(Frame(seq, "data_update", ""))
    assert client.end is None
    waiting = list(client.waiting())
    assert waiting[0].event == "error_alert"
    assert waiting[-1].seq == 499
    assert len(waiting) <= CLIENT_FRAMES // 2
    for seq in range(500, 600):
        client.offer(Frame(seq, "error_alert", ""))
    assert client.end == TOO_SLOW
    assert not list(client.waiting())


def test_other_sites_may_not_watch(server: Running) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus) as refused, watch(server, additional_headers=headers):
            pass
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body or b"")["code"] == "cross_site"
    with watch(server, origin=server.url) as viewer:  # type: ignore[arg-type]
        assert json.loads(viewer.recv())["event"] == "hello"
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{server.port}/ws/other"):
        pass
    assert refused.value.response.status_code == 404


def test_what_a_viewer_says_is_ignored(server: Running) -> None:
    with watch(server) as viewer:
        for message in ("hello", b"\x00\xff", "{" * 1000):
            viewer.send(message)
        take(viewer, event("metrics_update"))
        viewer.send("x" * 200_000)  # larger than anything a viewer has to say
        with pytest.raises(ConnectionClosed):
            take(viewer, lambda frame: False)


def test_server_sent_events_carry_the_same_frames_and_resume(server: Running) -> None:
    def read(headers: dict[str, str], count: int) -> list[dict[str, Any]]:
        frames = []
        with httpx2.stream("GET", server.url + "/api/v1/stream", headers=headers, timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            names = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                names[name] = value
                if not line:
                    frame = json.loads(names["data"])
                    assert (str(frame["seq"]), frame["event"]) == (names["id"], names["event"])
                    frames.append(frame)
                    if len(frames) == count:
                        return frames
        raise AssertionError("the stream ended")

    first = read({}, 3)
    assert first[0]["event"] == "hello"
    again = read({"last-event-id": str(first[-1]["seq"])}, 2)
    assert again[0]["data"]["resumed"] is True
    assert again[1]["seq"] == first[-1]["seq"] + 1


def test_stopping_sends_viewers_away_within_a_second() -> None:
    with contextlib.ExitStack() as stack:
        with running(SmallRuntime()) as server:
            viewer = stack.enter_context(watch(server))
            viewer.recv()
            started = time.monotonic()
        assert time.monotonic() - started < 1.5
        with pytest.raises(ConnectionClosed) as closed:
            take(viewer, lambda frame: False)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in (1001, 1012)


# -- the observer ----------------------------------------------------------------------------------


def test_only_the_newest_rows_of_a_burst_are_read_and_all_are_counted() -> None:
    runtime = SmallRuntime()
    observer = Observer(runtime)
    observer.tick()
    count = 50_000
    names = [f"s{i % 3}" for i in range(count)]
    runtime.append(
        "measurements",
        measurements(names, "m", [float(i) for i in range(count)], [NOW_US + i for i in range(count)]),
    )
    [(_, data)] = [news for news in observer.tick() if news[0] == "data_update"]
    assert data["measurements"]["rows"] == count
    assert sorted(data["measurements"]["columns"]["value"]) == [count - 3.0, count - 2.0, count - 1.0]
    assert not [news for news in observer.tick() if news[0] == "data_update"]
    runtime.close()


def test_the_newest_row_of_each_key_is_by_event_time_and_nulls_are_a_key() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "sensor_id": ["a", "a", "b", "b"],
            "metric": ["m", "m", None, None],
            "value": [1.0, 2.0, 3.0, 4.0],
            "timestamp": pa.array([20, 10, 5, 6], MEASUREMENTS.field("timestamp").type),
        }
    )
    assert newest(rows, ("sensor_id", "metric"), "timestamp", 9)["value"].to_pylist() == [4.0, 1.0]
    assert newest(rows, ("sensor_id", "metric"), "timestamp", 1)["value"].to_pylist() == [1.0]
    assert newest(rows.slice(0, 0), ("sensor_id",), "timestamp", 9).num_rows == 0
