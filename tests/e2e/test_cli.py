"""The command line as a user meets it: real processes, real data directories."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from headrace import cli
from headrace.clock import FakeClock
from headrace.config import load_config
from headrace.log.sqlite import SqliteLog
from headrace.model import Reject, dead_letters

SRC = str(Path(__file__).parents[2] / "src")
CONFIG = """
topics:
  readings: {schema: {sensor_id: string, timestamp: timestamp, value: double}}
"""


def headrace(*args: str, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli", *args],
        capture_output=True, text=True, timeout=50, env={**clean, "PYTHONPATH": SRC, **env}, input=text, check=False,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    """Options for a data directory with some rows in it."""
    file = tmp_path / "headrace.yaml"
    file.write_text(CONFIG, "utf-8")
    config = load_config(file, data_dir=tmp_path / "data", env={})
    log = SqliteLog(config.data_dir / "log.db", clock=FakeClock())
    for topic in config.topics.values():
        log.create(topic)
    rows = {
        "sensor_id": ["a", "b", "a"],
        "timestamp": [1_000_000, 2_000_000, 3_000_000],
        "value": [1.5, None, 3.0],
    }
    log.append("readings", 0, pa.RecordBatch.from_pydict(rows, schema=config.topics["readings"].schema))
    rejects = [
        Reject(b'{"payload": {"t": "hot"}}', "type", "t: a number is needed", "s1"),
        Reject(b"\xff\xfe", "encoding", "is not UTF-8"),
        Reject(b'{"payload": {"t": "cold"}}', "type", "t: a number is needed", "s2"),
    ]
    log.append("dead_letters", 0, dead_letters(rejects, now_us=5, topic="events", component="http"))
    log.close()
    return ["--config", str(file), "--data-dir", str(config.data_dir)]


# -- start ---------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_no_data_library() -> None:
    code = "import sys, headrace.cli as c; c.call(['--help']); sys.exit('pyarrow' in sys.modules or 'yaml' in sys.modules)"
    times = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": SRC},
            capture_output=True,
            check=True,
        )
        times.append(time.perf_counter() - started)
    assert b"doctor" in done.stdout
    assert min(times) < 0.2 * max(1.0, _slowness())


def _slowness() -> float:
    """How much slower than usual a Python process starts on this machine at this moment."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import click"], check=True)
    return (time.perf_counter() - started) / 0.1


def test_version_and_unknown_command() -> None:
    assert json.loads(headrace("version", "--json").stdout)["headrace"] == "0.1.0"
    wrong = headrace("chek")
    assert wrong.returncode == 2
    assert "did you mean check?" in wrong.stderr


def test_mistakes_in_a_configuration_are_code_2_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("server: {prt: 1}\nlogg: x\n")
    for command in ("check", "run"):
        wrong = headrace(command, str(file))
        assert wrong.returncode == 2
        assert wrong.stderr == (
            f"{file}:1:10: server.prt: unknown option; did you mean port?\n{file}:2:1: logg: unknown key; did you mean log?\n"
        )
    found = json.loads(headrace("check", str(file), "--json").stdout)
    assert [(p["line"], p["column"], p["where"]) for p in found["problems"]] == [
        (1, 10, "server.prt"),
        (2, 1, "logg"),
    ]


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    assert "Traceback" in headrace("check", str(tmp_path / "none.yaml"), HEADRACE_DEBUG="1").stderr


def test_init_writes_what_check_accepts_and_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    assert headrace("init", str(file)).returncode == 0
    checked = headrace("check", str(file), "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    report = json.loads(checked.stdout)
    assert {
        "events",
        "measurements",
        "aggregations",
        "processed_data",
        "anomalies",
        "alerts",
        "dead_letters",
    } <= set(report["topics"])
    again = headrace("init", str(file))
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_a_server_that_is_not_there_is_code_3() -> None:
    gone = headrace("send", '{"sourceId": "s"}', "--url", "http://127.0.0.1:9")
    assert gone.returncode == 3
    assert "no headrace answers at http://127.0.0.1:9" in gone.stderr


# -- looking -------------------------------------------------------------------------------------------


def run(*args: str) -> Any:
    """A command in this process."""
    return CliRunner().invoke(cli.cli, list(args), standalone_mode=False, catch_exceptions=False)


def test_tap_gives_the_rows_that_are_there(place: list[str]) -> None:
    lines = run("tap", "readings", "--no-follow", "--json", "--last", "2", *place).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"sensor_id": "b", "timestamp": "1970-01-01T00:00:02Z", "value": None},
        {"sensor_id": "a", "timestamp": "1970-01-01T00:00:03Z", "value": 3.0},
    ]


def test_query_answers_as_json_csv_and_table(place: list[str]) -> None:
    sql = "SELECT sensor_id, count(*) AS n FROM readings GROUP BY 1 ORDER BY 1"
    assert json.loads(run("query", sql, "--json", *place).stdout) == [
        {"sensor_id": "a", "n": 2},
        {"sensor_id": "b", "n": 1},
    ]
    assert list(csv.reader(io.StringIO(run("query", sql, "--csv", *place).stdout))) == [
        ["sensor_id", "n"],
        ["a", "2"],
        ["b", "1"],
    ]
    assert "sensor_id  n" in run("query", sql, *place).stdout


def test_a_wrong_query_or_place_is_one_line(place: list[str], tmp_path: Path) -> None:
    wrong = headrace("query", "SELECT * FROM redings", *place)
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr
    empty = headrace("query", "SELECT 1", "--data-dir", str(tmp_path / "nothing"))
    assert empty.returncode == 1
    assert "there is no headrace data in" in empty.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("what", ["readings", "SELECT * FROM readings ORDER BY timestamp"])
def test_export_in_every_format(what: str, place: list[str], tmp_path: Path) -> None:
    for ending in ("parquet", "csv", "ndjson", "arrow"):
        file = tmp_path / f"out.{ending}"
        said = run("export", what, str(file), "--json", *place).stdout
        assert json.loads(said)["rows"] == 3
    assert pq.read_table(tmp_path / "out.parquet").column("value").to_pylist() == [1.5, None, 3.0]
    assert [json.loads(line)["sensor_id"] for line in (tmp_path / "out.ndjson").read_text().splitlines()] == [
        "a",
        "b",
        "a",
    ]
    assert len(list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))) == 4
    assert pa.ipc.open_stream((tmp_path / "out.arrow").read_bytes()).read_all().num_rows == 3
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


# -- dead letters --------------------------------------------------------------------------------------


def test_dead_letters_are_grouped_shown_and_dropped_for_good(place: list[str]) -> None:
    causes = json.loads(run("dlq", "ls", "--json", *place).stdout)
    assert [(c["topic"], c["component"], c["code"], c["count"]) for c in causes] == [
        ("events", "http", "type", 2),
        ("events", "http", "encoding", 1),
    ]
    shown = json.loads(run("dlq", "show", "--code", "encoding", "--json", *place).stdout)
    assert [(letter["id"], letter["raw"]) for letter in shown] == [("0-1", "base64://4=")]
    assert json.loads(run("dlq", "drop", "--id", "0-1", "--reason", "noise", "--json", *place).stdout) == {
        "dropped": 1
    }
    assert [c["code"] for c in json.loads(run("dlq", "ls", "--json", *place).stdout)] == ["type"]
    assert headrace("dlq", "drop", *place).returncode == 2  # all of them only if asked for


class Door(BaseHTTPRequestHandler):
    """Takes events as a headrace does: busy at first, and no texts for `t`."""

    taken: list[tuple[str, str, bytes]]
    busy: int

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if server.busy:
            server.busy -= 1
            return self._answer(503, {"title": "busy"}, retry="0.1")
        server.taken.append((self.path, self.headers["Idempotency-Key"], body))
        rows = [json.loads(line) for line in body.splitlines()]
        bad = sum(isinstance(row["payload"]["t"], str) for row in rows)
        return self._answer(422 if bad == len(rows) else 200, {"accepted": len(rows) - bad, "rejected": bad})

    def _answer(self, status: int, value: dict[str, Any], retry: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if retry:
            self.send_header("Retry-After", retry)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def door() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.taken, server.busy = [], 0
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_dead_letters_are_corrected_and_sent_again(place: list[str], door: Any) -> None:
    url = f"http://127.0.0.1:{door.server_port}"
    said = run(
        "dlq",
        "replay",
        "--id",
        "0-0",
        "--id",
        "0-1",
        "--set",
        "payload.t=21.5",
        "--json",
        "--url",
        url,
        *place,
    )
    assert json.loads(said.stdout) == {"accepted": 1, "rejected": 0, "unchanged": 1}
    assert "0-1 is not JSON" in said.stderr
    assert [(path, json.loads(body)) for path, _, body in door.taken] == [
        ("/ingest/events", {"payload": {"t": 21.5}})
    ]
    said = run("dlq", "replay", "--code", "type", "--json", "--url", url, *place)
    assert json.loads(said.stdout) == {"accepted": 0, "rejected": 1, "unchanged": 0}
    assert [c["code"] for c in json.loads(run("dlq", "ls", "--json", *place).stdout)] == ["encoding"]


def test_send_cuts_long_input_waits_for_a_busy_server_and_counts(door: Any, tmp_path: Path) -> None:
    door.busy = 2
    file = tmp_path / "events.ndjson"
    file.write_text(
        "".join(f'{{"sourceId": "s", "payload": {{"t": {i}, "x": "{"y" * 100}"}}}}\n' for i in range(20_000))
    )
    said = run("send", str(file), "--json", "--url", f"http://127.0.0.1:{door.server_port}")
    assert json.loads(said.stdout)["accepted"] == 20_000
    assert len(door.taken) == 3
    assert len({key for _, key, _ in door.taken}) == 3
    rows = [json.loads(line)["payload"]["t"] for _, _, body in door.taken for line in body.splitlines()]
    assert rows == list(range(20_000))


def test_doctor_looks_at_everything(place: list[str]) -> None:
    found = json.loads(run("doctor", "--json", "--url", "http://127.0.0.1:9", *place).stdout)
    assert {f["name"] for f in found} == {
        "python",
        "sqlite",
        "config",
        "disk",
        "fsync",
        "readers",
        "server",
        "data directory",
        "port",
    }
    assert next(f for f in found if f["name"] == "server")["status"] == "warn"


def test_send_takes_standard_input_and_names_rejected_rows(door: Any) -> None:
    url = f"http://127.0.0.1:{door.server_port}"
    done = headrace("send", "-", "--url", url, text='\n{"payload": {"t": "x"}}\n{"payload": {"t": 2}}\n')
    assert (done.returncode, done.stdout) == (1, "accepted 1, rejected 1\n")
    assert (
        headrace("send", "-", "--url", url, text="").stderr
        == "error: there is nothing to send: the input is empty\n"
    )


def test_generate_gives_so_many_events_that_can_be_sent(door: Any, tmp_path: Path) -> None:
    file = tmp_path / "fleet.ndjson"
    assert json.loads(run("generate", str(file), "--count", "1500", "-o", "seed=7", "--json").stdout) == {
        "made": 1500
    }
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(events) == 1500
    assert {"sourceId", "timestamp", "payload"} <= set(events[0])
    wrong = headrace("generate", "-o", "devises=3")
    assert wrong.returncode == 2
    assert "did you mean devices?" in wrong.stderr
