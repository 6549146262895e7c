"""Deterministic simulation: source, log, engine and sink in one thread, on a fake clock, over a disk that forgets.

A seeded scheduler chooses who moves next and where the machine dies. A crash throws every live object away and keeps of
the disk what was synced, plus any prefix of what wasn't. Afterwards, and at the end, the invariants must hold:

- every row whose `yield` was resumed is in the log, once, in order;
- the output topic holds what the pipeline gives for the rows in the log, each row once;
- the sink's target holds the output topic's rows, once, in order.

    for seed in range(300):
        Simulation(seed, pipeline, events).run()      # AssertionError names the seed
"""

from __future__ import annotations

import pickle
import random
import struct
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from headrace.clock import FakeClock
from headrace.component import Arrival, Batching, Sink, Writer
from headrace.deliver import Deliver, Delivery
from headrace.engine.checkpoint import Checkpoint
from headrace.engine.local import EngineLimits, Worker
from headrace.ingest import Ingest, Shard
from headrace.log.memory import MemoryLog
from headrace.metrics import Metrics
from headrace.model import DEAD_LETTERS, Rows, Topic, as_json
from headrace.pipeline import Pipeline
from headrace.units import Duration


class Crash(BaseException):
    """The machine died. Not an Exception, so that nothing in headrace can catch it."""


class Disk:
    """Files as what is synced and what isn't. Every operation may be the one at which the machine dies."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._synced: dict[str, bytes] = {}
        self._pending: dict[str, bytes] = {}
        self.crash_in = 0  # operations until the machine dies; 0 = it lives

    def _operate(self) -> None:
        if self.crash_in:
            self.crash_in -= 1
            if not self.crash_in:
                raise Crash

    def append(self, name: str, data: bytes) -> None:
        self._pending[name] = self._pending.get(name, b"") + data
        self._operate()

    def sync(self, name: str) -> None:
        self._operate()
        self._synced[name] = self._synced.get(name, b"") + self._pending.pop(name, b"")

    def replace(self, name: str, data: bytes) -> None:
        """Write beside, sync, rename into place: all of it or nothing."""
        self._operate()
        self._synced[name] = data
        self._pending.pop(name, None)

    def read(self, name: str) -> bytes:
        return self._synced.get(name, b"") + self._pending.get(name, b"")

    def crash(self) -> None:
        """Power comes back: of what wasn't synced, some prefix is there, perhaps with a damaged end."""
        for name, data in self._pending.items():
            kept = bytearray(data[: self._random.randint(0, len(data))])
            if kept and self._random.random() < 0.3:
                kept[-1] ^= 0xFF
            self._synced[name] = self._synced.get(name, b"") + bytes(kept)
        self._pending = {}
        self.crash_in = 0


class DiskLog(MemoryLog):
    """A MemoryLog whose transactions are kept on a Disk: frames of length, checksum and operations, synced at commit."""

    def __init__(self, disk: Disk, *, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self._disk = disk
        self._recover()

    def create(self, topic: Topic) -> Topic:
        made = super().create(topic)
        self._keep([("create", (topic,))])
        return made

    def transaction(self) -> Any:
        return _DiskTransaction(super().transaction(), self._keep)

    def append(self, topic: str, partition: int, rows: Rows, *, writer: str = "", cursor: Any = None) -> Any:
        with self.transaction() as transaction:
            transaction.append(topic, partition, rows)
            if writer:
                transaction.cursor(writer, cursor)
        return transaction.spans[0]

    def wait(self, positions: Mapping[tuple[str, int], int], timeout: float) -> bool:
        return any(self.extent(*source).end > position for source, position in positions.items())

    def _keep(self, operations: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        data = pickle.dumps(
            [(name, tuple(_frozen(value) for value in values)) for name, values in operations]
        )
        self._disk.append("log", struct.pack("<II", len(data), zlib.crc32(data)) + data)
        self._disk.sync("log")

    def _recover(self) -> None:
        data, at = self._disk.read("log"), 0
        while at + 8 <= len(data):
            size, checksum = struct.unpack_from("<II", data, at)
            frame = data[at + 8 : at + 8 + size]
            if len(frame) < size or zlib.crc32(frame) != checksum:
                break
            operations = pickle.loads(frame)  # noqa: S301 - the simulation's own bytes
            if operations[0][0] == "create":
                super().create(_thawed(operations[0][1][0]))
            else:
                with super().transaction() as transaction:
                    for name, values in operations:
                        getattr(transaction, name)(*(_thawed(value) for value in values))
            at += 8 + size
        self._disk.replace("log", data[:at])


class _DiskTransaction:
    """Collects the operations, applies them to memory, then keeps them on the disk before the block ends."""

    def __init__(self, inner: Any, keep: Callable[[Sequence[tuple[str, tuple[Any, ...]]]], None]) -> None:
        self._inner = inner
        self._keep = keep
        self._operations: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        if name == "spans":
            return self._inner.spans

        def operate(*values: Any) -> None:
            getattr(self._inner, name)(*values)
            self._operations.append((name, values))

        return operate

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, tb)
        if kind is None and self._operations:
            self._keep(self._operations)


def _frozen(value: Any) -> Any:
    if isinstance(value, pa.RecordBatch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return ("rows", sink.getvalue().to_pybytes())
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "rows" and isinstance(value[1], bytes):
        reader = pa.ipc.open_stream(value[1])
        return reader.read_next_batch()
    return value


class _DiskCheckpoints:
    """Checkpoints as one file each, replaced whole."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def save(self, pipeline: str, worker: int, checkpoint: Checkpoint) -> None:
        self._disk.replace(f"checkpoint/{pipeline}/{worker}", pickle.dumps(checkpoint))

    def load(self, pipeline: str, worker: int) -> Checkpoint | None:
        data = self._disk.read(f"checkpoint/{pipeline}/{worker}")
        return pickle.loads(data) if data else None  # noqa: S301 - the simulation's own bytes


class Target:
    """Where the simulated sink writes: rows and position change together. It may be down, or die around its commit."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.position = 0


class _TargetSink(Sink, frozen=True, kw_only=True):
    def batching(self) -> Batching:
        return Batching()


class _TargetWriter(Writer):
    def __init__(self, target: Target, disk: Disk) -> None:
        self._target = target
        self._disk = disk

    def committed(self, partition: int) -> int:
        return self._target.position

    def write(self, partition: int, rows: Rows, end: int) -> None:
        self._disk._operate()  # may die before
        self._target.rows += as_json(rows)
        self._target.position = end
        self._disk._operate()  # or after the target's commit, before headrace hears of it

    def close(self) -> None:
        pass


class Simulation:
    """One seeded run. `batches` are the source's data; `oracle` gives the output rows for the rows of the log."""

    def __init__(
        self, seed: int, pipeline: Pipeline, input_topic: Topic, output_topic: Topic, batches: Sequence[Rows]
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._pipeline = pipeline
        self._topics = (input_topic, output_topic, Topic("dead_letters", DEAD_LETTERS))
        self._batches = batches
        self.disk = Disk(self.random)
        self.clock = FakeClock()
        self.target = Target()
        self.acknowledged = 0
        self.crashes = 0
        self.steps = 0

    def run(self, *, crashes: int = 5, limit: int = 5_000) -> None:
        """Until everything has gone through, with up to `crashes` crashes on the way."""
        self._boot()
        while not self._finished():
            self.steps += 1
            if self.steps > limit:
                raise AssertionError(f"seed {self.seed}: not finished after {limit} steps")
            if self.crashes < crashes and not self.disk.crash_in and self.random.random() < 0.1:
                self.disk.crash_in = self.random.randint(1, 12)
            try:
                self.random.choice(
                    (self._move_source, self._move_engine, self._move_engine, self._move_sink, self._rest)
                )()
            except Crash:
                self.crashes += 1
                self.disk.crash()
                self._boot()
                self._check_acknowledged()
        self._check_end()

    # -- the machine -------------------------------------------------------------------------------

    def _boot(self) -> None:
        """Start over from the disk; dying again while starting is part of the game."""
        while True:
            try:
                self.log = DiskLog(self.disk, clock=self.clock)
                for topic in self._topics:
                    if topic.name not in self.log.topics():
                        self.log.create(topic)
                metrics = Metrics()
                self._ingest = Ingest(self.log, self.clock, metrics)
                self._shard = Shard("sim", "sim", self._topics[0].name)
                self._at = int(self.log.cursor("source:sim:0") or 0)
                self._worker = Worker(
                    self._pipeline,
                    self.log,
                    clock=self.clock,
                    checkpoints=_DiskCheckpoints(self.disk),
                    limits=EngineLimits(
                        max_rows=self.random.choice((1, 3, 100)), checkpoint_interval=Duration.parse("3s")
                    ),
                )
                self._worker.open()
                self._deliver = Deliver(self.log, self.clock, metrics)
                self._sink = _TargetSink()
                self._delivery = Delivery("target", "sim", self._topics[1].name)
                self._writer = _TargetWriter(self.target, self.disk)
                self._deliver.begin(self._sink, self._writer, self._delivery, "earliest")
                return
            except Crash:
                self.disk.crash()

    def _move_source(self) -> None:
        if self._at < len(self._batches):
            self._ingest.take(Arrival(self._batches[self._at], self._at + 1), self._shard, "source:sim:0")
            self._at += 1
            self.acknowledged = max(self.acknowledged, self._at)

    def _move_engine(self) -> None:
        self._worker.step()

    def _move_sink(self) -> None:
        self._deliver.step(self._sink, self._writer, self._delivery, threading.Event())

    def _rest(self) -> None:
        done = self._at >= len(self._batches)
        self.clock.advance(self.random.choice((30.0, 3600.0)) if done else self.random.random())

    # -- invariants --------------------------------------------------------------------------------

    def _finished(self) -> bool:
        lag = self.log.extent(self._topics[1].name, 0).end - self._delivery.positions.get(0, 0)
        positions = self.log.positions(f"pipeline:{self._pipeline.name}")
        behind = any(self.log.extent(*source).end > position for source, position in positions.items())
        quiet = self.clock.monotonic() > 3600 * 24 * 3
        return self._at >= len(self._batches) and not behind and lag == 0 and quiet and not self.disk.crash_in

    def _check_acknowledged(self) -> None:
        topic = self._topics[0].name
        rows = sum(self.log.extent(topic, partition).end for partition in range(self._topics[0].partitions))
        least = sum(batch.num_rows for batch in self._batches[: self.acknowledged])
        cursor = int(self.log.cursor("source:sim:0") or 0)
        whole = sum(batch.num_rows for batch in self._batches[:cursor])
        assert rows >= least, f"seed {self.seed}: {least - rows} acknowledged rows are lost"
        assert rows == whole, f"seed {self.seed}: {rows} rows in the log, the cursor stands for {whole}"

    def _check_end(self) -> None:
        self._check_acknowledged()
        output = self._topics[1].name
        written = as_json(self.log.read(output, 0, self.log.extent(output, 0)))
        assert self.target.rows == written, (
            f"seed {self.seed}: the target has {len(self.target.rows)} rows, the output topic {len(written)}"
        )

    def output(self) -> list[bytes]:
        """Rows of the output topic."""
        name = self._topics[1].name
        return as_json(self.log.read(name, 0, self.log.extent(name, 0)))


__all__ = ["Crash", "Disk", "DiskLog", "Simulation", "Target"]
