"""Join with another topic by key and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.columns import Pick, pick_key, pick_time, plain, times
from headrace.analysis.groups import Ids
from headrace.analysis.joins import AsOf, Interval, Matcher, Plan
from headrace.component import Aside, Duration, Operator, PlanError, Rows, Step, option
from headrace.model import concat, conform, empty

Bools = npt.NDArray[np.bool_]


class Join(Step, frozen=True, kw_only=True):
    """Join the rows with those of another topic that have the same key and a near event time.

    `asof` gives each row together with the latest row of `topic` that is not later; it is held until the watermark has
    passed its time, because only then is that row known, and comes out in the order of time. `interval` gives each
    pair of rows whose times are near, as soon as both are there. `how: left` also gives rows without a partner, with
    null for the other columns. Rows below the watermark are late: those of the pipeline go to the topic `late` or to the
    dead letters, those of `topic` to the dead letters. A null key equals nothing.

    Without `within`, `asof` keeps the latest row of every key for good, as a table would. The columns of `topic` follow,
    except its key; one whose name is taken gets `prefix`.
    """

    shorthand: ClassVar[str] = "topic"
    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "absorb"

    topic: Annotated[str, option("the other topic", min_length=1)]
    on: Annotated[
        str | list[str] | dict[str, str],
        option("key columns, by the same name on both sides, or as a mapping from ours to theirs"),
    ]
    kind: Annotated[Literal["asof", "interval"], option("latest row not later, or all rows near in time")] = (
        "asof"
    )
    how: Annotated[Literal["inner", "left"], option("whether rows without a partner are kept")] = "inner"
    within: Annotated[Duration | None, option("greatest distance in time")] = None
    before: Annotated[
        Duration | None, option("interval: how much earlier theirs may be; default `within`")
    ] = None
    after: Annotated[Duration | None, option("interval: how much later theirs may be; default `within`")] = (
        None
    )
    prefix: Annotated[str, option("for their columns whose names are taken; default: the topic and `_`")] = ""
    at: Annotated[str, option("our event-time column", min_length=1)] = "timestamp"
    their_at: Annotated[str, option("their event-time column; default: the same name as ours")] = ""
    late: Annotated[str, option("topic for our late rows; empty: the dead letters, with code `late`")] = ""

    @classmethod
    def example(cls) -> Join:
        return cls(topic="limits", on=["sensor_id"], within=Duration.parse("1h"), how="left")

    @classmethod
    def example_sides(cls) -> Mapping[str, Rows]:
        rows = cls.example_input()
        moments = rows.column("timestamp").take(pa.array(range(0, rows.num_rows, 4)))
        columns = {
            "sensor_id": rows.column("sensor_id").take(pa.array(range(0, rows.num_rows, 4))),
            "limit": pa.array(np.arange(len(moments)) * 1.5),
            "timestamp": moments,
        }
        return {"limits": pa.RecordBatch.from_pydict(columns)}

    def check(self) -> None:
        if not self._keys():
            raise PlanError("join: on names no column")
        if self.kind == "asof" and (self.before is not None or self.after is not None):
            raise PlanError("join: before and after belong to kind interval; asof takes within")
        if self.kind == "interval" and self.within is None and (self.before is None or self.after is None):
            raise PlanError("join: kind interval needs within, or both before and after")

    def key(self) -> Sequence[str]:
        return tuple(self._keys())

    def reads(self) -> Sequence[str]:
        return (self.topic,)

    def bind(self, schemas: Mapping[str, pa.Schema]) -> Self:
        options = {name: getattr(self, name) for name in Join.__struct_fields__}
        return _BoundJoin(**options, theirs=schemas[self.topic])  # type: ignore[return-value]

    def output(self, schema: pa.Schema) -> pa.Schema:
        return self._plan(schema).schema

    def open(self, schema: pa.Schema) -> Operator:
        plan = self._plan(schema)
        return _Operator(self, plan)

    def _keys(self) -> dict[str, str]:
        """Our key column -> theirs."""
        if isinstance(self.on, dict):
            return self.on
        return {name: name for name in ([self.on] if isinstance(self.on, str) else self.on)}

    def _plan(self, schema: pa.Schema) -> Plan:
        raise PlanError(f"join: the columns of topic {self.topic!r} are not known yet; bind() tells them")


class _BoundJoin(Join, frozen=True, kw_only=True):
    """A Join that knows the columns of the other topic."""

    theirs: Any = msgspec.field(default_factory=lambda: pa.schema([]))

    def _plan(self, schema: pa.Schema) -> Plan:
        self.check()
        step = "join"
        ours = [pick_key(schema, path, step=step, option="on") for path in self._keys()]
        theirs = [
            pick_key(self.theirs, path, step=step, option=f"on (topic {self.topic})")
            for path in self._keys().values()
        ]
        left = pa.schema([f.with_type(_decoded(f.type)) for f in schema])
        right = pa.schema([f.with_type(_decoded(f.type)) for f in self.theirs])
        fields, taken, added = list(left), set(left.names), []
        their_keys = set(self._keys().values())
        for field in right:
            if field.name in their_keys:
                continue
            name = field.name if field.name not in taken else (self.prefix or f"{self.topic}_") + field.name
            if name in taken:
                raise PlanError(
                    f"join: their column {field.name!r} can't be named {name!r}, which is taken; set prefix"
                )
            taken.add(name)
            added.append(field.name)
            fields.append(field.with_name(name).with_nullable(field.nullable or self.how == "left"))
        within = self.within
        before = self.before if self.before is not None else within or Duration(0)
        after = self.after if self.after is not None else within or Duration(0)
        return Plan(
            schema=pa.schema(fields),
            left=left,
            right=right,
            added=tuple(added),
            ours=tuple(ours),
            theirs=tuple(theirs),
            types=tuple(_common(a, b) for a, b in zip(ours, theirs, strict=True)),
            at=pick_time(schema, self.at, step=step),
            their_at=pick_time(
                self.theirs, self.their_at or self.at, step=step, option=f"their_at (topic {self.topic})"
            ),
            outer=self.how == "left",
            within_us=within.us if within is not None else 2**62,
            before_us=before.us,
            after_us=after.us,
        )


def _decoded(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _common(ours: Pick, theirs: Pick) -> pa.DataType:
    """The type in which two key columns are compared. Integers of any width agree."""
    a, b = plain(ours.type), plain(theirs.type)
    if a.equals(b) or not theirs.steps:
        return a
    if not ours.steps:
        return b
    if (
        pa.types.is_integer(a)
        and pa.types.is_integer(b)
        and not pa.types.is_uint64(a)
        and not pa.types.is_uint64(b)
    ):
        return pa.int64()
    raise PlanError(
        f"join: on compares {ours.name!r}, which is {a}, with their {theirs.name!r}, which is {b}; cast one of them"
    )


class _Operator(Operator):
    """A join at work: takes rows in, puts aside what can't be used, and leaves the rest to the matcher."""

    def __init__(self, step: Join, plan: Plan) -> None:
        self._step, self._plan = step, plan
        self._matcher: Matcher = AsOf(plan) if step.kind == "asof" else Interval(plan)
        self._arrived: list[Rows] = []
        self._aside: list[Aside] = []

    def side(self, topic: str, rows: Rows) -> None:
        if topic != self._step.topic:
            raise PlanError(f"join: rows of {topic!r}, but the step reads {self._step.topic!r}")
        self._arrived.append(conform(rows, self._plan.right))

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        plan = self._plan
        arrived, self._arrived = concat(self._arrived, plan.right), []
        right = self._take(arrived, plan.their_at, plan.theirs, ours=False)
        left = self._take(conform(rows, plan.left), plan.at, plan.ours, ours=True)
        out = self._matcher.match(left, right, watermark_us)
        return concat(out, plan.schema) if out else empty(plan.schema)

    def _take(self, rows: Rows, at: Pick, keys: Sequence[Pick], *, ours: bool) -> tuple[Ids, Ids, Rows]:
        """Key, time and the rows that can be used; theirs without a key are left out, as they can't match."""
        if not rows.num_rows:
            return np.empty(0, np.int64), np.empty(0, np.int64), rows
        stamps, bad = times(at.of(rows))
        whose = "" if ours else f"topic {self._step.topic}: "
        if bad is not None:
            self._put_aside(rows, bad, "no_time", f"join: {whose}{at.name} is missing or out of range")
        late = stamps < self._matcher.watermark_us
        if bad is not None:
            late &= ~bad
        if late.any():
            reason = f"join: {whose}it came after the watermark had passed {self._matcher.watermark_us} us"
            self._put_aside(rows, late, "late", reason, self._step.late if ours else "")
        columns = [key.of(rows) for key in keys]
        null = np.zeros(rows.num_rows, np.bool_)
        for column in columns:
            if column.null_count or pa.types.is_dictionary(column.type):
                null |= pc.is_null(column).to_numpy(zero_copy_only=False)
        out = late if bad is None else late | bad
        if not ours:
            out |= null
        if out.any():
            kept = np.flatnonzero(~out)
            rows, stamps, null = rows.take(pa.array(kept)), stamps[kept], null[kept]
            columns = [key.of(rows) for key in keys]
        coded = self._matcher.keys.encode(columns, rows.num_rows)
        return np.where(null, -1, coded.of_rows()), stamps, rows

    def _put_aside(self, rows: Rows, which: Bools, code: str, reason: str, to: str = "") -> None:
        chosen = rows.filter(pa.array(which))
        self._aside.append(Aside(chosen, code, [reason] * chosen.num_rows, to))

    def aside(self) -> Sequence[Aside]:
        handed, self._aside = self._aside, []
        return handed

    def snapshot(self) -> pa.Table:
        return self._matcher.save()

    def restore(self, state: pa.Table) -> None:
        self._matcher.load(state)
