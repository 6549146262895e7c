"""Join with another topic by key and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.columns import Pick, pick_key, pick_time, plain, times
from headrace.analysis.groups import Ids, KeyIndex, expand
from headrace.analysis.timeline import Timeline
from headrace.component import Aside, Duration, Operator, PlanError, Rows, Step, option
from headrace.model import concat, conform, empty

_NEVER_US = -(2**62)
_WATERMARK = b"headrace.watermark_us"
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
        return _AsOf(plan) if self.kind == "asof" else _Interval(plan)

    def _keys(self) -> dict[str, str]:
        """Our key column -> theirs."""
        if isinstance(self.on, dict):
            return self.on
        return {name: name for name in ([self.on] if isinstance(self.on, str) else self.on)}

    def _plan(self, schema: pa.Schema) -> _Plan:
        raise PlanError(f"join: the columns of topic {self.topic!r} are not known yet; bind() tells them")


class _BoundJoin(Join, frozen=True, kw_only=True):
    """A Join that knows the columns of the other topic."""

    theirs: Any = msgspec.field(default_factory=lambda: pa.schema([]))

    def _plan(self, schema: pa.Schema) -> _Plan:
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
        before, after = self.before or within or Duration(0), self.after or within or Duration(0)
        return _Plan(
            step=self,
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
            before_us=(before if self.before is None else self.before).us,
            after_us=(after if self.after is None else self.after).us,
        )


@dataclass(frozen=True)
class _Plan:
    """`ours`, `theirs` and `types` are by key column; `added` are their columns in the output."""

    step: Join
    schema: pa.Schema
    left: pa.Schema
    right: pa.Schema
    added: tuple[str, ...]
    ours: tuple[Pick, ...]
    theirs: tuple[Pick, ...]
    types: tuple[pa.DataType, ...]
    at: Pick
    their_at: Pick
    before_us: int
    after_us: int


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
    """What both kinds share: taking rows in, putting rows together, state."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._keys = KeyIndex(plan.types)
        self._ours = Timeline(plan.left)
        self._theirs = Timeline(plan.right)
        self._arrived: list[Rows] = []
        self._aside: list[Aside] = []
        self._watermark_us = _NEVER_US

    # -- of each kind ----------------------------------------------------------------------------------

    def _join(self, left: tuple[Ids, Ids, Rows], right: tuple[Ids, Ids, Rows]) -> list[Rows]:
        """Take in new rows as (key, time, rows) and give what comes of them and of the new watermark."""
        raise NotImplementedError

    def _expire(self) -> None:
        """Drop what no row to come can be joined with."""
        raise NotImplementedError

    # -- the operator ----------------------------------------------------------------------------------

    def side(self, topic: str, rows: Rows) -> None:
        if topic != self._plan.step.topic:
            raise PlanError(f"join: rows of {topic!r}, but the step reads {self._plan.step.topic!r}")
        self._arrived.append(conform(rows, self._plan.right))

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        plan = self._plan
        arrived, self._arrived = concat(self._arrived, plan.right), []
        right = self._take(arrived, plan.their_at, plan.theirs, ours=False)
        left = self._take(conform(rows, plan.left), plan.at, plan.ours, ours=True)
        self._watermark_us = max(self._watermark_us, watermark_us)
        out = self._join(left, right)
        self._tidy()
        return concat(out, plan.schema) if out else empty(plan.schema)

    def _take(self, rows: Rows, at: Pick, keys: Sequence[Pick], *, ours: bool) -> tuple[Ids, Ids, Rows]:
        """Key, time and the rows that can be used; theirs without a key are left out, as they can't match."""
        if not rows.num_rows:
            return np.empty(0, np.int64), np.empty(0, np.int64), rows
        stamps, bad = times(at.of(rows))
        whose = "" if ours else f"topic {self._plan.step.topic}: "
        if bad is not None:
            self._put_aside(rows, bad, "no_time", f"join: {whose}{at.name} is missing or out of range")
        late = stamps < self._watermark_us
        if bad is not None:
            late &= ~bad
        if late.any():
            reason = f"join: {whose}it came after the watermark had passed {self._watermark_us} us"
            self._put_aside(rows, late, "late", reason, self._plan.step.late if ours else "")
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
        coded = self._keys.encode(columns, rows.num_rows)
        return np.where(null, -1, coded.of_rows()), stamps, rows

    def _put_aside(self, rows: Rows, which: Bools, code: str, reason: str, to: str = "") -> None:
        chosen = rows.filter(pa.array(which))
        self._aside.append(Aside(chosen, code, [reason] * chosen.num_rows, to))

    def aside(self) -> Sequence[Aside]:
        handed, self._aside = self._aside, []
        return handed

    def _together(self, left: Rows, right: Rows) -> Rows:
        columns = [*left.columns, *(right.column(name) for name in self._plan.added)]
        return pa.RecordBatch.from_arrays(columns, schema=self._plan.schema)

    def _tidy(self) -> None:
        """Forget keys that no row held has, once they are the greater part."""
        if len(self._keys) <= 2 * (len(self._ours) + len(self._theirs)) + 1024:
            return
        self._expire()
        held = np.unique(np.concatenate((self._ours.key, self._theirs.key)))
        new = self._keys.keep(held[held >= 0])
        self._ours.rename(new)
        self._theirs.rename(new)

    # -- state as rows ---------------------------------------------------------------------------------

    def snapshot(self) -> pa.Table:
        self._expire()
        parts = []
        for side, line in enumerate((self._ours, self._theirs)):
            places = line.by_arrival()
            rows = line.rows(places)
            key = line.key[places]
            values = self._keys.values(np.maximum(key, 0)) if len(self._keys) else []
            columns: dict[str, pa.Array] = {}
            for i, pick in enumerate(self._plan.ours):
                array = (
                    values[i].take(pa.array(np.arange(len(key)), mask=key < 0))
                    if values
                    else pa.nulls(len(key))
                )
                columns[pick.name] = pc.cast(array, pick.type)
            columns["state:side"] = pa.array(np.full(len(key), side, np.int8))
            columns["state:used"] = pa.array(line.used[places])
            columns["state:watermark"] = pa.array(np.full(len(key), self._watermark_us))
            for number, (name, schema) in enumerate((("left", self._plan.left), ("right", self._plan.right))):
                type_ = pa.struct([f.with_nullable(True) for f in schema])
                whole = (
                    pa.StructArray.from_arrays(rows.columns, fields=list(type_)) if number == side else None
                )
                columns[f"state:{name}"] = pa.nulls(len(key), type_) if whole is None else whole
            parts.append(pa.table(columns))
        table = pa.concat_tables(parts)
        return table.replace_schema_metadata({_WATERMARK: str(self._watermark_us).encode()})

    def restore(self, state: pa.Table) -> None:
        metadata = state.schema.metadata or {}
        marks = [int(metadata[_WATERMARK])] if _WATERMARK in metadata else []
        if state.num_rows:
            marks.append(pc.min(state.column("state:watermark")).as_py())
        # Of several workers the one that was furthest behind decides, so that none of its rows become late.
        self._watermark_us = min(marks, default=_NEVER_US)
        side = state.column("state:side").to_numpy()
        used = state.column("state:used").to_numpy()
        for number, (name, line, at, keys) in enumerate(
            (
                ("left", self._ours, self._plan.at, self._plan.ours),
                ("right", self._theirs, self._plan.their_at, self._plan.theirs),
            )
        ):
            mine = np.flatnonzero(side == number)
            if not len(mine):
                continue
            whole = state.column(f"state:{name}").take(pa.array(mine)).combine_chunks()
            schema = self._plan.left if number == 0 else self._plan.right
            rows = conform(pa.RecordBatch.from_struct_array(whole), schema)
            columns = [key.of(rows) for key in keys]
            null = np.zeros(len(mine), np.bool_)
            for column in columns:
                null |= pc.is_null(column).to_numpy(zero_copy_only=False)
            coded = self._keys.encode(columns, len(mine)).of_rows()
            line.insert(np.where(null, -1, coded), times(at.of(rows))[0], rows, used[mine])


class _AsOf(_Operator):
    def __init__(self, plan: _Plan) -> None:
        super().__init__(plan)
        self._within_us = plan.step.within.us if plan.step.within is not None else 2**62
        self._pruned = 0  # rows of theirs left after the last pruning

    def _join(self, left: tuple[Ids, Ids, Rows], right: tuple[Ids, Ids, Rows]) -> list[Rows]:
        self._theirs.insert(*right)
        self._ours.insert(*left)
        due = self._ours.time < self._watermark_us
        out = []
        if due.any():
            places = np.flatnonzero(due)
            places = places[np.lexsort((self._ours.number[places], self._ours.time[places]))]
            key, time = self._ours.key[places], self._ours.time[places]
            match = self._theirs.search(key, time, "right") - 1
            missing = match < 0
            if len(self._theirs):
                missing |= (self._theirs.key[match] != key) | (key < 0)
                missing |= time - self._theirs.time[match] > self._within_us
            if self._plan.step.how == "inner":
                places, match, missing = places[~missing], match[~missing], None
            if len(places):
                out = [self._together(self._ours.rows(places), self._theirs.rows(match, missing))]
            self._ours.keep(~due)
        if len(self._theirs) > 2 * self._pruned + 1024:
            self._expire()
        return out

    def _expire(self) -> None:
        """Ours still to come are not before the watermark: of theirs, only the last not after it can be wanted, and
        those that come after it."""
        theirs, watermark = self._theirs, self._watermark_us
        replaced = np.zeros(len(theirs), np.bool_)
        replaced[:-1] = (theirs.key[1:] == theirs.key[:-1]) & (theirs.time[1:] <= watermark)
        theirs.keep(~(replaced | (theirs.time < watermark - self._within_us)))
        self._pruned = len(theirs)


class _Interval(_Operator):
    def _join(self, left: tuple[Ids, Ids, Rows], right: tuple[Ids, Ids, Rows]) -> list[Rows]:
        ours, theirs, plan = self._ours, self._theirs, self._plan
        new_ours, new_theirs = self._mark(ours, left), self._mark(theirs, right)
        # A pair comes out with the later of its rows: new ours with all of theirs, then new theirs with our old ones.
        mine = np.flatnonzero(new_ours)
        a, b = self._pairs(mine, ours, theirs, plan.before_us, plan.after_us)
        other = np.flatnonzero(new_theirs)
        d, c = self._pairs(other, theirs, ours, plan.after_us, plan.before_us)
        old = ~new_ours[c]
        a, b = np.concatenate((a, c[old])), np.concatenate((b, d[old]))
        out = []
        if len(a):
            ours.used[a] = True
            order = np.lexsort((theirs.number[b], ours.number[a], theirs.time[b], ours.time[a]))
            out.append(self._together(ours.rows(a[order]), theirs.rows(b[order])))
        over = ours.time < self._watermark_us - plan.after_us
        if over.any():
            alone = np.flatnonzero(over & ~ours.used)
            if plan.step.how == "left" and len(alone):
                alone = alone[np.lexsort((ours.number[alone], ours.time[alone]))]
                nothing = np.ones(len(alone), np.bool_)
                out.append(
                    self._together(ours.rows(alone), theirs.rows(np.zeros(len(alone), np.int64), nothing))
                )
            ours.keep(~over)
        gone = theirs.time < self._watermark_us - plan.before_us
        if gone.any():
            theirs.keep(~gone)
        return out

    @staticmethod
    def _mark(line: Timeline, new: tuple[Ids, Ids, Rows]) -> Bools:
        """Insert rows; gives which places are new."""
        first = line.next_number
        line.insert(*new)
        return line.number >= first

    @staticmethod
    def _pairs(places: Ids, of: Timeline, among: Timeline, before_us: int, after_us: int) -> tuple[Ids, Ids]:
        """Places of `of` with those of `among` from `before_us` earlier to `after_us` later."""
        key, time = of.key[places], of.time[places]
        low = among.search(key, time - before_us, "left")
        count = np.where(key < 0, 0, among.search(key, time + after_us, "right") - low)
        return np.repeat(places, count), expand(low, count)

    def _expire(self) -> None:
        """Done with every epoch."""
