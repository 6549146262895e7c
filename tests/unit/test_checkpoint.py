"""Checkpoints: read back as written, survive damage and an exchange cut short."""

from pathlib import Path

import pyarrow as pa
import pytest

from headrace.engine.checkpoint import Checkpoint, CheckpointStore


def make(epoch: int, workers: int = 1, rows: int = 3) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        workers=workers,
        partitions=(0, 2),
        positions={("events", 0): 7, ("events", 2): 9},
        newest_us={("events", 0): 123},
        watermark_us=100,
        steps=("window:abc", "where:def"),
        states=(pa.table({"key": [f"k{i}" for i in range(rows)], "count": list(range(rows))}), pa.table({})),
    )


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("heat", 1, make(5))
    loaded = store.load("heat", 1)
    assert loaded == make(5)
    assert loaded is not None
    assert loaded.states[0].equals(make(5).states[0])
    assert loaded.states[1].num_columns == 0
    assert store.load("heat", 0) is None


def test_only_the_two_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for epoch in (1, 2, 3):
        store.save("heat", 0, make(epoch))
    assert sorted(path.name for path in (tmp_path / "heat" / "0").iterdir()) == ["2", "3"]


def test_the_newest_is_taken_and_newer_is_by_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for epoch in (9, 10):
        store.save("heat", 0, make(epoch))
    assert store.load("heat", 0) == make(10)


@pytest.mark.parametrize("damage", ["meta.json", "0.arrow"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save("heat", 0, make(1))
    store.save("heat", 0, make(2))
    (tmp_path / "heat" / "0" / "2" / damage).write_bytes(b"\0\1\2")
    loaded = store.load("heat", 0)
    assert loaded is not None
    assert loaded.epoch == 1


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("heat", 0, make(1))
    (tmp_path / "heat" / "0" / ".2.tmp").mkdir()
    loaded = store.load("heat", 0)
    assert loaded is not None
    assert loaded.epoch == 1


def test_replace_puts_all_new_workers_in_place_of_all_old(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("heat", 0, make(4))
    store.replace("heat", {0: make(4, workers=2), 1: make(0, workers=2), 2: make(0, workers=2)})
    assert store.workers("heat") == [0, 1, 2]
    assert all(store.load("heat", n).workers == 2 for n in (0, 1, 2))  # type: ignore[union-attr]


def test_a_replace_cut_short_is_finished(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    other = CheckpointStore(tmp_path / "other")
    store.save("heat", 0, make(4))
    other.save("heat", 1, make(9, workers=2))
    (tmp_path / "other" / "heat").rename(tmp_path / ".heat.ready")
    store.settle("heat")
    assert store.workers("heat") == [1]
