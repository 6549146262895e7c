"""Rows of two sides matched by key and time: as-of and interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.aggregate import Bools
from headrace.analysis.columns import Pick, times
from headrace.analysis.groups import Ids, KeyIndex, expand
from headrace.analysis.timeline import Timeline
from headrace.model import Rows, conform

_NEVER_US = -(2**62)
_WATERMARK = b"headrace.watermark_us"

Side = tuple[Ids, Ids, Rows]
"""New rows of one side: key (-1 for null), time, and the rows."""


@dataclass(frozen=True)
class Plan:
    """`left` and `right` are the columns of the sides without dictionaries, `added` those of theirs in the output;
    `ours`, `theirs` and `types` are by key column. Theirs match from `before_us` earlier to `after_us` later
    (interval), or up to `within_us` earlier (as-of)."""

    schema: pa.Schema
    left: pa.Schema
    right: pa.Schema
    added: tuple[str, ...]
    ours: tuple[Pick, ...]
    theirs: tuple[Pick, ...]
    types: tuple[pa.DataType, ...]
    at: Pick
    their_at: Pick
    outer: bool
    within_us: int
    before_us: int
    after_us: int


class Matcher:
    """The rows held of both sides."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys = KeyIndex(plan.types)
        self._ours = Timeline(plan.left)
        self._theirs = Timeline(plan.right)
        self.watermark_us = _NEVER_US

    def match(self, left: Side, right: Side, watermark_us: int) -> list[Rows]:
        """Take in new rows, move the watermark, and give what comes of both."""
        self.watermark_us = max(self.watermark_us, watermark_us)
        out = self._join(left, right)
        self._tidy()
        return out

    def _join(self, left: Side, right: Side) -> list[Rows]:
        raise NotImplementedError

    def _expire(self) -> None:
        """Drop what no row to come can be joined with."""
        raise NotImplementedError

    def _together(self, left: Rows, right: Rows) -> Rows:
        columns = [*left.columns, *(right.column(name) for name in self.plan.added)]
        return pa.RecordBatch.from_arrays(columns, schema=self.plan.schema)

    def _tidy(self) -> None:
        """Forget keys that no row held has, once they are the greater part."""
        if len(self.keys) <= 2 * (len(self._ours) + len(self._theirs)) + 1024:
            return
        self._expire()
        held = np.unique(np.concatenate((self._ours.key, self._theirs.key)))
        new = self.keys.keep(held[held >= 0])
        self._ours.rename(new)
        self._theirs.rename(new)

    # -- state as rows ---------------------------------------------------------------------------------

    def save(self) -> pa.Table:
        self._expire()
        parts = []
        for side, line in enumerate((self._ours, self._theirs)):
            places = line.by_arrival()
            rows = line.rows(places)
            key = line.key[places]
            values = self.keys.values(np.maximum(key, 0)) if len(self.keys) else []
            columns: dict[str, pa.Array] = {}
            for i, pick in enumerate(self.plan.ours):
                array = (
                    values[i].take(pa.array(np.arange(len(key)), mask=key < 0))
                    if values
                    else pa.nulls(len(key))
                )
                columns[pick.name] = pc.cast(array, pick.type)
            columns["state:side"] = pa.array(np.full(len(key), side, np.int8))
            columns["state:used"] = pa.array(line.used[places])
            columns["state:watermark"] = pa.array(np.full(len(key), self.watermark_us))
            for number, (name, schema) in enumerate((("left", self.plan.left), ("right", self.plan.right))):
                type_ = pa.struct([f.with_nullable(True) for f in schema])
                whole = (
                    pa.StructArray.from_arrays(rows.columns, fields=list(type_)) if number == side else None
                )
                columns[f"state:{name}"] = pa.nulls(len(key), type_) if whole is None else whole
            parts.append(pa.table(columns))
        table = pa.concat_tables(parts)
        return table.replace_schema_metadata({_WATERMARK: str(self.watermark_us).encode()})

    def load(self, state: pa.Table) -> None:
        metadata = state.schema.metadata or {}
        marks = [int(metadata[_WATERMARK])] if _WATERMARK in metadata else []
        if state.num_rows:
            marks.append(pc.min(state.column("state:watermark")).as_py())
        # Of several workers the one that was furthest behind decides, so that none of its rows become late.
        self.watermark_us = min(marks, default=_NEVER_US)
        side = state.column("state:side").to_numpy()
        used = state.column("state:used").to_numpy()
        for number, (name, line, at, keys) in enumerate(
            (
                ("left", self._ours, self.plan.at, self.plan.ours),
                ("right", self._theirs, self.plan.their_at, self.plan.theirs),
            )
        ):
            mine = np.flatnonzero(side == number)
            if not len(mine):
                continue
            whole = state.column(f"state:{name}").take(pa.array(mine)).combine_chunks()
            schema = self.plan.left if number == 0 else self.plan.right
            rows = conform(pa.RecordBatch.from_struct_array(whole), schema)
            columns = [key.of(rows) for key in keys]
            null = np.zeros(len(mine), np.bool_)
            for column in columns:
                null |= pc.is_null(column).to_numpy(zero_copy_only=False)
            coded = self.keys.encode(columns, len(mine)).of_rows()
            line.insert(np.where(null, -1, coded), times(at.of(rows))[0], rows, used[mine])


class AsOf(Matcher):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._pruned = 0  # rows of theirs left after the last pruning

    def _join(self, left: Side, right: Side) -> list[Rows]:
        self._theirs.insert(*right)
        self._ours.insert(*left)
        due = self._ours.time < self.watermark_us
        out = []
        if due.any():
            places = np.flatnonzero(due)
            places = places[np.lexsort((self._ours.number[places], self._ours.time[places]))]
            key, time = self._ours.key[places], self._ours.time[places]
            match = self._theirs.search(key, time, "right") - 1
            missing = match < 0
            if len(self._theirs):
                missing |= (self._theirs.key[match] != key) | (key < 0)
                missing |= time - self._theirs.time[match] > self.plan.within_us
            if not self.plan.outer:
                found = ~missing
                places, match, missing = places[found], match[found], missing[found]
            if len(places):
                out = [self._together(self._ours.rows(places), self._theirs.rows(match, missing))]
            self._ours.keep(~due)
        if len(self._theirs) > 2 * self._pruned + 1024:
            self._expire()
        return out

    def _expire(self) -> None:
        """Ours still to come are not before the watermark: of theirs, only the last not after it can be wanted, and
        those that come after it."""
        theirs, watermark = self._theirs, self.watermark_us
        replaced = np.zeros(len(theirs), np.bool_)
        replaced[:-1] = (theirs.key[1:] == theirs.key[:-1]) & (theirs.time[1:] <= watermark)
        theirs.keep(~(replaced | (theirs.time < watermark - self.plan.within_us)))
        self._pruned = len(theirs)


class Interval(Matcher):
    def _join(self, left: Side, right: Side) -> list[Rows]:
        ours, theirs, plan = self._ours, self._theirs, self.plan
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
        over = ours.time < self.watermark_us - plan.after_us
        if over.any():
            alone = np.flatnonzero(over & ~ours.used)
            if plan.outer and len(alone):
                alone = alone[np.lexsort((ours.number[alone], ours.time[alone]))]
                nothing = np.ones(len(alone), np.bool_)
                out.append(
                    self._together(ours.rows(alone), theirs.rows(np.zeros(len(alone), np.int64), nothing))
                )
            ours.keep(~over)
        gone = theirs.time < self.watermark_us - plan.before_us
        if gone.any():
            theirs.keep(~gone)
        return out

    @staticmethod
    def _mark(line: Timeline, new: Side) -> Bools:
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
