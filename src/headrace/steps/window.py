"""Aggregate by event time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.analysis.columns import Pick, comparable, pick, pick_key, pick_number, pick_time, times
from headrace.analysis.panes import PaneWindows
from headrace.analysis.results import Plan, Result
from headrace.analysis.sessions import SessionWindows
from headrace.analysis.windows import NEVER_US, Windows
from headrace.component import TIMESTAMP, Aside, Duration, Operator, PlanError, Rows, Step, option

_CALL = re.compile(r"\s*([a-z0-9_.]+)\s*\(\s*(.*?)\s*\)\s*")
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?|100)")
_SHORTHANDS = (
    "count", "sum", "min", "max", "avg", "mean", "stddev", "first", "last", "distinct", "p50", "p90", "p95", "p99",
)  # fmt: skip
_FUNCTIONS = (*_SHORTHANDS[:10], "median", "pNN (p99.9)")


class Window(Step, frozen=True, kw_only=True):
    """Aggregate the rows of each key over windows of event time.

    `length` alone gives tumbling windows, with `hop` hopping ones, and `gap` alone sessions. Windows are aligned to
    1970-01-01 UTC; a window holds the rows with `window_start <= at < window_end`, a session ends `gap` after its last
    row. A window comes out once, when the watermark has reached its end plus `allowed_lateness`, in the order of end
    and key. A row all of whose windows are out already is late: it goes to the topic `late`, or to the dead letters.

    Gives the `by` columns (a dotted path under its last part), `window_start`, `window_end`, the aggregates, and with
    `early` the column `final`. Null and NaN are left out of all aggregates of a column; without any value `count`
    and `distinct` are 0, the others null. `first` and `last` go by event time. Percentiles are within 1 % of the
    value, between the nearest ranks; `distinct` is exact up to 2,048 and has a standard error of 3 % beyond.
    Integers beyond 2**53 are rounded. A null key is a key of its own.
    """

    shorthand: ClassVar[str] = "length"
    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "absorb"

    length: Annotated[Duration | None, option("length of the windows", examples=["10s", "1h"])] = None
    hop: Annotated[
        Duration | None, option("distance of the starts of overlapping windows; divides `length`")
    ] = None
    gap: Annotated[Duration | None, option("sessions: the silence after which a key's window ends")] = None
    by: Annotated[
        str | list[str], option("key columns; dotted paths such as `payload.room` go into structs")
    ] = msgspec.field(default_factory=list)
    at: Annotated[str, option("event-time column", min_length=1)] = "timestamp"
    allowed_lateness: Annotated[Duration, option("how much longer than the watermark a window waits")] = (
        Duration(0)
    )
    late: Annotated[str, option("topic for late rows; empty: the dead letters, with code `late`")] = ""
    early: Annotated[
        Duration | None, option("also give provisional results (`final` false) this often in event time")
    ] = None
    count: Annotated[str | None, option("`*` counts rows, a column its values")] = None
    sum: Annotated[str | None, option("column to add up")] = None
    min: Annotated[str | None, option("column whose least value is wanted")] = None
    max: Annotated[str | None, option("column whose greatest value is wanted")] = None
    avg: Annotated[str | None, option("column to average")] = None
    mean: Annotated[str | None, option("the same as `avg`, under this name")] = None
    stddev: Annotated[str | None, option("column whose sample standard deviation (n - 1) is wanted")] = None
    first: Annotated[str | None, option("column whose earliest value is wanted, of any type")] = None
    last: Annotated[str | None, option("column whose latest value is wanted, of any type")] = None
    distinct: Annotated[str | None, option("column whose different values are counted")] = None
    p50: Annotated[str | None, option("column whose median is wanted")] = None
    p90: Annotated[str | None, option("column whose 90th percentile is wanted")] = None
    p95: Annotated[str | None, option("column whose 95th percentile is wanted")] = None
    p99: Annotated[str | None, option("column whose 99th percentile is wanted")] = None
    aggregate: Annotated[
        dict[str, str],
        option(
            "further results: name -> `fn(column)`, fn being count, sum, min, max, avg, stddev, first, last, distinct, "
            "median or a percentile such as p99.9",
            examples=[{"avg_value": "avg(value)", "n": "count(*)"}],
        ),
    ] = msgspec.field(default_factory=dict)

    @classmethod
    def example(cls) -> Window:
        return cls(
            length=Duration.parse("10s"),
            by="sensor_id",
            aggregate={"n": "count(*)", "avg_value": "avg(value)"},
        )

    def check(self) -> None:
        if self.gap is not None:
            if self.length is not None or self.hop is not None:
                raise PlanError(
                    "window: gap makes sessions, which have no length and no hop; give one or the other"
                )
            if self.gap.us == 0:
                raise PlanError("window: gap must be longer than 0s")
        elif self.length is None:
            raise PlanError("window: give length (such as 10s), or gap for sessions")
        elif self.length.us == 0:
            raise PlanError("window: length must be longer than 0s")
        elif self.hop is not None and (self.hop.us == 0 or self.length.us % self.hop.us):
            raise PlanError(f"window: length {self.length} must be a multiple of hop {self.hop}")
        if self.early is not None and self.early.us == 0:
            raise PlanError("window: early must be longer than 0s")
        by = self._by()
        if len(set(by)) < len(by):
            raise PlanError(f"window: by names a column twice: {', '.join(by)}")
        self._calls()

    def key(self) -> Sequence[str]:
        return self._by()

    def output(self, schema: pa.Schema) -> pa.Schema:
        return self._plan(schema).schema

    def open(self, schema: pa.Schema) -> Operator:
        return _Operator(self._plan(schema))

    def _by(self) -> tuple[str, ...]:
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    def _calls(self) -> list[tuple[str, str, str]]:
        """(output name, function, column) of each result."""
        calls = [(name, name, getattr(self, name)) for name in _SHORTHANDS if getattr(self, name) is not None]
        for name, text in self.aggregate.items():
            match = _CALL.fullmatch(text)
            if match is None or not name:
                raise PlanError(
                    f"window: aggregate {name!r}: {text!r} isn't a call such as avg(value) or count(*)"
                )
            calls.append((name, match[1], match[2]))
        for name, function, column in calls:
            if function not in (*_SHORTHANDS, "median") and not _QUANTILE.fullmatch(function):
                raise PlanError(
                    f"window: aggregate {name!r}: there is no function {function!r}; there are {', '.join(_FUNCTIONS)}"
                )
            if not column or (column == "*" and function != "count"):
                raise PlanError(f"window: {name}: {function} needs a column, not {column!r}")
        return calls or [("count", "count", "*")]

    def _plan(self, schema: pa.Schema) -> Plan:
        self.check()
        at = pick_time(schema, self.at, step="window")
        keys = [pick_key(schema, path, step="window") for path in self._by()]
        fields = [key.field(key.short) for key in keys]
        fields += [
            pa.field("window_start", TIMESTAMP, nullable=False),
            pa.field("window_end", TIMESTAMP, nullable=False),
        ]
        results = [_result(schema, *call) for call in self._calls()]
        fields += [_field(result) for result in results]
        if self.early is not None:
            fields.append(pa.field("final", pa.bool_(), nullable=False))
        names = [field.name for field in fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlanError(
                f"window: two results would be named {twice[0]!r}; name one of them by `aggregate` or select first"
            )
        length, hop = self.gap or self.length, self.gap or self.hop or self.length
        assert length is not None
        assert hop is not None
        return Plan(
            input=schema,
            schema=pa.schema(fields),
            at=at,
            keys=tuple(keys),
            results=tuple(results),
            sessions=self.gap is not None,
            length_us=length.us,
            hop_us=hop.us,
            lateness_us=self.allowed_lateness.us,
            late_topic=self.late,
            early_us=self.early.us if self.early is not None else 0,
        )


def _field(result: Result) -> pa.Field:
    if result.kind in ("first", "last") and result.column is not None:
        return result.column.field(result.name).with_nullable(True)
    return pa.field(result.name, result.type, result.kind not in ("count", "distinct"))


def _result(schema: pa.Schema, name: str, function: str, column: str) -> Result:
    if column == "*":
        return Result(name, "count", None, pa.int64())
    where = name if name == function else f"{name} ({function})"
    function = {"avg": "mean", "median": "p50"}.get(function, function)
    if function in ("first", "last"):
        found: Pick = pick(schema, column, step="window", option=where)
        return Result(name, function, found, found.type)
    if function == "count":
        return Result(name, function, pick(schema, column, step="window", option=where), pa.int64())
    if function == "distinct":
        found = pick(schema, column, step="window", option=where)
        if not comparable(found.type):
            raise PlanError(
                f"window: {where} can't compare {column!r}, which is {found.type}; name a field inside it"
            )
        return Result(name, function, found, pa.int64())
    found = pick_number(schema, column, step="window", option=where)
    match = _QUANTILE.fullmatch(function)
    if match is not None:
        return Result(name, "quantile", found, pa.float64(), float(match[1]) / 100)
    return Result(name, function, found, pa.float64())


class _Operator(Operator):
    """Windows at work: judges lateness by the watermark of the call before."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._windows: Windows = SessionWindows(plan) if plan.sessions else PaneWindows(plan)
        self._watermark_us = NEVER_US
        self._aside: list[Aside] = []

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        before = self._watermark_us
        if rows.num_rows:
            self._take(rows, before)
        self._watermark_us = max(before, watermark_us)
        return self._windows.close(before, self._watermark_us)

    def _take(self, rows: Rows, before_us: int) -> None:
        stamps, bad = times(self._plan.at.of(rows))
        if bad is not None:
            self._put_aside(rows, bad, "no_time", f"window: {self._plan.at.name} is missing or out of range")
            good = np.flatnonzero(~bad)
            rows, stamps = rows.take(pa.array(good)), stamps[good]
            if not len(good):
                return
        late = self._windows.add(rows, stamps, before_us)
        if late is not None:
            reason = f"window: all its windows were out when it came; the watermark was {_text(before_us)}"
            self._put_aside(rows, late, "late", reason, self._plan.late_topic)

    def _put_aside(
        self, rows: Rows, which: npt.NDArray[np.bool_], code: str, reason: str, to: str = ""
    ) -> None:
        chosen = rows.filter(pa.array(which))
        self._aside.append(Aside(chosen, code, [reason] * chosen.num_rows, to))

    def aside(self) -> Sequence[Aside]:
        handed, self._aside = self._aside, []
        return handed

    def snapshot(self) -> pa.Table:
        return self._windows.save(self._watermark_us)

    def restore(self, state: pa.Table) -> None:
        self._watermark_us = self._windows.load(state)


def _text(us: int) -> str:
    """A time as ISO 8601; microseconds as they are beyond the years that have four digits."""
    if not -62_135_596_800_000_000 <= us < 253_402_300_800_000_000:
        return f"{us} us"
    return str(np.datetime64(us, "us")) + "Z"
