"""Run a pipeline over a past span of its topics into a shadow topic, and compare with what it wrote then.

Nothing that runs is touched: positions, state and the real output topic stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from headrace.component import Step
from headrace.engine.chain import Chain
from headrace.engine.watermark import NONE_US, Input, Watermark
from headrace.errors import PlanError
from headrace.log import Log
from headrace.model import Rows, Span, concat, split
from headrace.pipeline import Pipeline
from headrace.units import Duration

_ROWS = 50_000  # of one epoch
_COMPARED = 2_000_000  # rows compared at most; more needs a narrower span
_DIGITS = 9  # significant digits at which floating-point values count as the same


@dataclass(frozen=True)
class Replay:
    """What a replay gave. `missing` and `extra` are rows of the real output that the replay lacks, and the other way
    round, where both can be expected to be whole; `lost` and `added` are columns."""

    shadow: str
    read: int
    written: int
    dead: int
    late: int
    same: int
    missing: pa.Table
    extra: pa.Table
    lost: Sequence[str]
    added: Sequence[str]

    @property
    def differs(self) -> bool:
        return bool(self.missing.num_rows or self.extra.num_rows or self.lost or self.added)


@dataclass
class _Run:
    """One pipeline over its spans: the rows it gave, and between which event times they are whole."""

    schema: pa.Schema
    rows: list[Rows] = field(default_factory=list)
    read: int = 0
    written: int = 0
    dead: int = 0
    late: int = 0
    whole_from_us: int = NONE_US  # rows before the span reached up to here
    whole_to_us: int = NONE_US  # windows that end later may be open yet


def replay(
    pipeline: Pipeline,
    log: Log,
    *,
    start_us: int,
    end_us: int,
    shadow: str = "",
    others: Sequence[Pipeline] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Run `pipeline` over the rows appended between two wall-clock times (microseconds since 1970).

    `others` are pipelines that write the same topic: they run as well, so that their rows aren't missed, but not into
    the shadow topic. The state begins empty, so windows that were open at `start_us` are left out of the comparison, and
    so are those still open at the end. The replay reads in larger parts than the pipeline did, so rows that were late
    then may be in time now. `progress` is told rows done and rows in all.
    """
    topics = log.topics()
    shadow = shadow or f"{pipeline.output}_replay"
    real = topics.get(pipeline.output)
    if real is None:
        raise PlanError(f"pipeline {pipeline.name} has no output topic {pipeline.output!r} to compare with")
    if shadow in topics and (shadow in pipeline.reads() or shadow == pipeline.output):
        raise PlanError(f"{shadow} is a topic of the pipeline itself; choose another shadow topic")
    schemas = pipeline.schemas(topics)
    log.create(dataclasses.replace(real, name=shadow, schema=schemas[-1], key=pipeline.output_key(schemas)))
    spans = [_spans(one, log, start_us, end_us) for one in (pipeline, *others)]
    total, done = sum(len(span) for found in spans for span in found.values()), 0
    runs: list[_Run] = []
    for one, found in zip((pipeline, *others), spans, strict=True):
        for run in _run(one, log, found, "" if runs else shadow):
            progress(done + run.read, total)
        done += run.read
        runs.append(run)
    before = _real_rows(log, pipeline.output, start_us)
    columns = schemas[-1].names if not others else [f for run in runs for f in run.schema.names]
    after = pa.concat_tables(
        [pa.Table.from_batches([concat(run.rows, run.schema)]) for run in runs], promote_options="permissive"
    )
    first = max(run.whole_from_us for run in runs)
    last = min(run.whole_to_us for run in runs)
    same, missing, extra = _difference(pa.Table.from_batches([before]), after, real.at, first, last)
    return Replay(
        shadow, runs[0].read, runs[0].written, runs[0].dead, runs[0].late, same, missing, extra,
        lost=[name for name in before.schema.names if name not in columns],
        added=[name for name in columns if name not in before.schema.names],
    )  # fmt: skip


def _spans(pipeline: Pipeline, log: Log, start_us: int, end_us: int) -> dict[Input, Span]:
    topics = log.topics()
    return {
        (name, partition): _between(log, name, partition, start_us, end_us)
        for name in pipeline.reads()
        for partition in range(topics[name].partitions)
    }


def _run(pipeline: Pipeline, log: Log, spans: Mapping[Input, Span], shadow: str) -> Iterator[_Run]:
    """Yields after each epoch, and once more at the end: always the same object."""
    topics = log.topics()
    chain = Chain(pipeline, topics)
    run = _Run(chain.schemas[-1])
    watermark = Watermark(pipeline.delay, pipeline.idle_after)
    positions = {source: span.start for source, span in spans.items()}
    run.whole_from_us = max(
        (_newest_before(log, *source, span) for source, span in spans.items()), default=NONE_US
    )
    run.whole_from_us += max((_reach_us(step) for step in pipeline.steps), default=0)
    total = sum(len(span) for span in spans.values())
    while run.read < total:
        inputs: list[Rows] = []
        sides: dict[str, list[Rows]] = {}
        for source, span in spans.items():
            part = Span(positions[source], min(positions[source] + _ROWS, span.end))
            if not len(part):
                continue
            rows = log.read(*source, part)
            positions[source] = part.end
            run.read += len(part)
            newest = _newest(rows, topics[source[0]].at)
            if newest != NONE_US:
                watermark.see(source, newest, 0.0)
            if source[0] in pipeline.topics:
                inputs.append(rows)
            sides.setdefault(source[0], []).append(rows)
        outcome = chain.process(inputs, sides, watermark.advance(0.0))
        if shadow:
            run.written += _write(log, shadow, outcome.rows)
        run.dead += outcome.counts["dead"]
        run.late += outcome.counts["late"]
        if sum(rows.num_rows for rows in run.rows) < _COMPARED:
            run.rows.append(outcome.rows)
        yield run
    lateness = max((_option_us(step, "allowed_lateness") for step in pipeline.steps), default=0)
    run.whole_to_us = watermark.current_us - lateness
    yield run


def _newest(rows: Rows, at: str) -> int:
    value = pc.max(rows.column(at)).value if at in rows.schema.names and rows.num_rows else None
    return NONE_US if value is None else int(value)


def _newest_before(log: Log, topic: str, partition: int, span: Span) -> int:
    """How far event time had come before a span, as its last rows tell."""
    start = max(log.extent(topic, partition).start, span.start - _ROWS)
    if start >= span.start:
        return NONE_US
    return _newest(log.read(topic, partition, Span(start, span.start)), log.topics()[topic].at)


def _reach_us(step: Step) -> int:
    """How much longer than its rows a session goes on."""
    return _option_us(step, "gap")


def _option_us(step: Step, name: str) -> int:
    value = getattr(step, name, None)
    return value.us if isinstance(value, Duration) else 0


def _between(log: Log, topic: str, partition: int, start_us: int, end_us: int) -> Span:
    extent = log.extent(topic, partition)
    start = max(log.nearest(topic, partition, start_us), extent.start)
    return Span(start, max(start, min(log.nearest(topic, partition, end_us), extent.end)))


def _write(log: Log, topic: str, rows: Rows) -> int:
    spec = log.topics()
    for partition, part in split(rows, spec[topic].key, spec[topic].partitions).items():
        log.append(topic, partition, part)
    return int(rows.num_rows)


def _real_rows(log: Log, topic: str, start_us: int) -> Rows:
    spec = log.topics()[topic]
    batches: list[Rows] = []
    for partition in range(spec.partitions):
        extent = log.extent(topic, partition)
        position = max(extent.start, log.nearest(topic, partition, start_us))
        while position < extent.end and sum(rows.num_rows for rows in batches) < _COMPARED:
            span = Span(position, min(position + _ROWS, extent.end))
            batches.append(log.read(topic, partition, span))
            position = span.end
    return concat(batches, spec.schema)


def _difference(
    before: pa.Table, after: pa.Table, at: str, first_us: int, last_us: int
) -> tuple[int, pa.Table, pa.Table]:
    """Rows in both, only in `before`, only in `after`, where both are whole."""
    columns = [name for name in after.schema.names if name in before.schema.names]
    old, new = (_comparable(rows.select(columns)) for rows in (before, after))
    for name in columns:
        if old.schema[name] != new.schema[name]:  # a column that has changed its type: by its text
            old, new = (frame.with_columns(pl.col(name).cast(pl.String)) for frame in (old, new))
    clock = next((name for name in ("window_start", at, "timestamp") if name in columns), None)
    if clock is not None and old.height and new.height and isinstance(new.schema[clock], pl.Datetime):
        if "window_end" in columns:
            last = min(last_us, _us(old["window_end"].max()))
            inside = (pl.col(clock).dt.timestamp() > first_us) & (pl.col("window_end").dt.timestamp() <= last)
        else:
            first = max(first_us + 1, _us(old[clock].min()), _us(new[clock].min()))
            inside = (
                pl.col(clock)
                .dt.timestamp()
                .is_between(first, min(_us(old[clock].max()), _us(new[clock].max())))
            )
        old, new = old.filter(inside), new.filter(inside)
    missing = old.join(new, on=columns, how="anti", nulls_equal=True)
    extra = new.join(old, on=columns, how="anti", nulls_equal=True)
    return new.height - extra.height, missing.to_arrow(), extra.to_arrow()


def _us(value: Any) -> int:
    """Microseconds since 1970 of a time out of a column; before all times for none."""
    return NONE_US if value is None else pl.Series([value]).dt.timestamp()[0]


def _comparable(rows: pa.Table) -> pl.DataFrame:
    """Floating-point values by their first digits, structs by their text."""
    frame = pl.DataFrame(pl.from_arrow(rows))
    floats = [name for name, type_ in frame.schema.items() if type_.is_float()]
    structs = [name for name, type_ in frame.schema.items() if isinstance(type_, pl.Struct)]
    return frame.with_columns(
        *(pl.col(name).round_sig_figs(_DIGITS) for name in floats),
        *(pl.col(name).struct.json_encode() for name in structs),
    )
