"""DataStreamer: rows come through in order, once, within bounds."""

from __future__ import annotations

import threading

import pytest

import headrace as hr
from headrace.errors import ConfigError, HeadraceError
from headrace.streamer import DataStreamer

COUNTER = "tests.unit.sample_components:Counter"


def test_all_rows_arrive_once_and_in_order_although_the_buffer_is_small() -> None:
    with DataStreamer(buffer_size=25, batch_size=7) as streamer:
        streamer.add_source("counter", {"kind": COUNTER, "total": 500})
        streamer.start_stream()
        seen, most = [], 0
        for batch in streamer.get_stream():
            assert batch.num_rows <= 7
            most = max(most, streamer.waiting())
            seen += batch.column("n").to_pylist()
        assert seen == list(range(500))
        assert most < 25 + 10 + 7
        assert [letter["raw"] for letter in streamer.dead_letters()] == [b"broken"]
        assert streamer.status()[0]["state"] == "finished"


def test_batches_reach_listeners_and_slow_clients_lose_the_oldest_counted() -> None:
    heard: list[int] = []
    with DataStreamer(batch_size=10) as streamer:
        streamer.add_source("counter", {"kind": COUNTER, "total": 50})
        streamer.connect(lambda batch: heard.append(batch.num_rows))
        slow = streamer.connect(buffer_size=2)
        streamer.start_stream()
        clients = {streamer.send_to_clients(streamer.process_data(batch)) for batch in streamer.get_stream()}
        assert clients == {2}
        assert heard == [10] * 5
        slow.close()
        assert [batch.column("n")[0].as_py() for batch in slow] == [30, 40]
        assert slow.dropped == 3


def test_a_stream_is_stopped_from_outside() -> None:
    streamer = DataStreamer(buffer_size=10)
    streamer.add_source("counter", {"kind": COUNTER, "total": 10_000_000})
    streamer.start_stream()
    timer = threading.Timer(0.2, streamer.stop_stream)
    timer.start()
    rows = sum(batch.num_rows for batch in streamer.get_stream())
    timer.join()
    streamer.close()
    assert 0 < rows < 10_000_000


def test_what_is_wrong_is_said_before_anything_runs() -> None:
    streamer = DataStreamer()
    with pytest.raises(ConfigError, match="sources of kind 'http_pool' are not available"):
        streamer.add_source("http_pool", {"url": "https://example.org/data"})
    with pytest.raises(ConfigError, match=r"counter\.totl: unknown option; did you mean total\?"):
        streamer.add_source("counter", {"kind": COUNTER, "totl": 5})
    with pytest.raises(ConfigError, match="there is no source"):
        streamer.start_stream()
    with pytest.raises(HeadraceError, match="call start_stream first"):
        next(streamer.get_stream())
    streamer.close()


def test_the_package_name_gives_the_class() -> None:
    assert hr.DataStreamer is DataStreamer
    import headrace.pipeline  # noqa: F401 - must not replace the function of the same name

    assert hr.pipeline("p", "events").topics == ("events",)
