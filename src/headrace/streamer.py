"""DataStreamer: sources, a pipeline and listeners inside one Python process, without files or a server.

    streamer = DataStreamer(hr.pipeline("hot", "events").where("payload.temperature > 30"))
    streamer.add_source("readings", {"kind": "file_tail", "path": "readings.ndjson"})
    streamer.start_stream()
    for batch in streamer.get_stream():
        streamer.send_to_clients(streamer.process_data(batch))

It is made of the same parts as `headrace run`, over a log in memory: what was not yet taken when the process ends is
read again from the sources next time, or gone with them. Use `headrace run` where nothing may be lost.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

import msgspec
import pyarrow.compute as pc

from headrace.clock import Clock, SystemClock
from headrace.component import Arrival, Source, load
from headrace.config import build, kinds, load_config
from headrace.engine.chain import Chain
from headrace.engine.watermark import Watermark
from headrace.errors import ConfigError, HeadraceError
from headrace.ingest import Ingest, Shard
from headrace.log.memory import MemoryLog
from headrace.metrics import Metrics
from headrace.model import DEAD_LETTERS, EVENTS, Cursor, Rows, Topic, unify
from headrace.old_config import kind_named
from headrace.options import suggest
from headrace.pipeline import Pipeline, pipeline
from headrace.units import Duration, Size

_TOPIC = "events"
_READER = "streamer"


class DataStreamer:
    """Reads sources in threads, hands out batches, runs a pipeline on them, and passes them to listeners.

    `process` is the pipeline that `process_data` runs (its input and output topics don't matter here); without one,
    rows pass unchanged. `config` is a file of either layout whose sources are added. `buffer_size` bounds the rows
    waiting for `get_stream`: sources pause beyond it. `batch_size` is the most rows of one batch.
    """

    def __init__(
        self,
        process: Pipeline | None = None,
        *,
        config: str | Path | None = None,
        buffer_size: int = 100_000,
        batch_size: int = 10_000,
        clock: Clock | None = None,
    ) -> None:
        if buffer_size < 1 or batch_size < 1:
            raise ConfigError("buffer_size and batch_size must be at least 1")
        self._clock: Clock = clock or SystemClock()
        self._process = dataclasses.replace(process or pipeline("stream", _TOPIC), topics=(_TOPIC,))
        self._buffer_size, self._batch_size = buffer_size, batch_size
        self._log = MemoryLog(clock=self._clock)
        self._schema = EVENTS
        self._ingest: Ingest | None = None
        self._sources: dict[str, Source] = {}
        self._shards: list[Shard] = []
        self._threads: list[threading.Thread] = []
        self._stop, self._room = threading.Event(), threading.Event()
        self._taken = 0
        self._chain: Chain | None = None
        self._watermark = Watermark(self._process.delay, self._process.idle_after)
        self._clients: list[Client] = []
        self._lock = threading.Lock()
        if config is not None:
            for name, entry in load_config(Path(config)).sources.items():
                if entry.enabled:
                    self._add(name, entry.source)

    # -- sources -----------------------------------------------------------------------------------

    def add_source(self, name: str, options: Mapping[str, Any]) -> None:
        """Add a source before the start. `kind` (or `type`) in `options` says which; without it, `name` does.

        Raises ConfigError with every mistake in the options.
        """
        given = dict(options)
        kind = given.pop("kind", None) or given.pop("type", None) or name
        if ":" not in kind:
            kind = kind_named(str(kind))
        try:
            cls = load("sources", kind)
        except LookupError:
            raise ConfigError(
                f"{name}: sources of kind {kind!r} are not available in this version{suggest(kind, kinds('sources'))}"
            ) from None
        except ImportError as error:
            raise ConfigError(
                f"{name}: {kind} can't be imported: {error}; install the package it needs"
            ) from None
        source = build(cls, given, where=name)
        if not isinstance(source, Source):
            raise ConfigError(f"{name}: {kind} is not a source")
        self._add(name, source)

    def _add(self, name: str, source: Source) -> None:
        if self._threads:
            raise HeadraceError("add sources before start_stream")
        if name in self._sources:
            raise ConfigError(f"there is a source {name!r} already")
        self._schema = unify(self._schema, source.schema(), where=name)
        self._sources[name] = source

    # -- life --------------------------------------------------------------------------------------

    def start_stream(self) -> None:
        """Start reading all sources. Raises PlanError when the pipeline doesn't fit their columns."""
        if self._threads:
            raise HeadraceError("the stream runs already")
        if not self._sources:
            raise ConfigError("there is no source; call add_source first")
        # What was taken is dropped at once; the dead letters stay to be looked at, the newest of them.
        self._log.create(Topic(_TOPIC, self._schema, retention=Duration(0)))
        self._log.create(Topic("dead_letters", DEAD_LETTERS, max_size=Size.parse("16MiB")))
        for source in self._sources.values():
            for topic, schema in source.topics().items():
                self._log.create(Topic(topic, schema, max_size=Size.parse("16MiB")))
        self._mark(self._log.extent(_TOPIC, 0).end)
        self._chain = Chain(self._process, self._log.topics())
        self._ingest = Ingest(self._log, self._clock, Metrics())
        for name, source in self._sources.items():
            for shard_name in source.shards():
                shard = Shard(name, type(source).__name__, _TOPIC)
                self._shards.append(shard)
                paced = cast(Source, _Paced(source, self))
                thread = threading.Thread(
                    target=self._ingest.run, args=(paced, shard, shard_name, self._stop), name=f"source-{name}-{shard_name}", daemon=True
                )  # fmt: skip
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def get_stream(self) -> Iterator[Rows]:
        """Batches of rows as they arrive, until all sources have ended or `stop_stream` is called.

        A batch counts as taken when the next one is asked for.
        """
        if not self._threads:
            raise HeadraceError("call start_stream first")
        while True:
            ended = self._stop.is_set() or not any(thread.is_alive() for thread in self._threads)
            span = self._log.bounded(_TOPIC, 0, self._taken, max_rows=self._batch_size, max_bytes=2**26)
            if len(span):
                yield self._log.read(_TOPIC, 0, span)
                self._mark(span.end)
            elif ended:
                return self._raise_failures()
            else:
                self._log.wait({(_TOPIC, 0): self._taken}, 0.2)

    def stop_stream(self) -> None:
        """Stop reading; `get_stream` ends after what has arrived."""
        self._stop.set()
        self._room.set()
        self._log.wake()
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join()

    def close(self) -> None:
        """Stop, and let everything go."""
        self.stop_stream()
        for client in list(self._clients):
            client.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- processing --------------------------------------------------------------------------------

    def process_data(self, batch: Rows) -> Rows:
        """What the pipeline makes of a batch. Windows come out when event time has passed them."""
        if self._chain is None:
            raise HeadraceError("call start_stream first")
        now = self._clock.monotonic()
        at = self._log.topics()[_TOPIC].at
        if batch.num_rows and at in batch.schema.names:
            newest = pc.max(batch.column(at)).value
            if newest is not None:
                self._watermark.see((_TOPIC, 0), newest, now)
        return self._chain.process([batch], {}, self._watermark.advance(now)).rows

    def dead_letters(self) -> list[dict[str, Any]]:
        """What could not be read, with reason and original bytes: the newest, as rows."""
        extent = self._log.extent("dead_letters", 0)
        return cast("list[dict[str, Any]]", self._log.read("dead_letters", 0, extent).to_pylist())

    def status(self) -> list[dict[str, Any]]:
        """State and counts of each source shard."""
        return [cast("dict[str, Any]", msgspec.to_builtins(shard)) for shard in self._shards]

    # -- clients -----------------------------------------------------------------------------------

    def connect(self, listener: Callable[[Rows], object] | None = None, *, buffer_size: int = 1000) -> Client:
        """A client of `send_to_clients`: `listener` is called with each batch, or the client is iterated over.

        A client that is iterated holds `buffer_size` batches; when it is slower, the oldest are dropped and counted.
        """
        client = Client(self, listener, buffer_size)
        with self._lock:
            self._clients.append(client)
        return client

    def send_to_clients(self, batch: Rows) -> int:
        """Pass rows to all clients; gives their number. Empty batches are not passed."""
        with self._lock:
            clients = list(self._clients)
        if batch.num_rows:
            for client in clients:
                client.put(batch)
        return len(clients)

    def disconnect(self, client: Client) -> None:
        """Forget a client."""
        with self._lock, suppress(ValueError):
            self._clients.remove(client)

    # -- bounds ------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Rows that have arrived and were not taken yet."""
        return self._log.extent(_TOPIC, 0).end - self._taken

    def wait_for_room(self) -> bool:
        """Called by sources: True when there is room for more rows, after a moment at most."""
        if self.waiting() < self._buffer_size:
            return True
        self._room.clear()
        if self.waiting() >= self._buffer_size and not self._stop.is_set():
            self._clock.wait(self._room, 0.2)
        return self.waiting() < self._buffer_size

    def _mark(self, offset: int) -> None:
        self._taken = offset
        with self._log.transaction() as transaction:
            transaction.position(_READER, _TOPIC, 0, offset)
        self._log.retain(self._clock.now_us())
        self._room.set()

    def _raise_failures(self) -> None:
        failed = [f"{shard.name}: {shard.last_error}" for shard in self._shards if shard.state == "failed"]
        if failed:
            raise HeadraceError("; ".join(failed))


class Client:
    """One listener. Iterating waits for batches until it is closed; `dropped` counts those it was too slow for."""

    def __init__(
        self, streamer: DataStreamer, listener: Callable[[Rows], object] | None, buffer_size: int
    ) -> None:
        self._streamer = streamer
        self._listener = listener
        self._batches: deque[Rows] = deque()
        self._buffer_size = max(buffer_size, 1)
        self._news = threading.Condition()
        self._closed = False
        self.dropped = 0

    def put(self, batch: Rows) -> None:
        """Take one batch."""
        if self._listener is not None:
            self._listener(batch)
            return
        with self._news:
            if len(self._batches) >= self._buffer_size:
                self._batches.popleft()
                self.dropped += 1
            self._batches.append(batch)
            self._news.notify()

    def close(self) -> None:
        """Leave; iterating ends after what is there."""
        self._streamer.disconnect(self)
        with self._news:
            self._closed = True
            self._news.notify_all()

    def __iter__(self) -> Iterator[Rows]:
        while True:
            with self._news:
                while not self._batches and not self._closed:
                    self._news.wait()
                if not self._batches:
                    return
                batch = self._batches.popleft()
            yield batch


class _Paced:
    """A source that pauses between arrivals while too many rows are waiting."""

    def __init__(self, source: Source, streamer: DataStreamer) -> None:
        self._source = source
        self._streamer = streamer

    def shards(self) -> Sequence[str]:
        return self._source.shards()

    def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
        arrivals = self._source.read(shard, cursor)
        try:
            for arrival in arrivals:
                yield arrival
                while not self._streamer.wait_for_room():
                    yield Arrival()
        finally:
            cast(Any, arrivals).close()
