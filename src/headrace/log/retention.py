"""Deleting what a topic no longer keeps, oldest first, and giving the disk space back."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator, Sequence

from headrace.log.commit import Committer
from headrace.log.database import Database, Topics
from headrace.log.schema import Stored
from headrace.log.tail import Tail

_STEP_BYTES = 4 * 2**20  # deleted in one transaction: appends wait for a few milliseconds at most
_STEP_BATCHES = 256
_STEP_PAGES = 256
_SLACK_BYTES = (
    2**20
)  # freed pages that stay in the file for the next appends; so does a twentieth of the file

Batch = tuple[int, int, int, int, int, int]
"""(appended at, partition, base, rows, bytes, frame)."""


def retain(database: Database, topics: Topics, committer: Committer, tail: Tail, now_us: int) -> int:
    """Delete whole batches that are older than their topic's retention or beyond its size and that no reader wants.
    The number of rows deleted."""
    deleted = 0
    with database.reader("looking for old rows") as connection:
        for stored in topics.read(connection).values():
            for step in _steps(_expired(connection, stored, now_us)):
                count = _delete(committer, tail, stored, step)
                deleted += count
                if count < sum(batch[3] for batch in step):
                    break  # a reader has come in between
    if deleted:
        _shrink(database, committer)
    return deleted


def _expired(connection: sqlite3.Connection, stored: Stored, now_us: int) -> list[Batch]:
    """Batches to delete: from the start of each partition on, without a gap."""
    topic = stored.topic
    total = connection.execute(
        "SELECT coalesce(sum(bytes), 0) FROM batches WHERE topic = ?", (stored.id,)
    ).fetchone()[0]
    excess = total - topic.max_size.bytes
    oldest = now_us - topic.retention.us
    wanted = _wanted(connection, topic.name)
    last = dict(
        connection.execute(
            "SELECT partition, max(base) FROM batches WHERE topic = ? GROUP BY partition", (stored.id,)
        ).fetchall()
    )
    found: list[Batch] = []
    blocked: set[int] = set()
    for batch in heapq.merge(*(_batches(connection, stored.id, partition) for partition in last)):
        at_us, partition, base, rows, size, _ = batch
        if partition in blocked:
            continue
        # By size the newest batch stays, or a topic with large batches would always be empty.
        too_much = excess > 0 and base < last[partition]
        if not (at_us < oldest or too_much) or base + rows > wanted.get(partition, 2**63):
            blocked.add(partition)
            if len(blocked) == len(last):
                break
            continue
        found.append(batch)
        excess -= size
    return found


def _batches(connection: sqlite3.Connection, topic: int, partition: int) -> Iterator[Batch]:
    """A partition's batches in order, a few at a time so that no read transaction stays open."""
    base = -1
    while True:
        some = connection.execute(
            "SELECT at_us, partition, base, rows, bytes, frame FROM batches "
            "WHERE topic = ? AND partition = ? AND base > ? ORDER BY base LIMIT 256",
            (topic, partition, base),
        ).fetchall()
        if not some:
            return
        yield from some
        base = some[-1][2]


def _steps(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    size = 0
    for batch in batches:
        step.append(batch)
        size += batch[4]
        if size >= _STEP_BYTES or len(step) >= _STEP_BATCHES:
            yield step
            step, size = [], 0
    if step:
        yield step


def _wanted(connection: sqlite3.Connection, topic: str) -> dict[int, int]:
    """Partition -> lowest offset that some reader still wants."""
    return dict(
        connection.execute(
            "SELECT partition, min(next) FROM positions WHERE topic = ? GROUP BY partition", (topic,)
        ).fetchall()
    )


def _delete(committer: Committer, tail: Tail, stored: Stored, step: list[Batch]) -> int:
    with committer.alone("deleting old rows") as (connection, _):
        wanted = _wanted(connection, stored.topic.name)
        ends: dict[int, int] = {}
        gone: list[tuple[int, int, int]] = []
        held: set[int] = set()
        deleted = 0
        for _, partition, base, rows, _, frame in step:
            if partition in held or base + rows > wanted.get(partition, 2**63):
                held.add(partition)
                continue
            gone.append((partition, base, frame))
            ends[partition] = base + rows
            deleted += rows
        connection.executemany("DELETE FROM frames WHERE id = ?", [(frame,) for _, _, frame in gone])
        connection.executemany(
            "DELETE FROM batches WHERE topic = ? AND partition = ? AND base = ?",
            [(stored.id, p, base) for p, base, _ in gone],
        )
        # An emptied partition still knows its next offset: offsets are never used twice.
        connection.executemany(
            "INSERT OR REPLACE INTO ends VALUES (?, ?, ?)",
            [(stored.id, partition, end) for partition, end in ends.items()],
        )
    for partition, end in ends.items():
        tail.drop((stored.id, partition), end)
    return deleted


def _shrink(database: Database, committer: Committer) -> None:
    """Move pages from the end of the file into freed ones, a few at a time, and cut the file off."""
    while True:
        with committer.alone("giving disk space back") as (connection, _):
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            slack = max(_SLACK_BYTES // database.page_bytes, pages // 20)
            if free <= slack:
                return
            connection.execute(f"PRAGMA incremental_vacuum({min(_STEP_PAGES, free - slack)})").fetchall()
