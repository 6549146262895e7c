"""What is acknowledged survives: killed writers, disks that forget what wasn't synced, disks that are full."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.clock import SystemClock
from headrace.errors import StorageFullError
from headrace.log.sqlite import SqliteLog
from headrace.model import Span, Topic
from headrace.testing.log_conformance import NUMBERS, contents, numbers, rows_of

WRITER = """
import sys, threading
from pathlib import Path
from headrace.clock import SystemClock
from headrace.log.sqlite import SqliteLog
from headrace.testing.log_conformance import numbers

# Four threads, a partition each; every acknowledged number is told in one write, so that no line is torn.
log = SqliteLog(Path(sys.argv[1]) / "log.db", clock=SystemClock())
lock = threading.Lock()
def work(partition):
    n = log.cursor(f"w{partition}") or 0
    while True:
        size = 1 + n % 7 if n % 11 else 1500
        log.append("t", partition, numbers(*range(n, n + size)), writer=f"w{partition}", cursor=n + size)
        n += size
        with lock:
            sys.stdout.write(f"{partition} {n}\\n")
            sys.stdout.flush()
threads = [threading.Thread(target=work, args=(p,)) for p in range(4)]
for thread in threads: thread.start()
"""


def open_log(folder: Path) -> SqliteLog:
    return SqliteLog(folder / "log.db", clock=SystemClock(), cache_bytes=0)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_writer_killed_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    choose = random.Random(seed)
    log = open_log(tmp_path)
    log.create(Topic("t", NUMBERS, partitions=4))
    log.close()
    acknowledged = [0] * 4
    for _ in range(25):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it is at work
        time.sleep(choose.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        for line in lines:
            parts = line.split()
            if len(parts) == 2:
                acknowledged[int(parts[0])] = int(parts[1])
        log = open_log(tmp_path)
        for partition in range(4):
            end = log.extent("t", partition).end
            assert end >= acknowledged[partition], f"seed {seed}"
            assert log.cursor(f"w{partition}") in (end, None if end == 0 else end), f"seed {seed}"
        log.close()
    log = open_log(tmp_path)
    for partition in range(4):
        found = log.read("t", partition, log.extent("t", partition)).column("n").to_pylist()
        assert found == list(range(len(found))), f"seed {seed}"
    assert sum(acknowledged) > 1_000
    log.close()


def test_every_connection_waits_for_the_disk(tmp_path: Path) -> None:
    """What SQLite does with that is its own to prove; that it is asked to is not."""
    log = open_log(tmp_path)
    log.create(Topic("t", NUMBERS))
    full = (2,)
    assert log._database.writer.execute("PRAGMA synchronous").fetchone() == full
    log._committer._roll_back(
        log._database.writer
    )  # nothing is open: SQLite refuses, and the connection is made anew
    log.append("t", 0, numbers(1))
    assert log._database.writer.execute("PRAGMA synchronous").fetchone() == full
    assert log._database.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    log.close()


def test_a_disk_that_forgets_what_was_not_synced_loses_nothing_acknowledged(tmp_path: Path) -> None:
    choose = random.Random(11)
    source = tmp_path / "source"
    log = open_log(source)
    log.create(Topic("t", NUMBERS))
    wal = source / "log.db-wal"
    lengths: list[tuple[int, int]] = [
        (0, wal.stat().st_size)
    ]  # rows acknowledged, bytes that were synced for them
    for n in range(12):
        log.append("t", 0, numbers(*range(n * 300, n * 300 + 300)))
        lengths.append(((n + 1) * 300, wal.stat().st_size))
    total = wal.stat().st_size
    copies = 0
    for count, length in lengths:
        for damage in ("truncate", "zero", "garbage", "stale"):
            beyond = total - length
            for cut in {0, min(1, beyond), min(4_096, beyond), choose.randint(0, beyond), beyond}:
                copies += 1
                copy = tmp_path / f"copy{copies}"
                copy.mkdir()
                shutil.copy(source / "log.db", copy / "log.db")
                data = bytearray(wal.read_bytes())
                keep = length + cut
                if damage == "truncate":
                    del data[keep:]
                elif damage == "zero":
                    data[keep:] = bytes(total - keep)
                elif damage == "garbage":
                    data[keep:] = choose.randbytes(total - keep)
                else:  # blocks that got to the disk out of order
                    for at in range(keep, total, 4_096):
                        if choose.random() < 0.5:
                            data[at : at + 4_096] = bytes(min(4_096, total - at))
                (copy / "log.db-wal").write_bytes(data)
                damaged = open_log(copy)
                end = damaged.extent("t", 0).end
                assert end >= count
                assert end % 300 == 0
                assert damaged.read("t", 0, Span(0, end)).column("n").to_pylist() == list(range(end))
                assert damaged.append("t", 0, numbers(7)) == Span(end, end + 1)
                damaged.close()
                shutil.rmtree(copy)
    log.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB, where the tests may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_refuses_appends_keeps_the_rest_and_recovers(small_disk: Path) -> None:
    blob = pa.schema([("raw", pa.binary())])
    log = open_log(small_disk)
    log.create(Topic("t", blob))
    noise = rows_of([{"raw": os.urandom(1_000)} for _ in range(200)])
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 2**20)
    spans = []
    with pytest.raises(StorageFullError, match="disk is full while appending; nothing of it was kept"):  # noqa: PT012
        for number in range(100):
            with log.transaction() as transaction:
                transaction.append("t", 0, noise)
                transaction.cursor("w", number)
            spans += transaction.spans
    kept = spans[-1]
    for _ in range(3):
        with pytest.raises(StorageFullError):
            log.append("t", 0, noise)
    assert log.extent("t", 0) == Span(0, kept.end)
    assert log.cursor("w") == len(spans) - 1
    assert log.read("t", 0, kept).to_pylist() == noise.to_pylist()
    filler.unlink()
    assert log.append("t", 0, noise) == Span(kept.end, kept.end + 200)
    log.close()
    log = open_log(small_disk)
    assert len(contents(log, "t")) == kept.end + 200
    log.close()


def test_a_full_file_refuses_appends_and_recovers(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.create(Topic("t", pa.schema([("raw", pa.binary())])))
    noise = rows_of([{"raw": os.urandom(1_000)} for _ in range(200)])
    log.append("t", 0, noise)
    writer: sqlite3.Connection = log._database.writer
    [pages] = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count={pages + 2}")
    for _ in range(2):
        with pytest.raises(StorageFullError):
            log.append("t", 0, noise)
    writer.execute("PRAGMA max_page_count=1000000")
    assert log.append("t", 0, noise) == Span(200, 400)
    assert len(contents(log, "t")) == 400
    log.close()
