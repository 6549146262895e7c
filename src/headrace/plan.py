"""Which topics a configuration implies, and with which columns: through every step, in order of what feeds what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.component import Step, kind_of
from headrace.errors import PlanError, RetryableError
from headrace.model import DEAD_LETTERS, EVENTS, TIMESTAMP, TYPES, Topic, open_struct, unify
from headrace.options import shown, suggest
from headrace.pipeline import Pipeline, input_schema, settled

if TYPE_CHECKING:
    from headrace.config import SinkEntry, SourceEntry, TopicOptions

DEAD_LETTERS_RESOLVED = pa.schema(
    [
        pa.field("timestamp", TIMESTAMP, nullable=False),  # when it was dealt with
        pa.field("partition", pa.int32(), nullable=False),  # where the row is in `dead_letters`
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("action", pa.string(), nullable=False),  # `replay` or `drop`
        pa.field("reason", pa.string()),
    ]
)
"""What was done about a dead letter: rows with an entry here are no longer listed."""

Report = Callable[..., None]


def plan_topics(
    declared: Mapping[str, TopicOptions],
    sources: Mapping[str, SourceEntry],
    pipelines: Mapping[str, Pipeline],
    sinks: Mapping[str, SinkEntry],
    broken: bool,
    report: Report,
    warn: Report | None = None,
) -> dict[str, Topic]:
    """All topics with their schemas. `report(path, what)` gets every mismatch.

    With `broken`, some source or pipeline is missing because of its own mistake, so a topic nobody writes is no news.
    With `warn`, nothing outside is asked: it gets the steps whose columns stay unknown, and so do topics after them.
    """
    plan = _Plan(declared, report, warn)
    plan.fixed()
    for name, options in declared.items():
        if options.schema:
            plan.declare(name, options.schema)
    for entry in sources.values():
        plan.source(entry)
    written = {p.output for p in pipelines.values()} | {t for p in pipelines.values() for t, _ in _late(p)}
    for name in declared:
        if name not in plan.topics and name not in written:
            plan.add(name, EVENTS, ("topics", name))  # rows come by HTTP
    plan.pipelines(pipelines, broken)
    for sink in sinks.values():
        for i, topic in enumerate(sink.topics):
            if topic not in plan.topics and not (broken or topic in plan.unknown):
                report(
                    ("sinks", sink.name, "from", i),
                    f"there is no topic {topic!r}{suggest(topic, plan.topics)}",
                )
    plan.clashes()
    return plan.topics


def columns(spec: Mapping[str, Any], path: tuple[str | int, ...], report: Report) -> list[pa.Field]:
    """Fields from `name: type`; a nested mapping is a struct that may grow."""
    fields = []
    for name, kind in spec.items():
        if isinstance(kind, Mapping):
            fields.append(open_struct(columns(kind, (*path, name), report), name))
            continue
        inner = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
        found = TYPES.get(inner) if isinstance(inner, str) else None
        if found is None:
            near = (
                suggest(inner, TYPES) if isinstance(inner, str) else f"; there are {', '.join(sorted(TYPES))}"
            )
            report((*path, name), f"{shown(kind)} is not a type{near}")
            continue
        fields.append(pa.field(name, pa.list_(found) if inner is not kind else found))
    return fields


def _late(pipeline: Pipeline) -> list[tuple[str, int]]:
    """(topic, step number) of the steps that put late rows into a topic."""
    return [(step.late, i) for i, step in enumerate(pipeline.steps) if getattr(step, "late", "")]  # type: ignore[attr-defined]


class _Plan:
    def __init__(
        self, declared: Mapping[str, TopicOptions], report: Report, warn: Report | None = None
    ) -> None:
        self.declared = declared
        self.report = report
        self.warn = warn
        self.topics: dict[str, Topic] = {}
        self.unknown: set[str] = set()  # topics whose writer could not be planned: reported already

    def fixed(self) -> None:
        """Topics that are always there."""
        self.add("events", EVENTS, ("topics", "events"))
        self.add("dead_letters", DEAD_LETTERS, ("topics", "dead_letters"))
        self.add("dead_letters_resolved", DEAD_LETTERS_RESOLVED, ("topics", "dead_letters_resolved"))

    def declare(self, name: str, spec: Mapping[str, Any]) -> None:
        place = ("topics", name, "schema")
        schema = pa.schema(columns(spec, place, self.report))
        if name != "events" and isinstance(spec.get("payload"), Mapping):
            schema = self.unified(EVENTS, schema, place) or EVENTS
        self.add(name, schema, place)

    def source(self, entry: SourceEntry) -> None:
        place = ("sources", entry.name)
        try:
            schemas = {entry.topic: entry.source.schema(), **entry.source.topics()}
        except PlanError as error:
            self.report(place, str(error))
            self.unknown.add(entry.topic)
            return
        for topic, schema in schemas.items():
            self.add(topic, schema, place)

    def add(
        self, name: str, schema: pa.Schema, place: tuple[str | int, ...], key: Iterable[str] = ()
    ) -> None:
        """A writer of `name` gives rows of `schema`: a new topic, or new columns of one that exists."""
        options = self.declared.get(name)
        existing = self.topics.get(name)
        if existing is not None:
            schema = self.unified(existing.schema, schema, place)
            if schema is None:
                return
            key = existing.key or key
        at = self.time_column(name, schema, options)
        if options is None:
            self.topics[name] = Topic(name, schema, key=self.key(schema, key), at=at)
            return
        missing = [column for column in options.key if column not in schema.names]
        for column in missing:
            self.report(
                ("topics", name, "key"), f"there is no column {column!r}{suggest(column, schema.names)}"
            )
        self.topics[name] = Topic(
            name, schema, partitions=options.partitions, key=options.key or self.key(schema, key), at=at,
            on_new_field=options.on_new_field, max_fields=options.max_fields, retention=options.retention,
            max_size=options.max_size,
        )  # fmt: skip

    def key(self, schema: pa.Schema, key: Iterable[str]) -> tuple[str, ...]:
        """The key as far as the topic has those columns; rows that name their source are kept together by it."""
        found = tuple(column for column in key if column in schema.names)
        return found or (("source_id",) if schema.names[:1] == ["source_id"] else ())

    def unified(self, have: pa.Schema, schema: pa.Schema, place: tuple[str | int, ...]) -> pa.Schema | None:
        try:
            return unify(have, schema)
        except PlanError as error:
            self.report(place, f"its columns do not fit those that the topic has already: {error}")
            return None

    def time_column(self, name: str, schema: pa.Schema, options: TopicOptions | None) -> str:
        """The declared event-time column, or the one that is there; empty when the rows carry no time."""
        times = [f.name for f in schema if pa.types.is_timestamp(f.type)]
        if options is not None and options.at:
            if options.at not in times:
                there = f"; there are {', '.join(times)}" if times else "; there is none"
                self.report(("topics", name, "at"), f"{options.at!r} is not a column with a timestamp{there}")
            return options.at
        return next((t for t in ("timestamp", "window_start") if t in times), times[0] if times else "")

    def clashes(self) -> None:
        seen: dict[str, str] = {}
        for name in self.topics:
            other = seen.setdefault(name.lower(), name)
            if other != name:
                self.report(
                    ("topics", name), f"differs from topic {other} only by case; SQL can't tell them apart"
                )

    # -- pipelines ---------------------------------------------------------------------------------

    def pipelines(self, pipelines: Mapping[str, Pipeline], broken: bool) -> None:
        """Each once all that feeds it is planned."""
        left = dict(pipelines)
        while left:
            pending = {t for p in left.values() for t in (p.output, *(late for late, _ in _late(p)))}
            ready = [p for p in left.values() if not pending.intersection(p.reads())]
            if not ready:
                return self.circle(left)
            for p in ready:
                del left[p.name]
                self.pipeline(p, broken)
        return None

    def circle(self, left: Mapping[str, Pipeline]) -> None:
        """Of what is left, some feed themselves; the others only wait for them."""
        for name in left:
            path, seen = [name], {name}
            while True:
                reads = left[path[-1]].reads()
                feeder = next(
                    (p.name for p in left.values() if {p.output, *(t for t, _ in _late(p))} & set(reads)),
                    None,
                )
                if feeder is None or feeder in seen:
                    break
                path.append(feeder)
                seen.add(feeder)
            if feeder == name:
                way = " <- ".join([*path, name])
                self.report(
                    ("pipelines", name), f"reads what it writes itself: {way}; write to another topic"
                )
        self.unknown |= {p.output for p in left.values()}

    def pipeline(self, pipeline: Pipeline, broken: bool) -> None:
        place: tuple[str | int, ...] = ("pipelines", pipeline.name)
        outputs = {pipeline.output, *(late for late, _ in _late(pipeline))}
        missing = [name for name in pipeline.reads() if name not in self.topics]
        for name in missing:
            if not (broken or name in self.unknown):
                at = (*place, "from", pipeline.topics.index(name)) if name in pipeline.topics else place
                self.report(at, f"there is no topic {name!r}{suggest(name, self.topics)}")
        schemas = [] if missing else self.steps(pipeline, place)
        if not schemas:
            self.unknown |= outputs - self.topics.keys()
            return
        self.keys(pipeline, place)
        schema = schemas[-1]
        for column in pipeline.key:
            if column not in schema.names:
                self.report((*place, "key"), f"there is no column {column!r}{suggest(column, schema.names)}")
        self.add(pipeline.output, schema, (*place, "to"), pipeline.output_key(schemas))

    def steps(self, pipeline: Pipeline, place: tuple[str | int, ...]) -> list[pa.Schema]:
        """Columns before the first step and after each; none after reporting at which step they don't fit."""
        try:
            schema = input_schema(pipeline.topics, self.topics)
        except PlanError as error:
            self.report((*place, "from"), f"these topics can't be read together: {error}")
            return []
        if not any(self.topics[t].at for t in pipeline.topics):
            self.report(
                (*place, "from"),
                f"{pipeline.topics[0]} has no column with a timestamp, so it has no event time",
            )
            return []
        schemas = [schema]
        for i, step in enumerate(pipeline.steps):
            at = (*place, "steps", i, kind_of(step))
            late = getattr(step, "late", "")
            try:
                step = step.bind({name: self.topics[name].schema for name in step.reads()})
                if late:
                    self.add(late, settled(schema), at, step.key() or ())
                asks = step.asks() if self.warn is not None else ""
                if asks and self.warn is not None:
                    self.warn(
                        at,
                        f"its columns come from {asks}; the steps after it are not checked. "
                        "Say `types` for all its `columns`, or use --connect",
                    )
                    return []
                schema = step.output(schema)
                schemas.append(schema)
            except PlanError as error:
                self.report(at, str(error))
                return []
            except RetryableError as error:
                self.report(at, f"{error}; make it reachable, or say `types` for all its `columns`")
                return []
        return [*schemas[:-1], settled(schemas[-1])]

    def keys(self, pipeline: Pipeline, place: tuple[str | int, ...]) -> None:
        """A worker has some partitions of each topic: all rows of one key must be in those."""
        topics = [self.topics[name] for name in pipeline.reads()]
        most = max(topics, key=lambda t: t.partitions)
        if most.partitions == 1:
            return
        for i, step in enumerate(pipeline.steps):
            wanted = step.key()
            if wanted is None:
                continue
            at = (*place, "steps", i, kind_of(step))
            problem = _split(step, tuple(wanted), topics, most)
            if problem:
                self.report(at, problem)
                return


def _split(step: Step, wanted: tuple[str, ...], topics: list[Topic], most: Topic) -> str:
    """Why rows of one key of `step` would be in partitions of different workers; empty when they aren't."""
    kind = kind_of(step)
    if not wanted:
        return (
            f"{kind} keeps one state for all rows, but {most.name} has {most.partitions} partitions; "
            f"set topics.{most.name}.partitions to 1, or give {kind} a key"
        )
    by = ", ".join(wanted)
    for topic in topics:
        if topic.partitions != most.partitions:
            return (
                f"{topic.name} has {topic.partitions} partitions and {most.name} {most.partitions}, so rows of one {by} "
                f"would not meet; give both the same number and key"
            )
        if not topic.key or not set(topic.key) <= set(wanted):
            cut = f"by {', '.join(topic.key)}" if topic.key else "without a key"
            return (
                f"{kind} works by {by}, but {topic.name} is cut {cut} into {topic.partitions} partitions; write to a topic "
                f"with key [{by}] first and do this step in a second pipeline that reads it, or set its partitions to 1"
            )
    return ""
