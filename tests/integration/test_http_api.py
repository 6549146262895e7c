"""Everything over HTTP but ingest: reading, health, control, errors in one shape, and what browsers may not do."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError
from headrace.model import Reject
from headrace.serve.app import create_app
from headrace.serve.data import parse_time
from headrace.serve.problems import KINDS, ProblemError
from headrace.serve.server import Server, listen
from tests.integration.small_runtime import Running, SmallRuntime, measurements, options, running

START_US = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running(SmallRuntime(config=options(hosts=("plant.example",)))) as found:
        yield found


@pytest.fixture
def server(shared: Running) -> Running:
    """25 seconds of two sensors."""
    runtime = shared.runtime
    runtime.reset()
    times = [START_US + i * SECOND_US for i in range(25)]
    runtime.append("measurements", measurements(["a"] * 25, "temp", [float(i) for i in range(25)], times))
    runtime.append("measurements", measurements(["b"] * 25, "load", [float("nan")] + [1.0] * 24, times))
    return shared


def get(server: Running, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(server.url + path, headers=headers, timeout=20)


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, object] = answer.json()
    assert (answer.status_code, found["status"], found["code"]) == (status, status, code), answer.text
    assert found["title"] == KINDS[code].title
    assert found["request_id"] == answer.headers["x-request-id"]
    return found


# -- reading ---------------------------------------------------------------------------------------


def test_data_is_filtered_by_source_metric_and_time(server: Running) -> None:
    path = "/data?source_id=a&metric=temp&start_time=2026-01-31T12:00:03Z&end_time=1769860806&order=oldest"
    found = get(server, path).json()
    assert [row["value"] for row in found["data"]] == [3.0, 4.0, 5.0]
    assert found["data"][0]["timestamp"] == "2026-01-31T12:00:03Z"
    assert (found["count"], found["next_cursor"]) == (3, None)


def test_the_newest_rows_come_first_unless_asked_otherwise(server: Running) -> None:
    assert [row["value"] for row in get(server, "/data?source_id=a&limit=2").json()["data"]] == [24.0, 23.0]
    assert [row["value"] for row in get(server, "/data?source_id=a&limit=2&offset=2").json()["data"]] == [
        22.0,
        21.0,
    ]


def test_following_the_link_gives_every_row_once(server: Running) -> None:
    path, seen = "/data?source_id=a&limit=7", []
    while path:
        answer = get(server, path)
        seen += [row["value"] for row in answer.json()["data"]]
        link = answer.headers.get("link", "")
        assert bool(link) == (answer.json()["next_cursor"] is not None)
        path = link[1:].split(">")[0] if link else ""
        if path:
            assert parse_qs(urlsplit(path).query)["cursor"] == [answer.json()["next_cursor"]]
    assert seen == [float(i) for i in range(24, -1, -1)]


def test_not_a_number_is_null(server: Running) -> None:
    found = get(server, "/data?source_id=b&order=oldest&limit=2").json()["data"]
    assert [row["value"] for row in found] == [None, 1.0]


def test_data_as_csv_arrow_and_parquet_holds_the_same_rows(server: Running) -> None:
    path = "/data?source_id=a&limit=3&format="
    rows = list(csv.DictReader(io.StringIO(get(server, path + "csv").text)))
    assert [row["value"] for row in rows] == ["24", "23", "22"]
    answer = get(server, path + "arrow")
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert pa.ipc.open_stream(answer.content).read_all()["value"].to_pylist() == [24.0, 23.0, 22.0]
    assert pq.read_table(io.BytesIO(get(server, path + "parquet").content))["value"].to_pylist() == [
        24.0,
        23.0,
        22.0,
    ]
    assert 'rel="next"' in answer.headers["link"]


def test_csv_never_holds_a_formula(server: Running) -> None:
    names = ["=1+1", "+1", "-1", "@x", "\tx", "plain", "it's", 'q"q', "a\nb"]
    server.runtime.append(
        "measurements",
        measurements(names, "f", [-1.0] * len(names), [START_US + i for i in range(len(names))]),
    )
    rows = list(csv.reader(io.StringIO(get(server, "/data?metric=f&format=csv&order=oldest").text)))
    assert [row[0] for row in rows[1:]] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'@x",
        "'\tx",
        "plain",
        "it's",
        'q"q',
        "a\nb",
    ]
    assert {row[2] for row in rows[1:]} == {"-1"}


def test_an_empty_answer_has_the_form_asked_for(server: Running) -> None:
    assert get(server, "/data?source_id=nobody").json() == {"data": [], "count": 0, "next_cursor": None}
    assert get(server, "/data?source_id=nobody&format=csv").text.startswith('"sensor_id"')
    assert (
        pa.ipc.open_stream(get(server, "/data?source_id=nobody&format=arrow").content).read_all().num_rows
        == 0
    )


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 422, "invalid_request"),
        ("limit=1001", 422, "invalid_request"),
        ("limit=many", 422, "invalid_request"),
        ("offset=-1", 422, "invalid_request"),
        ("format=xml", 422, "invalid_request"),
        ("start_time=yesterday", 422, "invalid_request"),
        ("start_time=1e400", 422, "invalid_request"),
        ("start_time=2026-02-30", 422, "invalid_request"),
        ("start_time=20&end_time=10", 422, "invalid_request"),
        ("cursor=x&offset=5", 422, "invalid_request"),
        ("cursor=nonsense", 400, "query_refused"),
        ("topic=measurments", 404, "unknown_topic"),
        ("topic=../../etc/passwd", 404, "unknown_topic"),
        ("topic=_idempotency", 404, "unknown_topic"),
        ("topic=dead_letters&metric=x", 400, "query_refused"),
    ],
)
def test_a_wrong_parameter_is_named(server: Running, query: str, status: int, code: str) -> None:
    problem(get(server, f"/data?{query}"), status, code)


def test_a_misspelt_topic_is_suggested(server: Running) -> None:
    assert "'measurements'" in str(get(server, "/data?topic=measurments").json()["detail"])


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-01-31T12:00:00Z", START_US),
        ("2026-01-31T12:00:00", START_US),
        ("2026-01-31T14:00:00+02:00", START_US),
        ("2026-01-31T14:00:00 02:00", START_US),  # a + that wasn't escaped
        ("2026-01-31", START_US - 43_200 * SECOND_US),
        ("1769860800", START_US),
        ("1769860800.5", START_US + 500_000),
        ("1769860800000", START_US),
        ("1769860800000000", START_US),
        ("0", 0),
        ("-1", -SECOND_US),
        ("now", 9),
        ("-5m", 9 - 300 * SECOND_US),
        ("now-1h30m", 9 - 5400 * SECOND_US),
        ("", None),
    ],
)
def test_times_are_read_as_people_write_them(text: str, us: int | None) -> None:
    assert parse_time(text, "start_time", 9) == us


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-5x", "12:00", "2026-13-01", "1" * 400, "\x00", "-", "now+5m"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ProblemError) as refused:
        parse_time(text, "start_time", 9)
    assert refused.value.code == "invalid_request"


def test_a_query_answers_with_columns_and_says_when_there_is_more(server: Running) -> None:
    body = {"sql": "SELECT sensor_id, value FROM measurements ORDER BY value DESC, sensor_id", "max_rows": 2}
    found = httpx2.post(server.url + "/api/v1/query", json=body).json()
    assert (found["count"], found["truncated"]) == (2, True)
    assert found["columns"] == [{"name": "sensor_id", "type": "string"}, {"name": "value", "type": "double"}]
    body = {"sql": "SELECT count(*) AS n FROM measurements", "format": "csv"}
    assert httpx2.post(server.url + "/api/v1/query", json=body).text == '"n"\n50\n'


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELECT * FROM nowhere", 400, "query_refused"),
        ("DROP TABLE measurements", 400, "query_refused"),
        ("SELECT * FROM read_csv('/etc/passwd')", 400, "query_refused"),
        ("SELEC 1", 400, "query_refused"),
        ("", 422, "invalid_request"),
    ],
)
def test_a_query_that_may_not_be_is_a_problem(server: Running, sql: str, status: int, code: str) -> None:
    problem(httpx2.post(server.url + "/api/v1/query", json={"sql": sql}), status, code)


def test_topics_and_dead_letters_are_listed(server: Running) -> None:
    server.runtime.put_aside(
        [Reject(b"{", "malformed_json", "no end"), Reject(b"[", "malformed_json", "no end")], "events"
    )
    found = {topic["name"]: topic for topic in get(server, "/api/v1/topics").json()["data"]}
    assert found["measurements"]["rows"] == 50
    assert found["measurements"]["columns"][0] == {"name": "sensor_id", "type": "string", "nullable": False}
    causes = get(server, "/api/v1/dead-letters").json()
    assert (causes["total"], causes["data"][0]["code"], causes["data"][0]["count"]) == (
        2,
        "malformed_json",
        2,
    )
    assert get(server, "/api/v1/sensors").json() == {"data": [], "count": 0}


# -- health and control ----------------------------------------------------------------------------


def test_health_names_what_is_wrong_and_ready_waits_for_the_start(server: Running) -> None:
    assert get(server, "/health").json()["status"] == get(server, "/api/v1/health").json()["status"] == "ok"
    assert get(server, "/ready").json() == {"ready": True}
    server.runtime.unwell, server.runtime.ready = "connection refused", False
    found = get(server, "/health")
    assert (found.status_code, found.json()["status"]) == (200, "degraded")
    assert found.json()["components"][1]["reason"] == "connection refused"
    waiting = get(server, "/ready")
    problem(waiting, 503, "unavailable")
    assert waiting.headers["retry-after"] == "1"


def test_metrics_come_in_both_text_forms(server: Running) -> None:
    plain = get(server, "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert "headrace_accepted_records_total 0.0" in plain.text
    openmetrics = get(server, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_sources_are_stopped_and_started(server: Running) -> None:
    def post(verb: str, body: object) -> httpx2.Response:
        return httpx2.post(f"{server.url}/api/stream/{verb}", json=body)

    assert post("stop", {"source": "fleet"}).json()["sources"]["fleet"]["state"] == "stopped"
    assert (
        post("start", {"source": "fleet", "interval": "5s"}).json()["sources"]["fleet"]["state"] == "running"
    )
    assert post("start", {"source": "fleet", "interval": 2}).status_code == 200
    assert {s["state"] for s in post("stop", {}).json()["sources"].values()} == {"stopped"}
    assert {s["state"] for s in get(server, "/api/stream/status").json()["sources"].values()} == {"stopped"}
    detail = problem(post("start", {"source": "flet"}), 404, "unknown_source")["detail"]
    assert "did you mean 'fleet'" in str(detail)
    problem(post("start", {"source": "fleet", "interval": "soon"}), 422, "invalid_request")
    problem(post("start", {"source": "fleet", "nonsense": 1}), 422, "invalid_request")
    problem(post("start", {}), 422, "invalid_request")
    problem(
        httpx2.post(
            f"{server.url}/api/stream/start", content=b"{", headers={"content-type": "application/json"}
        ),
        422,
        "invalid_request",
    )


# -- errors, names, browsers -----------------------------------------------------------------------


def test_what_isnt_there_and_what_isnt_offered_are_problems_too(server: Running) -> None:
    problem(get(server, "/nowhere"), 404, "not_found")
    problem(get(server, "/static/../app.py"), 404, "not_found")
    problem(get(server, "/static/%2e%2e%2fapp.py"), 404, "not_found")
    answer = httpx2.delete(server.url + "/data")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_a_bug_is_answered_with_an_id_and_nothing_else(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.runtime, "status", broken)
    answer = get(server, "/api/stream/status")
    problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "localhost:8080",
        "127.0.0.1:9",
        "[::1]:9",
        "192.168.7.7:8080",
        "plant.example",
        "PLANT.example:80",
    ],
)
def test_names_of_this_server_and_bare_addresses_are_served(server: Running, name: str) -> None:
    assert get(server, "/health", host=name).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]", ""],
)
def test_other_names_are_refused_everywhere(server: Running, name: str) -> None:
    for path in ("/", "/health", "/ingest", "/data", "/metrics"):
        problem(get(server, path, host=name), 421, "wrong_host")


def test_other_sites_may_not_act(server: Running) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        for path in ("/ingest", "/api/stream/stop"):
            answer = httpx2.post(
                server.url + path,
                content=b"{}",
                headers={"origin": origin, "content-type": "application/json"},
            )
            problem(answer, 403, "cross_site")
    own = httpx2.post(server.url + "/api/stream/stop", json={}, headers={"origin": server.url})
    assert own.status_code == 200
    form = httpx2.post(
        server.url + "/api/stream/stop",
        content=b'{"source": "fleet"}',
        headers={"content-type": "text/plain"},
    )
    assert form.status_code == 422


def test_pages_come_from_here_alone_and_may_not_be_framed(server: Running) -> None:
    for path in ("/", "/docs", "/docs/problems", "/static/app.js", "/static/page.css", "/health"):
        answer = get(server, path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        if path.startswith(("/static", "/docs")) or path == "/":
            assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in answer.text
    tag = get(server, "/static/app.js").headers["etag"]
    assert get(server, "/static/app.js", if_none_match=tag).status_code in (200, 304)
    assert httpx2.get(server.url + "/static/app.js", headers={"if-none-match": tag}).status_code == 304


def test_the_description_names_every_route(server: Running) -> None:
    paths = get(server, "/openapi.json").json()["paths"]
    assert set(paths) >= {
        "/ingest", "/ingest/{topic}", "/data", "/api/v1/query", "/api/v1/topics", "/api/v1/sensors", "/api/v1/dead-letters",
        "/api/v1/health", "/ready", "/metrics", "/api/stream/status", "/api/stream/start", "/api/stream/stop",
        "/api/v1/stream", "/ws/dashboard",
    }  # fmt: skip
    for path in paths.values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["responses"]["default"]["content"].keys() == {"application/problem+json"}


def test_every_kind_of_problem_is_explained_where_its_type_points(server: Running) -> None:
    page = get(server, "/docs/problems").text
    for code in KINDS:
        assert f'id="{code}"' in page
    assert get(server, "/nowhere").json()["type"] == "/docs/problems#not_found"


# -- starting and stopping -------------------------------------------------------------------------


def test_a_taken_port_is_a_clear_error_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"server\.host"):
        listen("no.such.host.invalid", 0)


def test_the_server_runs_in_any_thread_and_stops_twice() -> None:
    runtime = SmallRuntime()
    server = Server(create_app(runtime), "localhost", 0)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    assert json.loads(httpx2.get(f"http://localhost:{server.port}/ready").text) == {"ready": True}
    server.stop()
    server.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://localhost:{server.port}/ready")
    runtime.close()
