"""One YAML file becomes one frozen `Config`; every mistake in it is shown at once, with its position.

The file's layout is `topics, sources, pipelines, sinks, server, engine, log, data_dir`. Reading it touches nothing
outside; a component's package is imported only when its kind is named.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from headrace.component import Sink, Source, option
from headrace.errors import ConfigError, Problem
from headrace.model import Topic
from headrace.options import build
from headrace.pipeline import Pipeline
from headrace.units import Duration, Size
from headrace.yaml_positions import Document, parse, read_env_file, substitute

__all__ = [
    "Config", "EngineOptions", "ServerOptions", "SinkEntry", "SourceEntry", "TopicOptions", "build", "default_text",
    "kinds", "load_config",
]  # fmt: skip

SHIPPED = "default.yaml"
"""The file name in messages about the configuration that comes with headrace."""

DATA_DIR = "headrace-data"
"""Where headrace keeps its data unless told otherwise, in the current directory."""

DEMO = ("machine", "fleet")
"""Sources of the shipped configuration that `--no-demo` leaves out."""

Start = Literal["earliest", "latest"]


@dataclass(frozen=True)
class SourceEntry:
    """A configured source and the topic its rows go to."""

    name: str
    source: Source
    topic: str
    enabled: bool = True


@dataclass(frozen=True)
class SinkEntry:
    """A configured sink and the topics it takes. `start` counts only while the sink has no position yet."""

    name: str
    sink: Sink
    topics: tuple[str, ...]
    start: Start = "earliest"


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server: where it listens, and the limits that keep it standing."""

    host: Annotated[str, option("address to listen on; 0.0.0.0 means every network")] = "127.0.0.1"
    hosts: Annotated[tuple[str, ...], option("further names under which the server may be called")] = ()
    port: Annotated[int, option("port to listen on; 0 takes a free one", ge=0, le=65535)] = 8080
    max_body: Annotated[Size, option("largest request body, as sent")] = Size(16 * 2**20)
    max_decompressed: Annotated[Size, option("largest request body after gzip or zstd")] = Size(64 * 2**20)
    max_field: Annotated[
        Size, option("largest single value in a row; a row with a larger one is rejected")
    ] = Size(2**20)
    max_future: Annotated[Duration, option("how far ahead of this machine's clock an event may be")] = (
        Duration(300_000_000)
    )
    max_in_flight: Annotated[
        Size, option("request bytes held in memory at once; beyond it senders get 429")
    ] = Size(256 * 2**20)
    max_connections: Annotated[int, option("open connections at once; beyond it new ones get 503", ge=1)] = (
        10_000
    )
    query_timeout: Annotated[Duration, option("longest run of one SQL query", gt=0)] = Duration(10_000_000)
    query_memory: Annotated[Size, option("memory that SQL queries may use together", ge=64 * 2**20)] = Size(
        512 * 2**20
    )


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pipelines are run."""

    workers: Annotated[int, option("workers that share the partitions of a pipeline", ge=1, le=256)] = 1
    checkpoint_interval: Annotated[Duration, option("how often operator state is saved", gt=0)] = Duration(
        5_000_000
    )
    max_epoch_rows: Annotated[int, option("most rows in one micro-batch", ge=1)] = 100_000
    max_epoch_size: Annotated[Size, option("most bytes in one micro-batch", ge=1)] = Size(64 * 2**20)


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said about a topic. Topics that sources and pipelines write exist without it."""

    partitions: Annotated[
        int, option("parts that can be worked on in parallel; fixed once rows are in", ge=1, le=1024)
    ] = 1
    key: Annotated[tuple[str, ...], option("columns whose hash chooses the partition")] = ()
    at: Annotated[str, option("column with the event time; default `timestamp`, else `window_start`")] = ""
    on_new_field: Annotated[
        Literal["evolve", "freeze", "discard"],
        option(
            "a field not in the schema: add it (`evolve`), reject the row (`freeze`) or drop the field (`discard`)"
        ),
    ] = "evolve"
    max_fields: Annotated[int, option("most fields the schema may grow to", ge=1, le=10_000)] = 500
    retention: Annotated[
        Duration, option("how long rows are kept; longer while a reader still needs them")
    ] = Topic.retention
    max_size: Annotated[Size, option("most bytes kept on disk per topic, oldest rows go first")] = (
        Topic.max_size
    )
    schema: Annotated[
        dict[str, Any],
        option("column to type, or to a mapping for a struct; `payload` extends the event envelope"),
    ] = {}


@dataclass(frozen=True)
class Config:
    """Everything that runs. `warnings` are for the eye: what was understood, but won't do what may be expected.

    `file` is the path that was read, empty for the shipped configuration.
    """

    topics: Mapping[str, Topic] = field(default_factory=dict)
    sources: Mapping[str, SourceEntry] = field(default_factory=dict)
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    sinks: Mapping[str, SinkEntry] = field(default_factory=dict)
    log: str = "sqlite"
    data_dir: Path = Path(DATA_DIR)
    server: ServerOptions = field(default_factory=ServerOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    warnings: tuple[Problem, ...] = ()
    file: str = ""


def load_config(
    path: Path | None,
    *,
    sets: Sequence[str] = (),
    env: Mapping[str, str] = os.environ,
    demo: bool = True,
    data_dir: str | Path | None = None,
    host: str | None = None,
    port: int | None = None,
    ask: bool = True,
) -> Config:
    """Read `path`, or the shipped default pipelines (with `demo=False` without their two sources).

    `sets` are `key.path=value` texts laid over the file. `data_dir`, `host` and `port` win over HEADRACE_DATA_DIR,
    HEADRACE_HOST and HEADRACE_PORT, and those over the file. Without `ask` nothing outside is reached: a topic whose columns only a database
    knows is left out, with a warning. Raises ConfigError with all problems.
    """
    from headrace.config_reader import Reader  # it needs the classes above

    if path is None:
        document = parse(default_text(), SHIPPED)
        if not demo:
            for name in DEMO:
                document.value["sources"].pop(name, None)
    else:
        document = _read(path)
        env = {**_beside(path), **env}
    reader = Reader(document, ask=ask)
    if reader.old_style():
        from headrace.old_config import modernise

        document = modernise(document, parse(default_text(), SHIPPED), reader.warnings)
        reader = Reader(document, reader.warnings, ask=ask)
    reader.override(sets)
    reader.problems += substitute(reader.document, env)
    return reader.config(env, data_dir, host, port)


def default_text() -> str:
    """The shipped default configuration, comments and all."""
    return resources.files("headrace").joinpath("default.yaml").read_text("utf-8")


def kinds(family: Literal["sources", "steps", "sinks"]) -> tuple[str, ...]:
    """Kinds that come with headrace, without importing them: modules that hold the class of their name."""
    package = resources.files("headrace").joinpath(family)
    names = [m.name for m in pkgutil.iter_modules([str(package)]) if not m.name.startswith("_")]
    return tuple(
        sorted(
            n for n in names if f"class {class_name(n)}(" in package.joinpath(f"{n}.py").read_text("utf-8")
        )
    )


def class_name(kind: str) -> str:
    """`file_tail` as `FileTail`."""
    return "".join(word.title() for word in kind.split("_"))


def _read(path: Path) -> Document:
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError([Problem("", f"can't be read: {error.strerror or error}", str(path))]) from None


def _beside(path: Path) -> Mapping[str, str]:
    try:
        return read_env_file((path.parent / ".env").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
