"""All that a contributor imports: Source, Step, Sink, the live objects they open, and how options are declared.

One pattern everywhere: a frozen description opens a live object. A component is a class whose annotated fields
are its options, with type, limits, default and description in one place; the reference pages and the JSON schema
are generated from them. Making a component never touches the world.

    class FileTail(Source, frozen=True, kw_only=True):
        '''Follow growing files.'''
        path: Annotated[str, option("file or glob to follow")]
        poll: Annotated[Duration, option("how often to look for new data")] = Duration.parse("250ms")

`kind: file_tail` in a configuration means `headrace/sources/file_tail.py`, class `FileTail`, imported only when named.
Outside the package, `kind: "acme.feeds:AcmeFeed"`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import msgspec
import pyarrow as pa

from headrace.errors import ConfigError, DataError, PlanError, RetryableError
from headrace.model import (
    DEAD_LETTERS,
    EVENTS,
    TIMESTAMP,
    Cursor,
    Epoch,
    Reject,
    Rows,
    Span,
    Topic,
    open_struct,
)  # fmt: skip
from headrace.units import Duration, Size

__all__ = [
    "DEAD_LETTERS", "EVENTS", "TIMESTAMP",
    "Arrival", "Aside", "Batching", "Component", "ConfigError", "Cursor", "DataError", "Duration", "Epoch", "Operator",
    "PlanError", "Reject", "RetryableError", "Rows", "Sink", "Size", "Source", "Span", "Step", "Topic", "Writer",
    "kind_of", "load", "option",
]  # fmt: skip

Family = Literal["sources", "steps", "sinks"]


def option(
    description: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    pattern: str | None = None,
    min_length: int | None = None,
    examples: list[Any] | None = None,
) -> msgspec.Meta:
    """What belongs to an option beside its type and default: a description and its limits."""
    given = {"ge": ge, "le": le, "gt": gt, "pattern": pattern, "min_length": min_length, "examples": examples}
    limits: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return msgspec.Meta(description=description, **limits)


class Component(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen description. Its fields are its options."""

    shorthand: ClassVar[str] = ""
    """The option that a bare value sets, as in `- where: "value > 3"`."""

    @classmethod
    def example(cls) -> Self:
        """An instance that works with nothing but a temporary folder and loopback; the conformance suites use it."""
        raise NotImplementedError(f"{cls.__name__}.example() is missing; the conformance suite needs it")

    def check(self) -> None:
        """Raise PlanError for options that contradict each other. Called once, after the types were checked."""

    def connect(self) -> None:
        """Reach what the options name, for `headrace check --connect`. Raises RetryableError with what to do."""


def kind_of(component: Component | type[Component]) -> str:
    """The `kind` under which a component is configured."""
    cls = component if isinstance(component, type) else type(component)
    package, _, module = cls.__module__.rpartition(".")
    if package in ("headrace.sources", "headrace.steps", "headrace.sinks"):
        return module
    return f"{cls.__module__}:{cls.__qualname__}"


def load(family: Family, kind: str) -> type[Component]:
    """The class of a kind. Raises LookupError when there is none, ImportError when its package isn't installed."""
    if ":" in kind:
        module_name, _, class_name = kind.partition(":")
        found = getattr(importlib.import_module(module_name), class_name, None)
    elif not re.fullmatch(r"[a-z][a-z0-9_]*", kind):
        raise LookupError(f"{kind!r} is not a kind")
    else:
        module_name = f"headrace.{family}.{kind}"
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name == module_name:
                raise LookupError(f"there is no {family[:-1]} of kind {kind!r}") from None
            raise
        found = getattr(module, "".join(word.title() for word in kind.split("_")), None)
    if not (isinstance(found, type) and issubclass(found, Component)):
        raise LookupError(f"{kind!r} names no {family[:-1]}")
    return found


# -- sources ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a source yields: rows, and where it stands after them. Both become durable together.

    `rejects` are what didn't parse; they go to the dead letters in the same transaction. `beside` are rows for other
    topics than the configured one. Empty rows with a new cursor are allowed; an Arrival with nothing in it
    (`Arrival()`) is a sign of life while there is no data, and stores nothing.
    """

    rows: Rows | None = None
    cursor: Cursor = None
    rejects: Sequence[Reject] = ()
    beside: Mapping[str, Rows] = field(default_factory=dict)


class Source(Component, frozen=True):
    """Brings rows in."""

    def schema(self) -> pa.Schema:
        """Columns of the rows, as far as they are known before reading. Fields that appear later are added."""
        raise NotImplementedError

    def topics(self) -> Mapping[str, pa.Schema]:
        """Topics besides the configured one that `Arrival.beside` may name, with their columns."""
        return {}

    def shards(self) -> Sequence[str]:
        """Names of independent readers, stable over restarts. Each is read in a thread of its own."""
        return ("0",)

    def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
        """Yield what comes after `cursor` (None: from the start), for ever or until the data ends.

        The generator is resumed only after what it yielded is durable, so the line after a `yield` may
        acknowledge. While idle, yields `Arrival()` at least once a second so that it can be stopped; on stop it is closed
        (GeneratorExit at the yield). Reading again from any cursor that was yielded gives the same rows that followed.
        Raises RetryableError for an outage: it is called again, with the last durable cursor, after a pause.
        """
        raise NotImplementedError


# -- steps -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Aside:
    """Rows that an operator could not use. `to` is a topic, or empty for the dead letters.

    `reasons` has one text a row. For the dead letters, the row is kept as JSON.
    """

    rows: Rows
    code: str
    reasons: Sequence[str]
    to: str = ""


class Operator(Protocol):
    """A step at work on one schema: stateful, single-threaded. No clock, no randomness, no I/O in `process`.

    Subclass it: `side`, `aside`, `refresh`, `snapshot` and `restore` have defaults for a stateless operator.
    """

    problem: str = ""
    """What doesn't work as it should while rows go on, and what to do about it: shown in health. Empty when all is well."""

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        """Output for `rows` (perhaps none), then for the watermark moving to `watermark_us` after them.

        Rows are late when they are below the watermark of the call before. Called with no rows when only time moves.
        The watermark never goes back. The result has exactly the columns of `Step.output`.
        """
        ...

    def side(self, topic: str, rows: Rows) -> None:
        """Rows of a topic in `Step.reads`, handed over before `process` in the same epoch."""
        raise TypeError(f"{type(self).__name__} reads no topic beside its own, and got rows of {topic}")

    def aside(self) -> Sequence[Aside]:
        """What the last `process` put aside. Handed out once."""
        return ()

    def refresh(self, now_us: int) -> None:
        """Called between epochs, where I/O is allowed: reload a lookup table."""
        return

    def snapshot(self) -> pa.Table:
        """The state as rows, key columns first. A table without columns when there is none."""
        return pa.table({})

    def restore(self, state: pa.Table) -> None:
        """Take over what `snapshot` gave, in a fresh operator, before the first `process`.

        The schema may have grown since; rows of several snapshots may have been put together or filtered by key.
        """
        return


class Step(Component, frozen=True):
    """One transformation of a pipeline."""

    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "map"
    """How rows are accounted for: `map` gives one row for each, `filter` drops some on purpose, `expand` and
    `absorb` give other rows than came in."""

    @classmethod
    def example_input(cls) -> Rows:
        """Rows that `example()` works on, in order of time; the conformance suite cuts them in every way.

        By default, readings of three devices with nested, missing and repeated values, as columns of events and, in the
        same row, of measurements.
        """
        fields = [pa.field("temperature", pa.float64()), pa.field("humidity", pa.int64())]
        measurement = [("sensor_id", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
        payload = open_struct([*fields, pa.field("battery", pa.struct([pa.field("volt", pa.float64())]))])
        return pa.RecordBatch.from_pylist(
            [
                {
                    "source_id": f"device-{i % 3}",
                    "timestamp": 1_700_000_000_000_000 + (i - i % 5) * 700_000,
                    "received_at": 1_700_000_000_250_000 + i * 700_000,
                    "event_type": (None, "reading", "reading", "status")[i % 4],
                    "payload": None
                    if i % 11 == 10
                    else {
                        "temperature": None if i % 7 == 6 else 15.0 + (i * 37 % 53),
                        "humidity": 40 + i * 13 % 70,
                        "battery": None if i % 4 else {"volt": 3.0 + i % 8 / 10},
                    },
                    "sensor_id": f"device-{i % 3}",
                    "metric": ("temperature", "humidity")[i // 3 % 2],
                    "value": None if i % 13 == 12 else float(i * 17 % 29),
                }
                for i in range(60)
            ],
            schema=pa.schema(
                [*list(EVENTS)[:-1], payload, *(pa.field(name, type_) for name, type_ in measurement)]
            ),
        )

    @classmethod
    def example_sides(cls) -> Mapping[str, Rows]:
        """For a step that reads other topics: rows of each, to go with `example_input()`."""
        return {}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Columns after this step. Raises PlanError naming the column and what was there."""
        raise NotImplementedError

    def asks(self) -> str:
        """What `output` must ask outside for its columns and may not reach, such as a database; empty for nothing.

        `headrace check` without `--connect` then takes the columns as unknown instead of calling `output`.
        """
        return ""

    def open(self, schema: pa.Schema) -> Operator:
        """The worker for rows of exactly `schema`. Raises PlanError as `output` does."""
        raise NotImplementedError

    def key(self) -> Sequence[str] | None:
        """Columns by which state is kept. None: no state. Empty: one state for all, so only one partition will do."""
        return None

    def reads(self) -> Sequence[str]:
        """Topics read besides the pipeline's own, partition by partition."""
        return ()

    def bind(self, schemas: Mapping[str, pa.Schema]) -> Self:
        """The step knowing the schemas of the topics it `reads`. Called before `output` and `open`."""
        return self


# -- sinks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batching:
    """A write happens when `rows` are waiting, or when the oldest has waited `interval`; it takes at most `max_rows`."""

    rows: int = 1
    max_rows: int = 100_000
    interval: Duration = Duration(0)


class Writer(Protocol):
    """A sink at work. Used by one thread."""

    def committed(self, partition: int) -> int:
        """The next offset wanted, as remembered in the target's own transaction; 0 at first. Asked once, at start."""
        ...

    def write(self, partition: int, rows: Rows, end: int) -> None:
        """Make `rows` durable together with the position `end`, or neither.

        `rows` end at offset `end`. Writing a span again that is in already does nothing. Raises RetryableError for
        an outage (the same rows come again) and DataError for rows that the target will never take (they go to the
        dead letters, the others come again).
        """
        ...

    def close(self) -> None:
        """Release what was opened. Nothing unwritten is held here."""


class Sink(Component, frozen=True):
    """Takes the rows of one or more topics out."""

    exactly_once: ClassVar[bool] = True
    """Whether the target keeps the position with the rows, so that rows written again are not there twice."""

    def batching(self) -> Batching:
        """How many rows to gather for one write."""
        return Batching()

    def open(self, topic: Topic, *, name: str) -> Writer:
        """A writer for rows of `topic`; `name` is the sink's name in the configuration, part of its identity."""
        raise NotImplementedError
