"""The SQLite log shared by processes, its locks, its files and its limits."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.clock import FakeClock, SystemClock
from headrace.errors import ConfigError, CorruptLogError, DataDirInUseError, FormatError, RetryableError
from headrace.log.lock import DataDirLock
from headrace.log.sqlite import SqliteLog
from headrace.log.wake import Doorbell
from headrace.model import Span, Topic
from headrace.testing.log_conformance import NUMBERS, contents, numbers, rows_of
from headrace.units import Duration

PRELUDE = """
import os, sys, threading, time
from pathlib import Path
from headrace.clock import SystemClock
from headrace.log.lock import DataDirLock
from headrace.log.sqlite import SqliteLog
from headrace.model import Topic
from headrace.testing.log_conformance import numbers, rows_of
folder = Path(sys.argv[1])
def say(text):
    print(text, flush=True)
def open_log():
    return SqliteLog(folder / "log.db", clock=SystemClock())
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python processes on the same folder and ends those that are left."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db", clock=SystemClock())
    log.create(Topic("t", NUMBERS))
    yield log
    log.close()


# -- several processes -----------------------------------------------------------------------------


def test_several_processes_append_and_every_row_is_there_once(
    log: SqliteLog, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    writers = [
        start(
            f"log = open_log()\nfor n in range(150): log.append('t', 0, numbers({who} * 1000 + n))\nlog.close()"
        )
        for who in (1, 2)
    ]
    for n in range(150):
        log.append("t", 0, numbers(n))
    assert [writer.wait(40) for writer in writers] == [0, 0]
    found = [row["n"] for row in contents(log, "t")]
    for who in range(3):
        assert [n for n in found if n // 1000 == who] == [who * 1000 + n for n in range(150)]
    assert len(found) == 450


def test_a_field_that_another_process_adds_is_seen_at_once(
    log: SqliteLog, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    log.append("t", 0, numbers(1))
    other = start(
        "log = open_log()\nlog.append('t', 0, rows_of([{'n': 2, 'new': 'x'}]))\nsay('done')\nsys.stdin.read()"
    )
    assert answer(other) == "done"
    assert log.read("t", 0, Span(0, 1)).to_pylist() == [{"n": 1, "new": None}]
    assert log.append("t", 0, rows_of([{"n": 3, "new": "y", "newer": 1.5}])) == Span(2, 3)
    assert contents(log, "t")[1:] == [{"n": 2, "new": "x", "newer": None}, {"n": 3, "new": "y", "newer": 1.5}]


def test_wait_is_woken_by_another_process(
    log: SqliteLog, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    other = start(
        "log = open_log()\nsay('ready')\nfor line in sys.stdin:\n    time.sleep(0.02)\n    log.append('t', 0, numbers(1))\n    say(time.time_ns())"
    )
    assert answer(other) == "ready"
    late_s = []
    for n in range(20):
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        assert log.wait({("t", 0): n}, 30)
        woken = time.time_ns()
        late_s.append((woken - int(answer(other))) / 1e9)
    assert sorted(late_s)[10] < 0.2


def test_a_dead_listener_is_forgotten(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[str]], log: SqliteLog
) -> None:
    other = start("log = open_log()\nsay('ready')\nlog.wait({('t', 0): 0}, 50)")
    answer(other)
    while not list((tmp_path / "wake").iterdir()):
        time.sleep(0.01)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert list((tmp_path / "wake").iterdir())
    log.wait({("t", 0): 0}, 0)  # its own registration makes everyone list the folder again
    log.append("t", 0, numbers(1))
    assert [file.name.split("-")[0] for file in (tmp_path / "wake").iterdir()] == [str(os.getpid())]


def test_ringing_costs_next_to_nothing_when_nobody_listens(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path / "wake", lambda: None)
    rounds = []
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(100):
            bell.ring()
        rounds.append((time.perf_counter() - began) / 100)
    bell.close()
    assert min(rounds) < 20e-6


# -- the lock of the data directory ----------------------------------------------------------------


def test_a_second_process_is_refused_by_name_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    first = start("DataDirLock(folder).acquire()\nsay('held')\nsys.stdin.read()")
    assert answer(first) == "held"
    lock = DataDirLock(tmp_path)
    with pytest.raises(DataDirInUseError, match=f"{tmp_path}.* process {first.pid}; stop it"):
        lock.acquire()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with lock:
        assert (tmp_path / "headrace.lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(DataDirInUseError, match=str(os.getpid())):
            DataDirLock(tmp_path).acquire()
    with DataDirLock(tmp_path):
        pass


# -- files that aren't what they should be ---------------------------------------------------------


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path, log: SqliteLog) -> None:
    log.close()
    connection = sqlite3.connect(tmp_path / "log.db")
    connection.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    connection.commit()
    connection.close()
    with pytest.raises(FormatError, match="log format 99, and this headrace reads up to format 1; upgrade"):
        SqliteLog(tmp_path / "log.db", clock=SystemClock())


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"something else entirely " * 1000)
    with pytest.raises(CorruptLogError, match="damaged"):
        SqliteLog(tmp_path / "log.db", clock=SystemClock())
    with pytest.raises(ConfigError, match="can't write to"):
        SqliteLog(tmp_path / "log.db" / "below" / "log.db", clock=SystemClock())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "UPDATE frames SET data = CAST(substr(data, 1, 200) || x'00' || substr(data, 202) AS BLOB)",
            "checksum",
        ),
        ("UPDATE batches SET crc = 0", "checksum"),
        (
            "UPDATE frames SET data = x'ffffffff00000000'; UPDATE batches SET crc = 0x9FF7CA35",
            "checksum|decoded",
        ),
        ("DELETE FROM frames", "bytes are missing"),
        ("DELETE FROM batches WHERE base = 2", "rows 2 and following are missing"),
    ],
)
def test_changed_bytes_are_told_with_their_place(
    tmp_path: Path, log: SqliteLog, change: str, says: str
) -> None:
    for n in range(3):
        log.append("t", 0, numbers(n, n))
    log.close()
    connection = sqlite3.connect(tmp_path / "log.db")
    connection.executescript(change)
    connection.close()
    again = SqliteLog(tmp_path / "log.db", clock=SystemClock())
    with pytest.raises(CorruptLogError, match=f"topic t, partition 0.*({says})"):
        again.read("t", 0, Span(0, 6))
    again.close()


# -- limits ----------------------------------------------------------------------------------------


def test_retention_gives_the_disk_space_back(tmp_path: Path) -> None:
    clock = FakeClock()
    log = SqliteLog(tmp_path / "log.db", clock=clock)
    log.create(Topic("t", pa.schema([("raw", pa.binary())]), retention=Duration.parse("10s")))
    noise = rows_of([{"raw": os.urandom(10_000)} for _ in range(100)])
    for _ in range(24):
        log.append("t", 0, noise)
        clock.advance(1)
    assert log.retain(clock.now_us()) == 1_400
    size = (tmp_path / "log.db").stat().st_size
    assert size < 14 * 10**6
    assert log.retain(clock.now_us() + 10**9) == 1_000
    assert (tmp_path / "log.db").stat().st_size < 3 * 10**6
    assert log.append("t", 0, noise) == Span(2_400, 2_500)
    log.close()


def test_appends_go_on_beside_retention(tmp_path: Path) -> None:
    clock = FakeClock()
    log = SqliteLog(tmp_path / "log.db", clock=clock)
    log.create(Topic("t", pa.schema([("raw", pa.binary())]), retention=Duration.parse("10s")))
    noise = rows_of([{"raw": os.urandom(10_000)} for _ in range(100)])
    for _ in range(40):
        log.append("t", 0, noise)
    clock.advance(60)
    done = threading.Event()
    appended = 0

    def clean() -> None:
        log.retain(clock.now_us())
        done.set()

    thread = threading.Thread(target=clean)
    thread.start()
    while not done.is_set() or appended == 0:
        log.append("t", 0, rows_of([{"raw": b"x"}]))
        appended += 1
    thread.join()
    assert log.extent("t", 0) == Span(4_000, 4_000 + appended)
    assert appended > 3
    log.close()


@pytest.mark.slow
def test_the_write_ahead_log_stays_bounded_under_constant_load(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", clock=SystemClock())
    log.create(Topic("t", pa.schema([("raw", pa.binary())])))
    noise = rows_of([{"raw": os.urandom(10_000)} for _ in range(100)])
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            end = log.extent("t", 0).end
            log.read("t", 0, Span(max(0, end - 3_000), end))

    def write() -> None:
        for _ in range(200):
            log.append("t", 0, noise)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    largest = 0
    while any(writer.is_alive() for writer in writers):
        largest = max(largest, (tmp_path / "log.db-wal").stat().st_size)
        time.sleep(0.05)
    stop.set()
    for thread in (*readers, *writers):
        thread.join()
    assert log.extent("t", 0).end == 40_000
    log.close()
    assert largest < 200 * 2**20  # of 400 MB written
    assert not (tmp_path / "log.db-wal").exists()


def test_a_closed_log_says_so(log: SqliteLog) -> None:
    log.close()
    log.close()
    for call in (
        lambda: log.append("t", 0, numbers(1)),
        lambda: log.extent("t", 0),
        log.topics,
        lambda: log.forget("r"),
    ):
        with pytest.raises(RetryableError, match="the log is closed"):
            call()


def test_durations_are_observed(tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    log = SqliteLog(
        tmp_path / "log.db", clock=SystemClock(), observe=lambda name, value: seen.update({name: value})
    )
    log.create(Topic("t", NUMBERS, retention=Duration(0)))
    log.append("t", 0, numbers(1))
    log.retain(2**60)
    log.close()
    assert sorted(seen) == [
        f"headrace_log_{what}_duration_seconds" for what in ("append", "checkpoint", "fsync")
    ]
    assert all(0 < value < 5 for value in seen.values())
