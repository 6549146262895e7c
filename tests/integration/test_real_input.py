"""Files that grow and rotate while headrace runs, and every form of `curl` on /ingest: into topics, and into windows."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from tests.integration.process import Headrace

CONFIG = """
sources:
  table: {kind: file_tail, path: FOLDER/machines.csv, poll: 50ms, to: machines}
  events: {kind: file_tail, path: FOLDER/events.ndjson, poll: 50ms, to: readings}
  access: {kind: file_tail, path: FOLDER/access.log, pattern: combined, poll: 50ms, to: access}
pipelines:
  rooms:
    from: readings
    delay: 1s
    idle_after: 1s
    steps:
      - window: {length: 10s, by: source_id, count: payload.seq, sum: payload.seq}
    to: rooms
  traffic:
    from: access
    delay: 1s
    idle_after: 1s
    steps:
      - derive: {failed: "CASE WHEN payload.status >= 500 THEN 1 ELSE 0 END"}
      - window: {length: 10s, aggregate: {requests: count(*), failures: sum(failed)}}
    to: traffic
"""
BEGIN = 1_700_000_000
ROWS = 300


class Writer(threading.Thread):
    """Appends numbered lines to a file, a few at a time, sometimes half a line; and rotates it twice."""

    def __init__(self, path: Path, line: Any, *, header: str = "", copy: bool = False) -> None:
        super().__init__(daemon=True)
        self._path, self._line, self._header, self._copy = path, line, header, copy

    def run(self) -> None:
        file = self._path.open("a")
        file.write(self._header)
        for n in range(ROWS):
            text = self._line(n) + "\n"
            file.write(text[:9])
            if n % 7 == 0:
                file.flush()
                time.sleep(0.02)
            file.write(text[9:])
            file.flush()
            if n in (ROWS // 3, 2 * ROWS // 3):
                time.sleep(
                    0.6 if self._copy else 0
                )  # copytruncate loses what is not read yet, with any reader
                if self._copy:
                    shutil.copy(self._path, f"{self._path}.{n}")
                    file.truncate(0)
                else:
                    file.close()
                    self._path.rename(f"{self._path}.{n}")
                    file = self._path.open("a")
                    file.write(self._header)
        file.close()


def stamp(n: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(BEGIN + n // 5))


def csv_line(n: int) -> str:
    return f'{stamp(n)},press-{n % 3},{n},"room ""{n % 2}"", north"'


def json_line(n: int) -> str:
    return json.dumps(
        {"sourceId": f"s{n % 2}", "timestamp": stamp(n), "payload": {"seq": n, "name": "é" * (n % 4)}}
    )


def log_line(n: int) -> str:
    when = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(BEGIN + n // 5))
    status = 503 if n % 10 == 0 else 200
    return f'10.0.0.{n % 5} - - [{when}] "GET /page/{n} HTTP/1.1" {status} {100 + n} "-" "Mozilla/5.0 (X11)"'


def until(server: Headrace, sql: str, wanted: list[dict[str, Any]], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    found = server.query(sql)
    while found != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
        found = server.query(sql)
    assert found == wanted


@pytest.mark.slow
def test_growing_and_rotating_files_arrive_once_in_topics_and_windows(tmp_path: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    writers = [
        Writer(tmp_path / "machines.csv", csv_line, header="timestamp,sourceId,seq,place\n"),
        Writer(tmp_path / "events.ndjson", json_line),
        Writer(tmp_path / "access.log", log_line, copy=True),
    ]
    server = Headrace(config, tmp_path / "data").wait_ready()
    for writer in writers:
        writer.start()
    time.sleep(1.5)
    server.kill()  # in the midst of it
    with Headrace(config, tmp_path / "data") as server:
        for writer in writers:
            writer.join()
        once = "count(*) AS n, count(DISTINCT payload.seq) AS d, CAST(sum(payload.seq) AS BIGINT) AS s"
        everything = [{"n": ROWS, "d": ROWS, "s": ROWS * (ROWS - 1) // 2}]
        until(server, f"SELECT {once} FROM machines", everything)
        until(server, f"SELECT {once} FROM readings", everything)
        (odd,) = server.query("SELECT payload.place AS p, source_id FROM machines WHERE payload.seq = 7")
        assert odd == {"p": 'room "1", north', "source_id": "press-1"}
        until(
            server,
            "SELECT count(*) AS n, count(DISTINCT payload.path) AS d FROM access",
            [{"n": ROWS, "d": ROWS}],
        )

        # A minute of event time: six windows; the numbers are those of plain loops over what was written.
        sums: dict[tuple[str, int], list[int]] = {}
        for n in range(ROWS):
            sums.setdefault((f"s{n % 2}", (BEGIN + n // 5) // 10 * 10), []).append(n)
        wanted = [
            {"source_id": source, "start": start, "count": len(seqs), "sum": sum(seqs)}
            for (source, start), seqs in sorted(sums.items())
        ]
        sql = "SELECT source_id, epoch(window_start)::BIGINT AS start, count, CAST(sum AS BIGINT) AS sum FROM rooms ORDER BY 1, 2"
        until(server, sql, wanted, 30)
        sql = "SELECT CAST(sum(requests) AS BIGINT) AS r, CAST(sum(failures) AS BIGINT) AS f FROM traffic"
        until(server, sql, [{"r": ROWS, "f": ROWS // 10}], 30)
        assert server.query("SELECT * FROM dead_letters") == []


def arrow_stream(count: int) -> bytes:
    rows = pa.table(
        {
            "source_id": ["arrow"] * count,
            "timestamp": pa.array([BEGIN * 1_000_000 + n for n in range(count)], pa.timestamp("us", "UTC")),
            "payload": [{"seq": float(n)} for n in range(count)],
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def event(source: str, n: int = 0) -> str:
    return json.dumps({"sourceId": source, "timestamp": stamp(n), "payload": {"seq": n}})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headrace]:
    folder = tmp_path_factory.mktemp("curl")
    config = folder / "headrace.yaml"
    text = CONFIG[CONFIG.index("pipelines:") : CONFIG.index("  traffic:")].replace(
        "from: readings", "from: events"
    )
    config.write_text("topics:\n  events:\n    schema: {payload: {seq: double}}\n" + text)
    with Headrace(config, folder / "data") as running:
        yield running


FORMS: list[tuple[str, bytes, list[str], int]] = [
    ("object", event("object").encode(), ["Content-Type: application/json"], 1),
    ("array", f"[{event('array')},{event('array', 1)}]".encode(), ["Content-Type: application/json"], 2),
    ("ndjson", "\n".join(event("ndjson", n) for n in range(3)).encode(), ["Content-Type: application/x-ndjson"], 3),
    ("plain-d", event("plain-d").encode(), [], 1),  # curl -d says that it sends a form
    ("csv", b"sourceId,timestamp,seq\n" + f"csv,{stamp(0)},0\ncsv,{stamp(1)},1\n".encode(), ["Content-Type: text/csv"], 2),
    ("arrow", arrow_stream(4), ["Content-Type: application/vnd.apache.arrow.stream"], 4),
    ("gzip", gzip.compress(event("gzip").encode()), ["Content-Type: application/json", "Content-Encoding: gzip"], 1),
    (
        "zstd",
        zstandard.compress("\n".join(event("zstd", n) for n in range(5)).encode()),
        ["Content-Type: application/x-ndjson", "Content-Encoding: zstd"],
        5,
    ),
]  # fmt: skip


def curl(
    server: Headrace, body: bytes, headers: list[str], path: str = "/ingest"
) -> tuple[int, dict[str, Any]]:
    """Status and answer of the real curl."""
    command = ["curl", "-sS", "-X", "POST", f"http://127.0.0.1:{server.port}{path}", "--data-binary", "@-"]
    command += [part for header in headers for part in ("-H", header)] + ["-w", "\n%{http_code}"]
    said = subprocess.run(command, input=body, capture_output=True, check=True, timeout=30).stdout
    answer, _, status = said.decode().rpartition("\n")
    return int(status), json.loads(answer)


@pytest.mark.parametrize(("source", "body", "headers", "rows"), FORMS, ids=[form[0] for form in FORMS])
def test_curl_in_every_form_ends_in_topic_and_window(
    server: Headrace, source: str, body: bytes, headers: list[str], rows: int
) -> None:
    status, answer = curl(server, body, headers)
    assert (status, answer["accepted"], answer["rejected"]) == (200, rows, 0)
    where = f"WHERE source_id = '{source}'"
    wanted = [{"n": rows, "s": rows * (rows - 1) // 2}]
    until(server, f"SELECT count(*) AS n, CAST(sum(payload.seq) AS BIGINT) AS s FROM events {where}", wanted)


def test_curled_rows_are_all_in_windows(server: Headrace) -> None:
    assert curl(server, arrow_stream(4).replace(b"arrow", b"again"), FORMS[5][2])[0] == 200
    lost = "SELECT (SELECT count(*) FROM events) - (SELECT CAST(sum(count) AS BIGINT) FROM rooms)"
    late = "(SELECT count(*) FROM dead_letters WHERE code = 'late')"
    until(server, f"{lost} - {late} AS n", [{"n": 0}], 30)


def test_curl_with_wrong_rows_tells_which(server: Headrace) -> None:
    lines = [event("mixed"), '{"sourceId": "mixed", "timestamp": "soon"}', "{", '{"payload": {"seq": "x"}}']
    status, answer = curl(server, "\n".join(lines).encode(), ["Content-Type: application/x-ndjson"])
    assert status in (200, 207)
    assert (answer["accepted"], answer["rejected"]) == (1, 3)
    assert [error["row"] for error in answer["errors"]] == [1, 2, 3]
    until(server, "SELECT count(*) AS n FROM dead_letters WHERE code <> 'late'", [{"n": 3}])
    for path, body, headers, wanted in (
        ("/ingest/nowhere", b"{}", [], 404),
        ("/ingest", b"", [], 400),
        ("/ingest", b"{}", ["Content-Type: application/pdf"], 415),
        ("/ingest", b"not gzip", ["Content-Encoding: gzip"], 400),
        ("/ingest", b"{}", ["Content-Encoding: br"], 415),
    ):
        status, answer = curl(server, body, headers, path)
        assert (status, answer["status"]) == (wanted, wanted), answer
