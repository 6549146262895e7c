"""Run a pipeline over a past span of its topics into a shadow topic, and compare with what it wrote then.

Nothing that runs is touched: positions, state and the real output topic stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.chain import Chain
from headrace.engine.watermark import Watermark
from headrace.errors import PlanError
from headrace.log import Log
from headrace.model import Rows, Span, concat, split
from headrace.pipeline import Pipeline

_ROWS = 50_000  # of one epoch
_COMPARED = 2_000_000  # rows compared at most; more needs a narrower span
_DIGITS = 9  # significant digits at which floating-point values count as the same


@dataclass(frozen=True)
class Replay:
    """What a replay gave. `missing` and `extra` are rows of the real output that the replay lacks, and the other way
    round, among rows whose event time lies inside what was replayed."""

    shadow: str
    read: int
    written: int
    dead: int
    late: int
    same: int
    missing: pa.Table
    extra: pa.Table


def replay(
    pipeline: Pipeline,
    log: Log,
    *,
    start_us: int,
    end_us: int,
    shadow: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Run `pipeline` over the rows appended between two wall-clock times (microseconds since 1970).

    The state begins empty, so windows that were open at `start_us` are incomplete and are left out of the comparison.
    `progress` is told rows done and rows in all.
    """
    topics = log.topics()
    chain = Chain(pipeline, topics)
    shadow = shadow or f"{pipeline.output}_replay"
    real = topics.get(pipeline.output)
    if real is None:
        raise PlanError(f"pipeline {pipeline.name} has no output topic {pipeline.output!r} to compare with")
    if shadow in topics and shadow in pipeline.reads():
        raise PlanError(f"{shadow} is an input of the pipeline; choose another shadow topic")
    log.create(
        dataclasses.replace(
            real, name=shadow, schema=chain.schemas[-1], key=pipeline.output_key(chain.schemas)
        )
    )
    spans = {
        (name, partition): _between(log, name, partition, start_us, end_us)
        for name in pipeline.reads()
        for partition in range(topics[name].partitions)
    }
    total = sum(len(span) for span in spans.values())
    watermark = Watermark(pipeline.delay, pipeline.idle_after)
    results: list[Rows] = []
    done = written = dead = late = 0
    positions = {source: span.start for source, span in spans.items()}
    while done < total:
        inputs: list[Rows] = []
        sides: dict[str, list[Rows]] = {}
        for source, span in spans.items():
            part = Span(positions[source], min(positions[source] + _ROWS, span.end))
            if not len(part):
                continue
            rows = log.read(*source, part)
            positions[source] = part.end
            done += len(part)
            at = topics[source[0]].at
            if at in rows.schema.names:
                newest = pc.max(rows.column(at)).value
                if newest is not None:
                    watermark.see(source, newest, 0.0)
            if source[0] in pipeline.topics:
                inputs.append(rows)
            sides.setdefault(source[0], []).append(rows)
        outcome = chain.process(inputs, sides, watermark.advance(0.0))
        written += _write(log, shadow, outcome.rows)
        dead += outcome.counts["dead"]
        late += outcome.counts["late"]
        if sum(rows.num_rows for rows in results) < _COMPARED:
            results.append(outcome.rows)
        progress(done, total)
    before = _real_rows(log, pipeline.output, start_us)
    same, missing, extra = _difference(before, concat(results, chain.schemas[-1]), real.at)
    return Replay(shadow, total, written, dead, late, same, missing, extra)


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


def _difference(before: Rows, after: Rows, at: str) -> tuple[int, pa.Table, pa.Table]:
    """Rows in both, only in `before`, only in `after`, where their event times overlap."""
    columns = [name for name in after.schema.names if name in before.schema.names]
    old, new = (_comparable(rows, columns) for rows in (before, after))
    clock = next((name for name in (at, "window_start", "timestamp") if name in columns), None)
    if clock is not None and old.height and new.height:
        first = max(old[clock].min(), new[clock].min())  # type: ignore[type-var]
        last = min(old[clock].max(), new[clock].max())  # type: ignore[type-var]
        old, new = (frame.filter(pl.col(clock).is_between(first, last)) for frame in (old, new))
    missing = old.join(new, on=columns, how="anti", nulls_equal=True)
    extra = new.join(old, on=columns, how="anti", nulls_equal=True)
    return new.height - extra.height, missing.to_arrow(), extra.to_arrow()


def _comparable(rows: Rows, columns: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([rows.select(columns)])))
    floats = [name for name, type_ in frame.schema.items() if type_.is_float()]
    structs = [name for name, type_ in frame.schema.items() if isinstance(type_, pl.Struct)]
    return frame.with_columns(
        *(pl.col(name).round_sig_figs(_DIGITS) for name in floats),
        *(pl.col(name).struct.json_encode() for name in structs),
    )
