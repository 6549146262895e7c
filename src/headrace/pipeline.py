"""Pipeline: a frozen description, topic -> steps -> topic, built by YAML or by calls that read the same way.

pipeline("heat", "events").where("payload.temperature > 30").window("10s", by="source_id", avg="payload.temperature").to("hot")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headrace.component import Step, load
from headrace.errors import PlanError
from headrace.model import OPEN, UNSEEN, Rows, Topic, unify
from headrace.units import Duration


@dataclass(frozen=True)
class Pipeline:
    """Topics in, steps, a topic out. Every method gives a new Pipeline; nothing runs until an engine is handed one.

    `key` are the columns whose hash chooses the partition of the output topic (default: those of the last step that
    keeps state by key). `delay` is how far event time may be out of order across the input before rows count as late;
    `idle_after` is the silence after which a partition no longer holds the watermark back.
    """

    name: str
    topics: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    output: str = ""
    key: tuple[str, ...] = ()
    delay: Duration = Duration(0)
    idle_after: Duration = field(default_factory=lambda: Duration.parse("5s"))

    def step(self, step: Step) -> Pipeline:
        """Any step, made by hand."""
        return dataclasses.replace(self, steps=(*self.steps, step))

    def to(self, topic: str, *, key: Sequence[str] | str = ()) -> Pipeline:
        """Where the rows go."""
        return dataclasses.replace(self, output=topic, key=(key,) if isinstance(key, str) else tuple(key))

    def _make(self, kind: str, **options: Any) -> Pipeline:
        return self.step(_step(kind, options))

    def where(self, condition: str) -> Pipeline:
        """Keep the rows for which a SQL condition is true."""
        return self._make("where", condition=condition)

    def select(self, **columns: str) -> Pipeline:
        """Only these columns: name = SQL expression."""
        return self._make("select", columns=columns)

    def derive(self, **columns: str) -> Pipeline:
        """Add or replace columns: name = SQL expression."""
        return self._make("derive", columns=columns)

    def validate(self, **options: Any) -> Pipeline:
        """Check rows against rules; options as of the `validate` step."""
        return self._make("validate", **options)

    def unpivot(self, **options: Any) -> Pipeline:
        """One row for each numeric field of the payload; options as of the `unpivot` step."""
        return self._make("unpivot", **options)

    def enrich(self, **options: Any) -> Pipeline:
        """Add columns from a table that reloads; options as of the `enrich` step."""
        return self._make("enrich", **options)

    def dedupe(self, by: Sequence[str] | str, **options: Any) -> Pipeline:
        """Drop rows whose key was seen within a time; options as of the `dedupe` step."""
        return self._make("dedupe", by=by, **options)

    def window(self, length: str | None = None, **options: Any) -> Pipeline:
        """Aggregate by event time; options as of the `window` step (`by`, `avg`, `count`, `hop`, `gap`, ...)."""
        return self._make("window", **({"length": length} if length is not None else {}), **options)

    def moving_average(self, **options: Any) -> Pipeline:
        """Smooth a value per key; options as of the `moving_average` step."""
        return self._make("moving_average", **options)

    def sample(self, **options: Any) -> Pipeline:
        """Keep a share of the rows or of the keys; options as of the `sample` step."""
        return self._make("sample", **options)

    def join(self, other: str, **options: Any) -> Pipeline:
        """Join with another topic by key and time; options as of the `join` step."""
        return self._make("join", topic=other, **options)

    def apply(self, function: str | Callable[[Rows], Rows], **options: Any) -> Pipeline:
        """Call a Python function on Rows: the function, or its address as `package.module:name`."""
        if callable(function):
            if "<" in function.__qualname__:
                raise PlanError(
                    f"apply: {function.__qualname__} can't be named from another process; define it in a module"
                )
            function = f"{function.__module__}:{function.__qualname__}"
        return self._make("apply", function=function, **options)

    # -- types -------------------------------------------------------------------------------------

    def reads(self) -> tuple[str, ...]:
        """All topics read: those of the pipeline, then those that its steps ask for."""
        extra = [topic for step in self.steps for topic in step.reads()]
        return tuple(dict.fromkeys((*self.topics, *extra)))

    def schemas(self, topics: Mapping[str, Topic]) -> tuple[pa.Schema, ...]:
        """Columns before the first step, and after each; the last as the output topic has them (`settled`).

        Raises PlanError saying at which step and why.
        """
        schemas = self.within(topics)
        return (*schemas[:-1], settled(schemas[-1]))

    def within(self, topics: Mapping[str, Topic]) -> tuple[pa.Schema, ...]:
        """As `schemas`, the last as it leaves the last step."""
        missing = [name for name in self.reads() if name not in topics]
        if missing:
            raise PlanError(
                f"pipeline {self.name}: there is no topic {missing[0]!r}; there are {', '.join(sorted(topics))}"
            )
        schema = input_schema(self.topics, topics)
        schemas = [schema]
        for number, step in enumerate(self.bound(topics)):
            try:
                schema = step.output(schema)
            except PlanError as error:
                raise PlanError(
                    f"pipeline {self.name}, step {number + 1} ({_kind(step)}): {error}"
                ) from error
            schemas.append(schema)
        return tuple(schemas)

    def bound(self, topics: Mapping[str, Topic]) -> tuple[Step, ...]:
        """The steps, knowing the schemas of the topics they read beside the pipeline's own."""
        return tuple(step.bind({name: topics[name].schema for name in step.reads()}) for step in self.steps)

    def output_key(self, schemas: Sequence[pa.Schema]) -> tuple[str, ...]:
        """Columns of the output that choose its partition; `schemas` are the columns before each step and at the end.

        Without `key`, those by which the last step with keys keeps its state, under the names that it gives them: a
        window by `payload.room` has a column `room`. What the output has no column for is left out.
        """
        if self.key:
            return self.key
        keyed = [i for i, step in enumerate(self.steps) if step.key() is not None]
        if not keyed:
            return ()
        step, before, after = self.steps[keyed[-1]], schemas[keyed[-1]], schemas[keyed[-1] + 1]
        names = []
        for name in step.key() or ():
            short = name.rpartition(".")[2]
            made = short not in before.names or name.partition(".")[0] not in after.names
            names.append(name if name in after.names or not (made and short in after.names) else short)
        return tuple(name for name in dict.fromkeys(names) if name in schemas[-1].names)


def input_schema(names: Sequence[str], topics: Mapping[str, Topic]) -> pa.Schema:
    """The columns of several topics together; a column that one of them lacks is nullable."""
    schema = topics[names[0]].schema
    for name in names[1:]:
        other = topics[name].schema
        merged = unify(schema, other)
        common = set(schema.names) & set(other.names)
        schema = pa.schema(
            [f if f.name in common else f.with_nullable(True) for f in merged], metadata=merged.metadata
        )
    return schema


def is_open(field: pa.Field) -> bool:
    """Whether fields that haven't been seen yet may turn up in this struct."""
    return bool(field.metadata and field.metadata.get(b"headrace.open"))


def settled(schema: pa.Schema) -> pa.Schema:
    """`schema` as a topic keeps it."""
    if not any(_unseen(f) for f in schema):
        return schema
    return pa.schema(
        [pa.field(f.name, pa.null()) if _unseen(f) else f for f in schema], metadata=schema.metadata
    )


def settle(rows: Rows, schema: pa.Schema) -> Rows:
    """Rows of `schema` as a topic takes them."""
    if not any(_unseen(f) for f in schema):
        return rows
    arrays = [pa.nulls(rows.num_rows) if _unseen(f) else rows.column(f.name) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=settled(schema))


def _unseen(field: pa.Field) -> bool:
    return bool(field.metadata and UNSEEN.items() <= field.metadata.items())


def pipeline(name: str, *topics: str, delay: str = "0s", idle_after: str = "5s") -> Pipeline:
    """Begin a pipeline that reads `topics`."""
    if not topics:
        raise PlanError(f"pipeline {name}: name at least one topic to read")
    return Pipeline(name, topics, delay=Duration.parse(delay), idle_after=Duration.parse(idle_after))


def _kind(step: Step) -> str:
    from headrace.component import kind_of

    return kind_of(step)


def _step(kind: str, options: Mapping[str, Any]) -> Step:
    from headrace.config import build

    return build(load("steps", kind), options, where=kind)  # type: ignore[return-value]


__all__ = ["OPEN", "Pipeline", "input_schema", "is_open", "pipeline", "settle", "settled"]
