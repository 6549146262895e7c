"""Runtime: one running headrace, wired together. Components are started, exchanged while it runs, and stopped here.

Order of a start: lock of the data directory, log, topics, sinks, pipelines, sources. A stop goes the other way round:
sources first, so that everything accepted is already in the log; pipelines finish their epoch and keep their state;
sinks finish their write.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from headrace.clock import Clock, SystemClock
from headrace.component import Source, kind_of
from headrace.config import Config, SinkEntry, SourceEntry
from headrace.deliver import Deliver, Delivery
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.group import Group, ProcessGroup, ThreadGroup
from headrace.engine.local import EngineLimits
from headrace.errors import ConfigError, PlanError
from headrace.ingest import Ingest, Intake, Shard
from headrace.lake import DeltaTableRef
from headrace.log import Log, open_log
from headrace.log.lock import DataDirLock
from headrace.metrics import Metrics, Readings
from headrace.model import Receipt
from headrace.monitor import Monitor
from headrace.push import Limits, Push
from headrace.sinks.delta import Delta
from headrace.sinks.sensors import Sensors
from headrace.store import Limits as StoreLimits
from headrace.store import Store
from headrace.units import Duration

logger = structlog.get_logger("headrace")


class Runtime:
    """One running headrace: what the API, the dashboard and the command line talk to."""

    def __init__(self, config: Config, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self._lock = threading.RLock()  # held while components are started, stopped or exchanged
        config.data_dir.mkdir(parents=True, exist_ok=True)
        self._dir_lock = DataDirLock(config.data_dir)
        self._dir_lock.acquire()
        try:
            self._open()
        except BaseException:
            self._dir_lock.release()
            raise

    def _open(self) -> None:
        config = self.config
        self.metrics = Metrics()
        self.registry = self.metrics.registry
        self.log = open_log(config.log, config.data_dir, clock=self.clock, observe=self.metrics.observe)
        try:
            self._create_topics(config)
            limits = Limits(
                config.server.max_decompressed.bytes, config.server.max_field.bytes, config.server.max_future
            )
            self.ingest = Ingest(self.log, self.clock, self.metrics)
            self._push = Push(self.ingest, self.log, self.clock, self.metrics, limits)
            self._deliver = Deliver(self.log, self.clock, self.metrics)
            self.monitor = Monitor(self)
            self.store = self._make_store(config)
            self._group = self._make_group(config)
        except BaseException:
            self.log.close()
            raise
        self._sources: dict[
            str, tuple[SourceEntry, list[Shard], list[threading.Thread], threading.Event]
        ] = {}
        self._sinks: dict[str, tuple[SinkEntry, list[Delivery], list[threading.Thread], threading.Event]] = {}
        self.registry.register(Readings(self.monitor.readings))

    # -- life --------------------------------------------------------------------------------------

    def start_all(self) -> None:
        """Start sinks, pipelines and sources of the configuration."""
        with self._lock:
            for name in strangers(self.config, self.log):
                logger.warning(
                    "rows are kept for a reader that is no more", reader=name, hint="headrace forget"
                )
            for sink in self.config.sinks.values():
                self._start_sink(sink)
            for pipeline in self.config.pipelines.values():
                self._group.start(pipeline)
            for source in self.config.sources.values():
                if source.enabled:
                    self._start_source(source)
            self.monitor.start()

    def close(self) -> None:
        """Stop everything in order; what was accepted is in the log and goes on from there at the next start."""
        with self._lock:
            for name in list(self._sources):
                self._stop_source(name)
            self._group.close()
            for name in list(self._sinks):
                self._stop_sink(name)
            self.monitor.close()
            self.store.close()
            self.log.close()
            self._dir_lock.release()

    def reload(self, config: Config) -> list[str]:
        """Exchange what differs between the present configuration and `config`, pipelines at an epoch boundary.

        Gives what was changed, in words. Raises ConfigError, with everything still running as before, when the new
        configuration can't work on the data that is there.
        """
        with self._lock:
            old = self.config
            fixed = [
                name
                for name in ("data_dir", "log", "server", "engine")
                if getattr(old, name) != getattr(config, name)
            ]
            try:
                self._create_topics(config)
            except PlanError as error:
                raise ConfigError(f"not applied, everything runs as before: {error}") from error
            changes = [f"{name}: takes effect after a restart" for name in fixed]
            changed_sources = _differing(old.sources, config.sources)
            changed_pipelines = _differing(old.pipelines, config.pipelines)
            changed_sinks = _differing(old.sinks, config.sinks)
            for name in changed_sources:
                self._stop_source(name)
            for name in changed_pipelines:
                self._group.stop(name, config.pipelines.get(name))
            for name in changed_sinks:
                self._stop_sink(name)
            self.config = dataclasses.replace(config, **{name: getattr(old, name) for name in fixed})
            self.store, before = self._make_store(config), self.store
            before.close()
            for name in changed_sinks:
                if name in config.sinks:
                    self._start_sink(config.sinks[name])
            for name in changed_pipelines:
                if name in config.pipelines:
                    self._group.start(config.pipelines[name])
            for name in changed_sources:
                if name in config.sources and config.sources[name].enabled:
                    self._start_source(config.sources[name])
            for family, names, after in (
                ("source", changed_sources, config.sources),
                ("pipeline", changed_pipelines, config.pipelines),
                ("sink", changed_sinks, config.sinks),
            ):
                changes += [f"{family} {name}: {'changed' if name in after else 'removed'}" for name in names]
            logger.info("configuration applied", changes=changes)
            return changes

    # -- what the API calls ------------------------------------------------------------------------

    def push(
        self,
        topic: str,
        body: bytes,
        *,
        media_type: str,
        encoding: str = "",
        idempotency_key: str | None = None,
        client: str = "",
    ) -> Receipt:
        """Store a pushed body; see `Push.push` for the errors."""
        return self._push.push(
            topic, body, media_type=media_type, encoding=encoding, idempotency_key=idempotency_key
        )

    def prepare(
        self, topic: str, body: bytes, *, media_type: str, encoding: str = "", client: str = ""
    ) -> Intake:
        """The first half of `push`, for a body without an idempotency key: decode it."""
        return self._push.prepare(topic, body, media_type=media_type, encoding=encoding)

    def commit(self, intakes: Sequence[Intake]) -> list[Receipt | Exception]:
        """The second half of `push`: make prepared bodies durable, all with one fsync."""
        return self._push.commit(intakes)

    def start(self, source: str, interval: str | None = None) -> None:
        """Start a configured source, perhaps at another interval. Raises LookupError or ConfigError."""
        with self._lock:
            entry = self.config.sources.get(source)
            if entry is None:
                raise LookupError(source)
            if interval is not None:
                entry = _at_interval(entry, interval)
            self._stop_source(source)
            self._start_source(entry)

    def stop(self, source: str | None = None) -> None:
        """Stop one source, or all. Raises LookupError."""
        with self._lock:
            if source is not None and source not in self.config.sources:
                raise LookupError(source)
            for name in [source] if source is not None else list(self._sources):
                self._stop_source(name, keep=True)

    def status(self) -> dict[str, Any]:
        return self.monitor.status()

    def health(self) -> dict[str, Any]:
        return self.monitor.health()

    def dead_letter_causes(self) -> list[dict[str, Any]]:
        return self.monitor.dead_letter_causes()

    # -- what the monitor reads --------------------------------------------------------------------

    def shards(self) -> dict[str, list[Shard]]:
        return {name: shards for name, (_, shards, _, _) in list(self._sources.items())}

    def deliveries(self) -> dict[str, list[Delivery]]:
        return {name: states for name, (_, states, _, _) in list(self._sinks.items())}

    def workers(self) -> Any:
        return self._group.states()

    # -- parts -------------------------------------------------------------------------------------

    def _create_topics(self, config: Config) -> None:
        for topic in config.topics.values():
            self.log.create(topic)
        topics = self.log.topics()
        for pipeline in config.pipelines.values():
            pipeline.schemas(topics)

    def _make_group(self, config: Config) -> Group:
        limits = EngineLimits(
            config.engine.max_epoch_rows, config.engine.max_epoch_size, config.engine.checkpoint_interval
        )
        if config.engine.workers > 1:
            return ProcessGroup(
                self.log,
                config.log,
                config.data_dir,
                clock=self.clock,
                limits=limits,
                workers=config.engine.workers,
            )
        return ThreadGroup(
            self.log,
            CheckpointStore(config.data_dir / "checkpoints"),
            clock=self.clock,
            limits=limits,
            observe=self.monitor.epoch_done,
        )

    def _make_store(self, config: Config) -> Store:
        limits = StoreLimits(memory=config.server.query_memory)
        return Store(self.log, delta_tables(config), config.data_dir / "catalog.db", limits)

    def _start_sink(self, entry: SinkEntry) -> None:
        sink = entry.sink
        if isinstance(sink, Sensors) and not sink.url:
            sink = msgspec.structs.replace(sink, url=f"sqlite:///{self.config.data_dir / 'catalog.db'}")
        stop = threading.Event()
        states, threads = [], []
        for topic in entry.topics:
            state = Delivery(entry.name, kind_of(sink), topic)
            states.append(state)
            threads.append(
                threading.Thread(
                    target=self._deliver.run,
                    args=(sink, state, stop),
                    kwargs={"start": entry.start},
                    name=f"sink-{entry.name}-{topic}",
                    daemon=True,
                )
            )
        self._sinks[entry.name] = (entry, states, threads, stop)
        for thread in threads:
            thread.start()

    def _stop_sink(self, name: str) -> None:
        if name in self._sinks:
            _, _, threads, stop = self._sinks.pop(name)
            self._join(threads, stop)

    def _start_source(self, entry: SourceEntry) -> None:
        source: Source = entry.source
        stop = threading.Event()
        shards, threads = [], []
        for shard_name in source.shards():
            shard = Shard(entry.name, kind_of(source), entry.topic, since_us=self.clock.now_us())
            shards.append(shard)
            threads.append(
                threading.Thread(
                    target=self.ingest.run,
                    args=(source, shard, shard_name, stop),
                    name=f"source-{entry.name}-{shard_name}",
                    daemon=True,
                )
            )
        self._sources[entry.name] = (entry, shards, threads, stop)
        for thread in threads:
            thread.start()

    def _stop_source(self, name: str, *, keep: bool = False) -> None:
        if name in self._sources:
            _, _, threads, stop = self._sources[name]
            self._join(threads, stop)
            if not keep:
                del self._sources[name]

    def _join(self, threads: list[threading.Thread], stop: threading.Event) -> None:
        stop.set()
        for thread in threads:
            while thread.is_alive():
                self.log.wake()
                thread.join(0.1)


def strangers(config: Config, log: Log) -> list[str]:
    """Readers with a position in the log that the configuration doesn't name; retention keeps rows for them."""
    known = {f"sink:{name}" for name in config.sinks}
    known |= {f"{kind}:{name}" for name in config.pipelines for kind in ("pipeline", "checkpoint")}
    return sorted(name for name in log.readers() if name not in known)


def delta_tables(config: Config) -> dict[str, DeltaTableRef]:
    """The Delta table of each topic that a delta sink stores: what queries read beside the log."""
    tables: dict[str, DeltaTableRef] = {}
    for entry in config.sinks.values():
        if isinstance(entry.sink, Delta):
            for topic in entry.topics:
                tables.setdefault(
                    topic,
                    DeltaTableRef(entry.sink.path, entry.sink.storage_options, entry.name),
                )
    return tables


def _at_interval(entry: SourceEntry, interval: str) -> SourceEntry:
    if "interval" not in entry.source.__struct_fields__:
        raise ConfigError(f"source {entry.name} ({kind_of(entry.source)}) has no interval")
    try:
        length = Duration.parse(float(interval) if interval.replace(".", "", 1).isdigit() else interval)
    except ValueError as error:
        raise ConfigError(f"interval: {error}") from None
    return dataclasses.replace(entry, source=msgspec.structs.replace(entry.source, interval=length))


def _differing(old: Any, new: Any) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]
