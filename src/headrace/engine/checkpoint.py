"""Checkpoints: the state of a worker's operators after some epoch, as files.

    DIR/PIPELINE/WORKER/EPOCH/{meta.json, 0.arrow, 1.arrow, ...}

A checkpoint is written to a folder beside, synced, and renamed into place; the two newest are kept. Recovery takes the
newest that reads back whole, and the log still has every epoch recorded since the older of the two.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa

from headrace.engine.watermark import NONE_US, Input

_KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """State after epoch `epoch`. `steps` are fingerprints: state is restored only into a step that is the same."""

    epoch: int
    workers: int
    partitions: Sequence[int]
    positions: Mapping[Input, int]
    newest_us: Mapping[Input, int]
    watermark_us: int = NONE_US
    steps: Sequence[str] = ()
    states: Sequence[pa.Table] = field(default=(), compare=False)


class CheckpointStore:
    """Checkpoints of all pipelines under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, pipeline: str, worker: int, checkpoint: Checkpoint) -> None:
        """Durable on return. Older checkpoints beyond the two newest are removed afterwards."""
        folder = self._root / pipeline / str(worker)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{checkpoint.epoch}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for number, state in enumerate(checkpoint.states):
            with (temporary / f"{number}.arrow").open("wb") as file:
                with pa.ipc.new_file(file, state.schema) as writer:
                    writer.write_table(state)
                file.flush()
                os.fsync(file.fileno())
        meta = {
            "format": 1,
            "epoch": checkpoint.epoch,
            "workers": checkpoint.workers,
            "partitions": list(checkpoint.partitions),
            "positions": [[*key, value] for key, value in checkpoint.positions.items()],
            "newest_us": [[*key, value] for key, value in checkpoint.newest_us.items()],
            "watermark_us": checkpoint.watermark_us,
            "steps": list(checkpoint.steps),
        }
        with (temporary / "meta.json").open("wb") as file:
            file.write(msgspec.json.encode(meta))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(temporary)
        final = folder / str(checkpoint.epoch)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_folder(folder)
        for old in self._epochs(folder)[:-_KEEP]:
            shutil.rmtree(folder / str(old), ignore_errors=True)

    def load(self, pipeline: str, worker: int) -> Checkpoint | None:
        """The newest checkpoint that can be read whole; None at first."""
        folder = self._root / pipeline / str(worker)
        for epoch in reversed(self._epochs(folder)):
            try:
                return _read(folder / str(epoch))
            except (OSError, pa.ArrowInvalid, msgspec.DecodeError, KeyError):
                continue  # a damaged one: the older one and the recorded epochs since lead to the same state
        return None

    def workers(self, pipeline: str) -> list[int]:
        """Numbers of the workers that have left a checkpoint."""
        folder = self._root / pipeline
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())

    def replace(self, pipeline: str, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Put the checkpoints of a new set of workers in place of all there are. After a crash on the way, either all
        old or all new ones are found."""
        fresh = CheckpointStore(self._root / ".fresh")
        shutil.rmtree(fresh._root, ignore_errors=True)
        for worker, checkpoint in checkpoints.items():
            fresh.save(pipeline, worker, checkpoint)
        ready, old = self._root / f".{pipeline}.ready", self._root / f".{pipeline}.old"
        shutil.rmtree(ready, ignore_errors=True)
        (fresh._root / pipeline).rename(ready)  # from here on the new ones are complete
        _sync_folder(self._root)
        shutil.rmtree(old, ignore_errors=True)
        if (self._root / pipeline).exists():
            (self._root / pipeline).rename(old)
        ready.rename(self._root / pipeline)
        _sync_folder(self._root)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(fresh._root, ignore_errors=True)

    def settle(self, pipeline: str) -> None:
        """Finish a `replace` that a crash cut short. Call before the first `load`."""
        ready = self._root / f".{pipeline}.ready"
        if ready.exists():
            if (self._root / pipeline).exists():
                shutil.rmtree(self._root / pipeline)
            ready.rename(self._root / pipeline)
            _sync_folder(self._root)

    @staticmethod
    def _epochs(folder: Path) -> list[int]:
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _read(folder: Path) -> Checkpoint:
    meta = msgspec.json.decode((folder / "meta.json").read_bytes())
    states = []
    for number in range(len(meta["steps"])):
        with pa.OSFile(str(folder / f"{number}.arrow")) as file:
            states.append(pa.ipc.open_file(file).read_all())
    return Checkpoint(
        epoch=meta["epoch"],
        workers=meta["workers"],
        partitions=tuple(meta["partitions"]),
        positions={(topic, partition): value for topic, partition, value in meta["positions"]},
        newest_us={(topic, partition): value for topic, partition, value in meta["newest_us"]},
        watermark_us=meta["watermark_us"],
        steps=tuple(meta["steps"]),
        states=tuple(states),
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
