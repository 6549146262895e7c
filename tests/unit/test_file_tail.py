"""file_tail on real files that grow, rotate and vanish."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.component import Arrival, Duration, PlanError, RetryableError, Size
from headrace.sources.file_tail import FileTail

POLL = Duration.parse("5ms")


def line(number: int) -> bytes:
    return b'{"sourceId":"s","timestamp":%d,"payload":{"n":%d}}\n' % (1714564800 + number, number)


@pytest.fixture(autouse=True)
def _soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life ends `until_idle`, so the pause before it is most of these tests' time."""
    monkeypatch.setattr("headrace.sources.file_tail._ALIVE", 0.03)


class Reading:
    """A source being read, as the ingest loop reads it; `cursor` is the last durable one."""

    def __init__(self, cursor: Any = None, **options: Any) -> None:
        self.source = FileTail(**({"poll": POLL} | options))
        self.source.check()
        self.cursor = cursor
        self.rows: list[dict[str, Any]] = []
        self.rejects: list[Any] = []
        self._arrivals: Iterator[Arrival] = self.source.read("0", cursor)

    def until_idle(self) -> Reading:
        """Take what there is, until the source shows that it has nothing more."""
        for arrival in self._arrivals:
            if arrival.cursor is None:
                break
            self.cursor = json.loads(json.dumps(arrival.cursor))
            self.rejects += arrival.rejects
            if arrival.rows is not None:
                self.rows += arrival.rows.to_pylist()
        return self

    def until(self, condition: Callable[[], object]) -> Reading:
        """Keep taking until something is so, ten seconds at most."""
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            self.until_idle()
        return self

    def numbers(self) -> list[int]:
        return [int(row["payload"]["n"]) for row in self.rows]

    def close(self) -> None:
        self._arrivals.close()  # type: ignore[attr-defined]

    def again(self) -> Reading:
        """Stop, and start again from the last cursor."""
        self.close()
        following = Reading(
            self.cursor, **{name: getattr(self.source, name) for name in self.source.__struct_fields__}
        )
        following.rows, following.rejects = self.rows, self.rejects
        return following


def read_all(path: Path, **options: Any) -> Reading:
    return Reading(path=str(path), follow=False, **options).until_idle()


def test_a_growing_file_is_read_as_it_grows_and_a_partial_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    reading = Reading(path=str(path)).until_idle()
    assert reading.rows == []
    path.write_bytes(line(0) + line(1)[:20])
    assert reading.until_idle().numbers() == [0]
    with path.open("ab") as file:
        file.write(line(1)[20:] + line(2))
    assert reading.until_idle().numbers() == [0, 1, 2]
    reading.close()


def test_a_restart_goes_on_at_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(line(0) + line(1))
    reading = Reading(path=str(path)).until_idle()
    with path.open("ab") as file:
        file.write(line(2))
    reading = reading.again().until_idle()
    assert reading.numbers() == [0, 1, 2]
    reading.close()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("pattern", ["a.ndjson", "*.ndjson*"])
def test_a_renamed_file_is_read_to_its_end_and_the_new_one_from_its_start(
    tmp_path: Path, restart: bool, pattern: str
) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(line(0))
    reading = Reading(path=str(tmp_path / pattern)).until_idle()
    with path.open("ab") as writer:
        path.rename(tmp_path / "a.ndjson.1")
        path.write_bytes(line(10))
        writer.write(line(1))
        writer.flush()
        if restart:
            reading = reading.again()
        assert sorted(reading.until_idle().numbers()) == [0, 1, 10]
        writer.write(line(2))
    with path.open("ab") as file:
        file.write(line(11))
    assert sorted(reading.until_idle().numbers()) == [0, 1, 2, 10, 11]
    reading = reading.again().until_idle()
    assert sorted(reading.numbers()) == [0, 1, 2, 10, 11]
    reading.close()


def test_a_deleted_file_is_finished_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sources.file_tail._DRAIN", 0.05)
    path = tmp_path / "a.ndjson"
    path.write_bytes(line(0))
    reading = Reading(path=str(path)).until_idle()
    with path.open("ab") as writer:
        path.unlink()
        writer.write(line(1)[:-1])  # no line end: complete once the file is given up
    reading.until(lambda: not reading.cursor["files"])
    assert reading.numbers() == [0, 1]
    assert reading.cursor["files"] == {}
    reading.close()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("after", [b"", line(7), b"".join(line(i) for i in range(7, 17))])
def test_a_truncated_file_is_read_from_its_start(tmp_path: Path, restart: bool, after: bytes) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(line(0) + line(1) + line(2))
    reading = Reading(path=str(path)).until_idle()
    path.write_bytes(after)
    if restart:
        reading = reading.again()
    with path.open("ab") as file:
        file.write(line(99))
    assert reading.until_idle().numbers() == [0, 1, 2, *range(7, 7 + after.count(b"\n")), 99]
    reading.close()


def test_files_that_appear_later_are_read_from_their_start(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(line(0))
    reading = Reading(
        path=(str(tmp_path / "*.ndjson"), str(tmp_path / "b" / "c.jsonl")), begin="end"
    ).until_idle()
    assert reading.numbers() == []
    (tmp_path / "b.ndjson").write_bytes(line(1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.jsonl").write_bytes(line(2))
    with (tmp_path / "a.ndjson").open("ab") as file:
        file.write(line(3))
    assert sorted(reading.until_idle().numbers()) == [1, 2, 3]
    reading.close()


def test_lines_over_the_limit_go_aside_by_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    huge = b'{"sourceId":"s","payload":{"x":"' + b"y" * 5_000_000 + b'"}}\n'
    path.write_bytes(line(0) + huge + line(1) + huge[:40] + huge[-3_000:] + line(2))
    reading = read_all(path, max_line=Size.parse("2KiB"))
    assert reading.numbers() == [0, 1, 2]
    assert [(reject.code, len(reject.raw) <= 4096) for reject in reading.rejects] == [("too_large", True)] * 2


def test_an_overlong_line_is_skipped_across_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"x" * 5_000)
    reading = Reading(path=str(path), max_line=Size.parse("1KiB")).until_idle().again()
    with path.open("ab") as file:
        file.write(b"y" * 5_000 + b"\n" + line(1))
    reading.until_idle()
    assert (reading.numbers(), [reject.code for reject in reading.rejects]) == ([1], ["too_large"])
    reading.close()


def test_broken_rows_are_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(line(0) + b"{oops\n" + line(1) + b"\n\xff\xfe\n")
    reading = read_all(path)
    assert reading.numbers() == [0, 1]
    assert [(reject.raw, reject.code) for reject in reading.rejects] == [
        (b"{oops", "malformed_json"),
        (b"\xff\xfe", "bad_encoding"),
    ]


def test_csv_keeps_its_header_and_the_types_of_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('sensor_id,at,value,note\na,1714564800,1,"two\nlines"\n')
    reading = Reading(path=str(path), time_field="at").until_idle()
    with path.open("a") as file:
        file.write('b,1714564801,2,5\nc,1714564802,x,"open')
    reading = reading.again().until_idle()
    with path.open("a") as file:
        file.write('\nend"\nd,1\n')
    reading.until_idle()
    assert [(row["source_id"], row["payload"]["value"], row["payload"]["note"]) for row in reading.rows] == [
        ("a", 1.0, "two\nlines"),
        ("b", 2.0, "5"),
    ]
    assert [(reject.raw, reject.code) for reject in reading.rejects] == [
        (b'c,1714564802,x,"open\nend"', "wrong_type"),
        (b"d,1", "bad_csv_row"),
    ]
    reading.close()


def test_csv_rows_without_a_source_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text("value\n1\n2")
    reading = read_all(path)
    assert [(row["source_id"], row["payload"]["value"]) for row in reading.rows] == [
        ("meter.csv", 1.0),
        ("meter.csv", 2.0),
    ]


def test_a_bad_csv_header_refuses_every_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("x,x\n1,2\n")
    reading = read_all(path)
    assert [(reject.raw, reject.code) for reject in reading.rejects] == [
        (b"x,x", "bad_csv_row"),
        (b"1,2", "bad_csv_row"),
    ]


ACCESS = b'1.2.3.4 - - [01/May/2024:12:00:00 +0000] "GET / HTTP/1.1" 200 %d "-" "x"\n'


@pytest.mark.parametrize(("name", "options"), [("access.log", {}), ("x.txt", {"pattern": "combined"})])
def test_access_logs_are_recognised(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = tmp_path / name
    path.write_bytes(ACCESS % 5 + b"what is this\n" + ACCESS % 7)
    reading = read_all(path, **options)
    assert [(row["payload"]["bytes"], row["payload"]["status"]) for row in reading.rows] == [
        (5.0, 200.0),
        (7.0, 200.0),
    ]
    assert reading.rows[0]["timestamp"].timestamp() == 1714564800
    assert reading.rows[0]["source_id"] == name
    assert [(reject.raw, reject.code) for reject in reading.rejects] == [(b"what is this", "no_match")]


def test_any_other_line_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"hello world\n\nbye\n")
    assert [row["payload"]["message"] for row in read_all(path).rows] == ["hello world", "bye"]


def test_gzip_files_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(b"".join(line(i) for i in range(100_000))[:-1]))
    reading = Reading(path=str(path)).until_idle()
    assert reading.numbers() == list(range(100_000))
    assert len(reading.again().until_idle().rows) == 100_000
    reading.close()


def test_a_damaged_gzip_file_is_given_up_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sources.file_tail_chunks._GZIP_PATIENCE", 0.05)
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(line(0) * 50)[:-20])
    reading = Reading(path=str(path), follow=False)
    reading.until(lambda: reading.rejects)
    assert [reject.code for reject in reading.rejects] == ["bad_encoding"]
    assert "a.ndjson.gz" in reading.rejects[0].reason


def test_a_json_document_is_read_as_a_whole_each_time_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([json.loads(line(i)) for i in range(3)], indent=1))
    reading = Reading(path=str(path)).until_idle().again().until_idle()
    assert reading.numbers() == [0, 1, 2]
    path.write_text(json.dumps(json.loads(line(3)), indent=1))
    assert reading.until_idle().numbers() == [0, 1, 2, 3]
    path.write_text("[" + line(4).decode() * 50 + "]")
    reading = Reading(path=str(path), max_document=Size.parse("1KiB")).until_idle()
    assert [reject.code for reject in reading.rejects] == ["too_large"]
    reading.close()


def test_an_unreadable_file_says_so_after_the_others_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ndjson").write_bytes(line(0))
    (tmp_path / "b.ndjson").write_bytes(line(1))
    opened = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "a.ndjson":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read everything
    reading = Reading(path=str(tmp_path / "*.ndjson"))
    with pytest.raises(RetryableError, match=r"a\.ndjson"):
        reading.until_idle()
    assert reading.numbers() == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"path": ""},
        {"path": ("a", "")},
        {"path": "a", "pattern": "(x"},
        {"path": "a", "pattern": "common", "format": "csv"},
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        FileTail(**options).check()


def test_idle_reading_shows_signs_of_life(tmp_path: Path) -> None:
    arrivals = FileTail(path=str(tmp_path / "none.log")).read("0", None)
    began = time.monotonic()
    assert next(arrivals) == Arrival()
    assert time.monotonic() - began < 1
    arrivals.close()  # type: ignore[attr-defined]


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(line(0))
    before = len(list(Path("/proc/self/fd").iterdir()))
    reading = Reading(path=str(tmp_path / "*")).until_idle()
    reading.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_line_comes_once_whatever_happens_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tail") / "a.ndjson"
    path.touch()
    reading = Reading(path=str(path))
    number = 0
    rest = b""
    for action in data.draw(
        st.lists(st.sampled_from(["write", "part", "rotate", "restart", "read"]), max_size=14)
    ):
        if action == "write":
            with path.open("ab") as file:
                file.write(rest + line(number) + line(number + 1))
            number += 2
            rest = b""
        elif action == "part" and not rest:
            with path.open("ab") as file:
                file.write(line(number)[:15])
            rest = line(number)[15:]
            number += 1
        elif action == "rotate" and not rest:
            reading.until_idle()  # a file that came and went between two looks can't be known
            with path.open("ab") as file:
                file.write(line(number))
            number += 1
            path.rename(path.with_suffix(f".{number}.{len(list(path.parent.iterdir()))}"))
            path.touch()
        elif action == "restart":
            reading = reading.again()
        else:
            reading.until_idle()
    if rest:
        with path.open("ab") as file:
            file.write(rest)
    reading.until_idle()
    reading.close()
    assert sorted(reading.numbers()) == list(range(number))
    assert reading.rejects == []
