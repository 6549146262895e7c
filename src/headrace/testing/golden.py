"""Golden folders: a pipeline, its input and the rows that must come out, however the run is cut, killed or divided.

    NAME/pipeline.yaml     a configuration with topics and one pipeline (or several that meet at topics)
    NAME/input.ndjson      one JSON object a line; `"topic"` names the topic, default the first pipeline's input
    NAME/expected.ndjson   rows of the last pipeline's output topic, in any order

Each folder runs whole, in epochs of 1 and 7 rows, killed and restored at each epoch (with and without a checkpoint), and
with 1, 2 and 3 partitions of the input topics that have a key. All of them must give the expected rows, so the input must
be no more out of order than the pipeline's `delay`. `${FOLDER}` in the file is the folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.clock import FakeClock
from headrace.config import Config, load_config
from headrace.engine.checkpoint import Checkpoint
from headrace.engine.local import EngineLimits, Worker
from headrace.formats import decode
from headrace.log.memory import MemoryLog
from headrace.model import as_json, split
from headrace.units import Duration

_SILENCE = 7 * 86_400.0  # seconds of quiet after the input, so that every window closes


class MemoryCheckpoints:
    """Checkpoints kept in memory, for golden runs and simulation."""

    def __init__(self) -> None:
        self.saved: dict[tuple[str, int], Checkpoint] = {}

    def save(self, pipeline: str, worker: int, checkpoint: Checkpoint) -> None:
        self.saved[pipeline, worker] = checkpoint

    def load(self, pipeline: str, worker: int) -> Checkpoint | None:
        return self.saved.get((pipeline, worker))


@dataclass(frozen=True)
class Variant:
    """One way of running a golden folder. `restart`: never, after each epoch (`crash` or `checkpoint`)."""

    rows: int = 100_000
    partitions: int = 1
    restart: str = "never"

    def __str__(self) -> str:
        return f"epochs of {self.rows}, {self.partitions} partitions, restart {self.restart}"


VARIANTS = (
    Variant(),
    Variant(rows=1),
    Variant(rows=7),
    Variant(rows=7, restart="crash"),
    Variant(rows=7, restart="checkpoint"),
    Variant(rows=1, restart="crash"),
    Variant(partitions=2),
    Variant(partitions=3),
    Variant(rows=7, partitions=2, restart="checkpoint"),
    Variant(rows=7, partitions=3, restart="crash"),
)


def cases(root: Path) -> Iterator[Path]:
    """The golden folders under `root`."""
    return (path.parent for path in sorted(root.glob("*/pipeline.yaml")))


def expected(folder: Path) -> list[str]:
    """The expected rows in comparable form."""
    lines = (folder / "expected.ndjson").read_bytes().splitlines()
    return sorted(_comparable(line) for line in lines if line.strip())


def run(folder: Path, variant: Variant) -> list[str]:
    """The output rows of a folder under a variant, in comparable form."""
    config = load_config(folder / "pipeline.yaml", env={"FOLDER": str(folder)}, demo=False)
    clock = FakeClock()
    log = MemoryLog(clock=clock)
    inputs = {name for pipeline in config.pipelines.values() for name in pipeline.reads()} - {
        pipeline.output for pipeline in config.pipelines.values()
    }
    for topic in config.topics.values():
        cut = variant.partitions if topic.name in inputs and topic.key else topic.partitions
        log.create(dataclasses.replace(topic, partitions=cut))
    _feed(folder, config, log, clock)
    checkpoints = MemoryCheckpoints()
    for pipeline in config.pipelines.values():  # in the order of the file: each reads what those before wrote

        def worker() -> Worker:
            limits = EngineLimits(max_rows=variant.rows, checkpoint_interval=Duration.parse("1d"))
            made = Worker(pipeline, log, clock=clock, checkpoints=checkpoints, limits=limits)  # noqa: B023
            made.open()
            return made

        running = worker()
        while running.step():
            if variant.restart == "checkpoint":
                running.checkpoint()
            if variant.restart != "never":
                running = worker()
        clock.advance(_SILENCE)
        running.step()
    output = list(config.pipelines.values())[-1].output
    rows = []
    for partition in range(log.topics()[output].partitions):
        rows += as_json(log.read(output, partition, log.extent(output, partition)))
    log.close()
    return sorted(_comparable(row) for row in rows)


def _feed(folder: Path, config: Config, log: MemoryLog, clock: FakeClock) -> None:
    first = next(iter(config.pipelines.values())).topics[0]
    by_topic: dict[str, list[bytes]] = {}
    for line in (folder / "input.ndjson").read_bytes().splitlines():
        if line.strip():
            event = msgspec.json.decode(line)
            by_topic.setdefault(event.pop("topic", first), []).append(msgspec.json.encode(event))
    for name, lines in by_topic.items():
        topic = log.topics()[name]
        decoded = decode(
            b"\n".join(lines), media_type="application/x-ndjson", topic=topic, now_us=clock.now_us()
        )
        if decoded.rejects:
            raise ValueError(f"{folder.name}/input.ndjson: {decoded.rejects[0].reason}")
        if decoded.rows is not None:
            for partition, rows in split(decoded.rows, topic.key, topic.partitions).items():
                log.append(name, partition, rows)


def _comparable(row: bytes) -> str:
    """A row as text: keys sorted, numbers to nine significant digits, times as written by `as_json`."""

    def plain(value: object) -> object:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, (int, float)):
            return float(f"{value:.9g}")
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value

    return msgspec.json.encode(plain(msgspec.json.decode(row)), order="sorted").decode()
