"""Every command beside a real running headrace: what it says, and what it does to the data."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.process import Headrace

SRC = str(Path(__file__).parents[2] / "src")
CONFIG = """
topics:
  plain: {schema: {id: string, timestamp: timestamp, value: double}}
pipelines:
  heat:
    from: events
    steps:
      - where: payload.temperature > 30
      - select: {sensor: source_id, timestamp: timestamp, celsius: payload.temperature}
    to: hot
sinks:
  lake: {kind: delta, from: [events, hot], path: lake, flush_interval: 100ms}
"""


class Place:
    """A running server, and commands beside it."""

    def __init__(self, folder: Path, server: Headrace, config: Path) -> None:
        self.folder, self.server, self.config = folder, server, config
        self.url = f"http://127.0.0.1:{server.port}"

    def __call__(
        self, *args: str, code: int = 0, text: str | None = None, url: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        where = {"HEADRACE_DATA_DIR": str(self.server.data_dir), "HEADRACE_URL": "" if url else self.url}
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli", *args],
            capture_output=True, text=True, timeout=50, cwd=self.folder, input=text, check=False,
            env={**clean, "PYTHONPATH": SRC, **where, **env},
        )  # fmt: skip
        assert done.returncode == code, (args, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        assert "Traceback" not in done.stderr
        return done

    def json(self, *args: str, **options: Any) -> Any:
        return json.loads(self(*args, "--json", **options).stdout)

    def until(self, sql: str, wanted: Any, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.server.query(sql)) != wanted:
            assert time.monotonic() < deadline, (found, wanted)
            time.sleep(0.05)


@pytest.fixture(scope="module")
def headrace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "headrace.yaml"
    config.write_text(CONFIG, "utf-8")
    with Headrace(config, folder / "data") as server:
        yield Place(folder, server, config)


def event(source: str, **payload: Any) -> str:
    return json.dumps({"sourceId": source, "payload": payload})


def test_send_takes_an_argument_a_file_and_standard_input(headrace: Place) -> None:
    assert headrace("send", event("send-arg", temperature=20)).stdout == "accepted 1, rejected 0\n"
    lines = "\n".join(event("send-file", temperature=i) for i in range(5)) + "\n"
    (headrace.folder / "five.ndjson").write_text(lines)
    assert headrace.json("send", "five.ndjson") == {"accepted": 5, "rejected": 0, "errors": []}
    table = "id,timestamp,value\na,2026-01-01T00:00:00Z,1.5\nb,2026-01-01T00:00:01Z,no number\n"
    (headrace.folder / "two.csv").write_text(table)
    said = headrace.json("send", "two.csv", "--topic", "plain", code=1)
    assert (said["accepted"], said["rejected"]) == (1, 1)
    assert said["errors"][0]["row"] == 1
    sent = headrace(
        "send", "-", "--url", headrace.url, text=lines.replace("send-file", "send-stdin"), url=True
    )
    assert sent.stdout == "accepted 5, rejected 0\n"
    headrace.until(
        "SELECT source_id, count(*) AS n FROM events WHERE source_id LIKE 'send-%' GROUP BY ALL ORDER BY 1",
        [
            {"source_id": "send-arg", "n": 1},
            {"source_id": "send-file", "n": 5},
            {"source_id": "send-stdin", "n": 5},
        ],
    )
    wrong = headrace("send", event("x"), "--topic", "evnts", code=1)
    assert "did you mean" in wrong.stderr


def test_generate_sends_to_the_server(headrace: Place) -> None:
    options = ("-o", "seed=3", "-o", "malformed=0", "-o", "duplicates=0")
    said = headrace.json("generate", "--url", headrace.url, "--count", "700", *options)
    assert said == {"made": 700, "accepted": 700, "rejected": 0}


def test_tap_shows_rows_as_they_come(headrace: Place) -> None:
    command = [sys.executable, "-m", "headrace.cli", "tap", "events", "--last", "0", "--limit", "2", "--json"]
    env = {**os.environ, "PYTHONPATH": SRC, "HEADRACE_DATA_DIR": str(headrace.server.data_dir)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as tap:
        deadline = time.monotonic() + 30
        number = 0
        while tap.poll() is None and time.monotonic() < deadline:  # it says nothing while it starts
            headrace.server.post([{"sourceId": "tapped", "payload": {"n": number}}])
            number += 1
            time.sleep(0.1)
        rows = [json.loads(line) for line in tap.communicate(timeout=10)[0].splitlines()]
    assert [row["source_id"] for row in rows] == ["tapped"] * 2
    assert rows[1]["payload"]["n"] == rows[0]["payload"]["n"] + 1


def test_query_beside_the_server_gives_json_csv_and_a_table(headrace: Place) -> None:
    headrace("send", event("asked", temperature=31.5))
    sql = "SELECT sensor, celsius FROM hot WHERE sensor = 'asked'"
    headrace.until(sql, [{"sensor": "asked", "celsius": 31.5}])
    assert headrace.json("query", sql) == [{"sensor": "asked", "celsius": 31.5}]
    assert list(csv.reader(io.StringIO(headrace("query", sql, "--csv").stdout))) == [
        ["sensor", "celsius"],
        ["asked", "31.5"],
    ]
    assert headrace("query", "-", text=sql).stdout.split() == ["sensor", "celsius", "asked", "31.5"]
    refused = headrace("query", "DROP TABLE hot", code=1)
    assert refused.stderr.startswith("error: ")
    limited = headrace("query", "SELECT * FROM range(10)", "--max-rows", "3", "--json")
    assert len(json.loads(limited.stdout)) == 3
    assert "only the first 3 rows" in limited.stderr


def test_dead_letters_are_looked_at_edited_sent_again_and_dropped(headrace: Place) -> None:
    bad = '{"sourceId": "patient", "payload": {"temperature": "hot"}, "timestamp": "yesterday"}'
    assert headrace("send", bad, code=1).stdout == "accepted 0, rejected 1\n"
    headrace("send", bad.replace("patient", "hopeless"), code=1)
    causes = headrace.json("dlq", "ls", "--topic", "events")
    assert [(c["topic"], c["component"], c["count"]) for c in causes] == [("events", "http", 2)]
    letters = headrace.json("dlq", "show", "--topic", "events")
    patient, hopeless = (next(i for i in letters if name in i["raw"]) for name in ("patient", "hopeless"))
    assert json.loads(patient["raw"]) == json.loads(bad)

    editor = headrace.folder / "editor.py"
    editor.write_text(
        "import sys, pathlib, re\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "text = path.read_text()\n"
        "assert text.startswith('# '), text\n"
        "path.write_text(text.replace('yesterday', '2026-01-01T00:00:00Z').replace('\"hot\"', '35.5'))\n"
    )
    scripted = f"{sys.executable} {editor}"
    said = headrace.json("dlq", "replay", "--id", patient["id"], "--edit", EDITOR=scripted, VISUAL=scripted)
    assert said == {"accepted": 1, "rejected": 0, "unchanged": 0}
    headrace.until("SELECT celsius FROM hot WHERE sensor = 'patient'", [{"celsius": 35.5}])
    said = headrace.json(
        "dlq", "replay", "--id", hopeless["id"], code=1
    )  # as it was: it comes back as a new one
    assert said == {"accepted": 0, "rejected": 1, "unchanged": 0}
    (left,) = headrace.json("dlq", "show", "--topic", "events")
    assert "hopeless" in left["raw"]
    assert left["id"] not in (patient["id"], hopeless["id"])
    assert headrace.json("dlq", "drop", "--id", left["id"], "--reason", "no use") == {"dropped": 1}
    assert headrace.json("dlq", "ls", "--topic", "events") == []
    assert headrace("dlq", "ls", "--topic", "events").stdout == "no dead letters\n"


def test_export_writes_every_format(headrace: Place) -> None:
    events = [{"sourceId": "exported", "payload": {"temperature": 40 + i}} for i in range(4)]
    headrace.server.post(events)
    sql = "SELECT sensor, celsius FROM hot WHERE sensor = 'exported' ORDER BY celsius"
    wanted = [{"sensor": "exported", "celsius": 40.0 + i} for i in range(4)]
    headrace.until(sql, wanted)
    found = {}
    for ending in ("parquet", "csv", "ndjson", "arrow"):
        target = headrace.folder / f"out.{ending}"
        assert headrace.json("export", sql, str(target))["rows"] == 4
        data = target.read_bytes()
        if ending == "parquet":
            found[ending] = pq.read_table(pa.BufferReader(data)).to_pylist()
        elif ending == "arrow":
            found[ending] = pa.ipc.open_stream(data).read_all().to_pylist()
        elif ending == "csv":
            found[ending] = [
                {**row, "celsius": float(row["celsius"])}
                for row in csv.DictReader(io.StringIO(data.decode()))
            ]
        else:
            found[ending] = [json.loads(line) for line in data.splitlines()]
        whole = headrace.folder / f"whole.{ending}"
        assert headrace.json("export", "hot", str(whole))["rows"] >= 4
    assert found == dict.fromkeys(("parquet", "csv", "ndjson", "arrow"), wanted)
    assert "is there already" in headrace("export", sql, "out.csv", code=1).stderr
    piped = headrace("export", sql, "-", "--format", "ndjson").stdout
    assert [json.loads(line) for line in piped.splitlines()] == wanted


def test_replay_shows_what_a_changed_pipeline_would_have_done(headrace: Place) -> None:
    headrace.server.post([{"sourceId": f"r{i}", "payload": {"temperature": 20 + i}} for i in range(30)])
    headrace.until("SELECT count(*) AS n FROM hot WHERE sensor LIKE 'r%'", [{"n": 19}])
    same = headrace.json("replay", "heat", "--from", "1h", "--shadow", "hot_same")
    assert (same["missing"]["count"], same["extra"]["count"]) == (0, 0)
    assert same["same"] >= 19
    changed = headrace.folder / "changed.yaml"
    changed.write_text(CONFIG.replace("> 30", "> 45"))
    other = headrace.json(
        "replay", "heat", "--from", "1h", "--config", str(changed), "--shadow", "hot_other", code=1
    )
    assert (other["missing"]["count"] >= 15, other["extra"]["count"]) == (True, 0)
    assert {row["celsius"] > 30 for row in other["missing"]["rows"]} == {True}
    text = headrace(
        "replay", "heat", "--from", "1h", "-c", str(changed), "--shadow", "hot_text", code=1
    ).stdout
    assert "missing now:" in text
    assert headrace.server.query("SELECT count(*) AS n FROM hot_other")[0]["n"] == other["written"]
    assert "did you mean 'heat'" in headrace("replay", "heta", "--from", "1h", code=1).stderr.replace(
        "heat?", "'heat'"
    )


def test_doctor_and_health_find_nothing_wrong(headrace: Place) -> None:
    found = headrace.json("doctor")
    assert {f["name"]: f["status"] for f in found if f["status"] == "fail"} == {}
    server = next(f for f in found if f["name"] == "server")
    assert (server["status"], server["found"]) == ("ok", f"{headrace.url} is ok")
    assert any("used by the running headrace" in f["found"] for f in found)


def test_check_connect_says_what_cannot_be_reached(headrace: Place) -> None:
    assert headrace.json("check", str(headrace.config), "--connect")["reached"] == {"sinks.lake": "ok"}
    file = headrace.folder / "far.yaml"
    table = '{table: "sqlite:////none/such/x.db", query: "select id, room from r", on: {source_id: id}}'
    file.write_text(CONFIG.replace("- where", f"- enrich: {table}\n      - where"))
    near = headrace.json("check", str(file))
    assert [(w["line"], w["where"]) for w in near["warnings"]] == [(8, "pipelines.heat.steps[0].enrich")]
    assert near["pipelines"]["heat"]["steps"][0]["columns"] is None
    far = headrace.json("check", str(file), "--connect", code=1)
    assert "unable to open" in far["reached"]["pipelines.heat.steps[0]"]
    assert not far["ok"]
    assert "not all of it can be reached" in headrace("check", str(file), "--connect", code=1).stdout
    assert headrace("run", str(file), code=2).stderr.startswith(f"{file}:8:")


def test_what_init_writes_can_be_checked_and_run(headrace: Place, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert headrace.json("init", str(file)) == {"written": str(file)}
    assert headrace.json("check", str(file))["ok"]
    with Headrace(file, tmp_path / "data") as server:
        deadline = time.monotonic() + 30
        while not server.query("SELECT 1 FROM measurements LIMIT 1"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.get("/health")["status"] == "ok"


def test_run_beside_a_running_one_says_who_holds_the_data(headrace: Place) -> None:
    refused = headrace("run", str(headrace.config), "--port", "0", code=1)
    assert str(headrace.server.process.pid) in refused.stderr
