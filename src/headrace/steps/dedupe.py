"""Drop rows that were there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa

from headrace.analysis.columns import Pick, pick_key, pick_time, times
from headrace.analysis.seen import Seen
from headrace.component import Aside, Duration, Operator, PlanError, Rows, Step, option


class Dedupe(Step, frozen=True, kw_only=True):
    """Of rows with the same key that lie less than `within` apart in event time, keep the first to arrive.

    Columns stay as they are; dropped rows count as filtered. A row with a null in its key is never a duplicate and
    passes. A key is remembered until the watermark is `within` past it, so a late row may pass again. Beyond `max_keys`
    the keys seen longest ago are forgotten.

        - dedupe: {by: [source_id, payload.sequence], within: 10m}
    """

    shorthand: ClassVar[str] = "by"
    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "filter"

    by: Annotated[
        str | list[str], option("columns that make two rows the same; paths such as payload.id too")
    ]
    within: Annotated[Duration, option("how far apart in event time duplicates may be")] = Duration(
        600_000_000
    )
    at: Annotated[str, option("event-time column", min_length=1)] = "timestamp"
    max_keys: Annotated[int, option("most keys remembered", ge=1, le=50_000_000)] = 1_000_000

    @classmethod
    def example(cls) -> Self:
        return cls(by=["source_id", "payload.temperature"], within=Duration.parse("20s"))

    def check(self) -> None:
        by = self.key()
        if not by or len(set(by)) < len(by):
            raise PlanError("by: name at least one column, each once")
        if self.within.us == 0:
            raise PlanError("within: must be longer than 0s")

    def key(self) -> Sequence[str]:
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    def output(self, schema: pa.Schema) -> pa.Schema:
        self._picks(schema)
        return schema

    def open(self, schema: pa.Schema) -> Operator:
        return _Dedupe(self, *self._picks(schema))

    def _picks(self, schema: pa.Schema) -> tuple[list[Pick], Pick]:
        self.check()
        keys = [pick_key(schema, path, step="dedupe") for path in self.key()]
        return keys, pick_time(schema, self.at, step="dedupe")


class _Dedupe(Operator):
    def __init__(self, step: Dedupe, keys: list[Pick], at: Pick) -> None:
        self._keys, self._at = keys, at
        names = [key.short for key in keys]
        self._names = names if len(set(names)) == len(names) else [key.name for key in keys]
        self._seen = Seen([key.type for key in keys], step.within.us, step.max_keys)
        self._aside: list[Aside] = []

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        self._aside = []
        if rows.num_rows:
            rows = self._first(rows)
        self._seen.advance(watermark_us)
        return rows

    def _first(self, rows: Rows) -> Rows:
        stamps, bad = times(self._at.of(rows))
        if bad is not None:
            reason = f"dedupe: {self._at.name} is missing or out of range"
            self._aside = [Aside(rows.filter(pa.array(bad)), "no_time", [reason] * int(bad.sum()))]
            rows, stamps = rows.filter(pa.array(~bad)), stamps[~bad]
        columns = [key.of(rows) for key in self._keys]
        whole = np.ones(rows.num_rows, np.bool_)
        for column in columns:
            if column.null_count:
                whole &= column.is_valid().to_numpy(zero_copy_only=False)
        if whole.all():
            kept = self._seen.passes(columns, stamps)
        else:
            kept = ~whole
            some = pa.array(whole)
            kept[whole] = self._seen.passes([column.filter(some) for column in columns], stamps[whole])
        return rows if kept.all() else rows.filter(pa.array(kept))

    def aside(self) -> Sequence[Aside]:
        given, self._aside = self._aside, []
        return given

    def snapshot(self) -> pa.Table:
        return self._seen.save(self._names)

    def restore(self, state: pa.Table) -> None:
        self._seen.load(state, self._names)
