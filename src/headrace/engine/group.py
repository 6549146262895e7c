"""Runs the workers of several pipelines as threads of this process, or in worker processes of their own.

With one worker everything is a thread here. With more, each process owns the partitions whose number leaves its number
as remainder, for every pipeline, and is started again when it dies; the log decides what it had done.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import structlog

from headrace.backoff import pause
from headrace.clock import Clock, SystemClock
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.local import EngineLimits, Observer, Worker, WorkerState
from headrace.engine.rescale import rescale
from headrace.log import Log, open_log
from headrace.pipeline import Pipeline

logger = structlog.get_logger("headrace.engine")


class Group(Protocol):
    """Workers of pipelines, started and stopped by pipeline."""

    def start(self, pipeline: Pipeline) -> None: ...
    def stop(self, name: str, successor: Pipeline | None = None) -> None:
        """Returns after the pipeline's last epoch was committed and its state kept. With a `successor`, to be started
        next, the open windows of steps that have changed come out first."""

    def states(self) -> Mapping[str, list[WorkerState]]: ...
    def close(self) -> None: ...


class ThreadGroup:
    """Each pipeline's worker is a thread."""

    def __init__(
        self,
        log: Log,
        checkpoints: CheckpointStore,
        *,
        clock: Clock,
        limits: EngineLimits,
        worker: int = 0,
        workers: int = 1,
        observe: Observer = lambda pipeline, seconds, age: None,
    ) -> None:
        self._log = log
        self._checkpoints = checkpoints
        self._clock = clock
        self._limits = limits
        self._worker = worker
        self._workers = workers
        self._observe = observe
        self._running: dict[str, tuple[Worker, threading.Thread, threading.Event]] = {}

    def start(self, pipeline: Pipeline) -> None:
        if self._workers == 1:
            rescale(pipeline, self._log, self._checkpoints, clock=self._clock, workers=1)
        worker = Worker(
            pipeline,
            self._log,
            clock=self._clock,
            checkpoints=self._checkpoints,
            worker=self._worker,
            workers=self._workers,
            limits=self._limits,
            observe=self._observe,
        )
        stop = threading.Event()
        thread = threading.Thread(
            target=worker.run, args=(stop,), name=f"pipeline-{pipeline.name}", daemon=True
        )
        self._running[pipeline.name] = (worker, thread, stop)
        thread.start()

    def stop(self, name: str, successor: Pipeline | None = None) -> None:
        if name in self._running:
            self._running[name][0].successor = successor
        self._stop([name])

    def _stop(self, names: list[str]) -> None:
        found = [self._running.pop(name) for name in names if name in self._running]
        for _, _, stop in found:
            stop.set()
        self._log.wake()
        for _, thread, _ in found:
            while thread.is_alive():
                thread.join(0.2)
                self._log.wake()

    def states(self) -> Mapping[str, list[WorkerState]]:
        return {name: [worker.state] for name, (worker, _, _) in list(self._running.items())}

    def close(self) -> None:
        self._stop(list(self._running))


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is told at its start."""

    log: str
    data_dir: str
    worker: int
    workers: int
    limits: EngineLimits


class ProcessGroup:
    """Each worker is a process that runs all pipelines on its share of the partitions."""

    def __init__(
        self, log: Log, log_url: str, data_dir: Path, *, clock: Clock, limits: EngineLimits, workers: int
    ) -> None:
        self._log = log
        self._clock = clock
        self._checkpoints = CheckpointStore(data_dir / "checkpoints")
        self._pipelines: dict[str, Pipeline] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._settings = [WorkerSettings(log_url, str(data_dir), n, workers, limits) for n in range(workers)]
        self._children = [_Child(settings) for settings in self._settings]
        self._watcher = threading.Thread(target=self._watch, name="worker-watch", daemon=True)
        self._watcher.start()

    def start(self, pipeline: Pipeline) -> None:
        rescale(pipeline, self._log, self._checkpoints, clock=self._clock, workers=len(self._children))
        with self._lock:
            self._pipelines[pipeline.name] = pipeline
            for child in self._children:
                child.ask("start", pipeline)

    def stop(self, name: str, successor: Pipeline | None = None) -> None:
        with self._lock:
            self._pipelines.pop(name, None)
            for child in self._children:
                child.ask("stop", (name, successor))

    def states(self) -> Mapping[str, list[WorkerState]]:
        gathered: dict[str, list[WorkerState]] = {name: [] for name in self._pipelines}
        with self._lock:
            for number, child in enumerate(self._children):
                states = child.ask("states", None)
                for name in gathered:
                    found = states.get(name) if states else None
                    gathered[name] += found or [
                        WorkerState(name, number, "retrying", last_error="worker process is down")
                    ]
        return gathered

    def close(self) -> None:
        self._closing.set()
        self._watcher.join()
        with self._lock:
            for child in self._children:
                child.close()

    def _watch(self) -> None:
        attempt = 0
        while not self._closing.wait(0.5):
            for number, child in enumerate(self._children):
                if child.alive:
                    continue
                attempt += 1
                logger.warning(
                    "worker process ended and is started again", worker=number, exit=child.exit_code
                )
                if self._closing.wait(pause(attempt, f"worker-{number}")):
                    return
                with self._lock:
                    self._children[number] = _Child(self._settings[number])
                    for pipeline in self._pipelines.values():
                        self._children[number].ask("start", pipeline)


class _Child:
    """A worker process and the pipe to it. Not safe for several threads."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(settings, theirs), name=f"headrace-worker-{settings.worker}", daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    def ask(self, command: str, value: Any) -> Any:
        """Send a command and wait for its answer; None when the process is gone."""
        try:
            self._pipe.send((command, value))
            return self._pipe.recv()
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.close()  # the process stops its workers when its end of the pipe closes
        self._process.join(15)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(settings: WorkerSettings, pipe: Connection) -> None:
    """Body of a worker process: obeys the pipe, ends with it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(0.001)
    clock = SystemClock()
    data_dir = Path(settings.data_dir)
    log = open_log(settings.log, data_dir, clock=clock)
    group = ThreadGroup(
        log,
        CheckpointStore(data_dir / "checkpoints"),
        clock=clock,
        limits=settings.limits,
        worker=settings.worker,
        workers=settings.workers,
    )
    try:
        while True:
            command, value = pipe.recv()
            if command == "start":
                group.start(value)
            elif command == "stop":
                group.stop(*value)
            pipe.send(group.states() if command == "states" else True)
    except (EOFError, OSError):
        pass
    finally:
        group.close()
        log.close()
