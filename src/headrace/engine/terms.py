"""What a worker is given and what it tells: limits, state, where checkpoints go, who watches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from headrace.engine.checkpoint import Checkpoint
from headrace.units import Duration, Size


class Checkpoints(Protocol):
    """Where checkpoints are kept: `engine.checkpoint.CheckpointStore`, or memory in a simulation."""

    def save(self, pipeline: str, worker: int, checkpoint: Checkpoint) -> None: ...
    def load(self, pipeline: str, worker: int) -> Checkpoint | None: ...


class Observer(Protocol):
    """Told of every committed epoch: duration in seconds, age in seconds of the oldest row read (None without rows)."""

    def __call__(self, pipeline: str, seconds: float, age: float | None) -> None: ...


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one epoch, and how often state is kept."""

    max_rows: int = 100_000
    max_bytes: Size = field(default_factory=lambda: Size.parse("64MiB"))
    checkpoint_interval: Duration = field(default_factory=lambda: Duration.parse("5s"))


@dataclass
class WorkerState:
    """State of one worker, for status and health."""

    pipeline: str
    worker: int
    state: str = "starting"  # starting, recovering, running, retrying, failed, stopped
    since_us: int = 0
    last_error: str = ""
    problem: str = ""  # what doesn't work as it should while rows go on
