"""Windows of event time with their accumulators, for all keys at once: what tumbling, hopping and session windows have in common.

A *group* is one key in one pane (the stretch of one hop; a tumbling window is one pane) or in one session. Groups are
cells of the accumulators, numbered as they appear; what has come out is marked dead, and the cells are given back
when more are dead than alive.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.aggregate import Bools, Table
from headrace.analysis.columns import stored
from headrace.analysis.groups import Coded, Ids, KeyIndex, grown
from headrace.analysis.results import Plan
from headrace.model import TIMESTAMP, Rows, concat, empty

NEVER_US = -(2**62)
"""The watermark before any event."""

_WATERMARK = b"headrace.watermark_us"


def clip_us(value: int) -> int:
    """`value` within int64, well away from its ends."""
    return max(-(2**62), min(2**62, value))


class Windows:
    """The open windows of a step. `add` rows, then `close` up to a watermark; both in the order of the stream."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys = KeyIndex([key.type for key in plan.keys])
        self.table = plan.table()
        self._nothing = empty(plan.schema)
        self.count = 0  # groups, dead ones among them
        self.dead = 0
        self._most = 0  # groups alive at a time, since keys were last forgotten
        self.alive: Bools = np.zeros(64, np.bool_)
        self.changed: Bools = np.zeros(64, np.bool_)  # since the last provisional result
        self.floors: Ids | None = None  # by key: its windows up to this watermark came out before a restore

    # -- what a kind of window says --------------------------------------------------------------------

    def add(self, rows: Rows, times: Ids, before_us: int) -> Bools | None:
        """Take in rows; gives which of them are late at the watermark `before_us` and were left out, if any."""
        raise NotImplementedError

    def due(self, before_us: int, watermark_us: int) -> Iterator[Rows]:
        """Results of the windows that the watermark completes on its way, in order; their groups are dead then."""
        raise NotImplementedError

    def provisional(self, watermark_us: int) -> Iterator[Rows]:
        """Results so far of the open windows that changed since the last time."""
        raise NotImplementedError

    def group_key(self, groups: Ids) -> Ids:
        raise NotImplementedError

    def keep_groups(self, groups: Ids, keys: Ids) -> None:
        """Renumber what this class keeps by group; `keys` are the new keys of the groups kept."""
        raise NotImplementedError

    def save_groups(self, groups: Ids) -> dict[str, pa.Array]:
        raise NotImplementedError

    def load_groups(self, keys: Ids, state: pa.Table) -> Ids:
        """Groups for rows of state; gives the number of each."""
        raise NotImplementedError

    # -- common to all ---------------------------------------------------------------------------------

    def close(self, before_us: int, watermark_us: int) -> Rows:
        """What comes out when the watermark moves from `before_us` to `watermark_us`."""
        results = list(self.due(before_us, watermark_us))
        early = self.plan.early_us
        if early and watermark_us > NEVER_US and watermark_us // early > before_us // early:
            results += self.provisional(watermark_us)
            self.changed[:] = False
        self._tidy()
        return concat(results, self.plan.schema) if results else self._nothing

    def begin(self, count: int) -> None:
        """Room for `count` groups; the new ones are alive."""
        if count == self.count:
            return
        self.alive = grown(self.alive, count)
        self.alive[self.count : count] = True
        if self.plan.early_us:
            self.changed = grown(self.changed, count, 0)
        self.table.resize(count)
        self.count = count
        self._most = max(self._most, count - self.dead)

    def feed(self, rows: Rows, times: Ids, groups: Ids) -> None:
        """Add rows to their groups."""
        self.table.add(groups, times, self.plan.columns(rows))
        if self.plan.early_us:
            self.changed[groups] = True

    def end(self, groups: Ids) -> None:
        """These groups are done with."""
        self.alive[groups] = False
        self.dead += len(groups)

    def living(self) -> Ids:
        return np.flatnonzero(self.alive[: self.count])

    def encode(self, rows: Rows) -> Coded:
        return self.keys.encode([key.of(rows) for key in self.plan.keys], rows.num_rows)

    def floor_of(self, keys: Ids, before_us: int) -> Ids:
        """The watermark that counts for each key: `before_us`, or the one it was restored with."""
        floors = np.full(len(keys), clip_us(before_us), np.int64)
        if self.floors is not None:
            known = keys < len(self.floors)
            floors[known] = np.maximum(floors[known], self.floors[keys[known]])
        return floors

    def output(self, table: Table, groups: Ids, key: Ids, start: Ids, end: Ids, *, final: bool) -> Rows:
        """Rows of the output schema, sorted by end of window and key."""
        plan = self.plan
        arrays = [*self.keys.values(key), pa.array(start).cast(TIMESTAMP), pa.array(end).cast(TIMESTAMP)]
        arrays += plan.values(table, groups)
        if plan.early_us:
            arrays.append(pa.array(np.full(len(groups), final)))
        rows = pa.RecordBatch.from_arrays(arrays, schema=plan.schema)
        order = [] if len(end) and end[0] == end[-1] and (end == end[0]).all() else ["window_end"]
        order += [*plan.schema.names[: len(plan.keys)], *(["window_start"] if plan.sessions else [])]
        return rows.take(pc.sort_indices(rows, [(name, "ascending") for name in order])) if order else rows

    def _tidy(self) -> None:
        """Give memory back when more is dead than alive."""
        live = self.count - self.dead
        keys_due = len(self.keys) > 2 * max(live, self._most) + 1024  # keys come back from window to window
        if self.dead <= live + 256 and not keys_due:
            return
        groups = self.living()
        keys = self.group_key(groups)
        if keys_due:
            kept = np.unique(keys)
            self._most = live
            new = self.keys.keep(kept)
            keys = new[keys]
            if self.floors is not None:
                floors = np.full(len(kept), NEVER_US, np.int64)
                old = kept[kept < len(self.floors)]
                floors[new[old]] = self.floors[old]
                self.floors = floors
        self.keep_groups(groups, keys)
        self.table.keep(groups)
        if self.plan.early_us:
            self.changed = grown(self.changed[groups], 64, 0)
        self.alive = np.ones(max(64, len(groups)), np.bool_)
        self.count, self.dead = len(groups), 0

    # -- state as rows ---------------------------------------------------------------------------------

    def save(self, watermark_us: int) -> pa.Table:
        """A row for each group: key columns, `window_start`, accumulators. The watermark stands in each row and, for
        when there are none, in the schema's metadata."""
        groups = self.living()
        names = [key.name for key in self.plan.keys]
        columns = dict(zip(names, self.keys.values(self.group_key(groups)), strict=True))
        columns |= self.save_groups(groups) | self.table.save(groups)
        if self.plan.early_us:
            columns["state:changed"] = pa.array(self.changed[groups])
        columns["state:watermark"] = pa.array(self.floor_of(self.group_key(groups), watermark_us))
        return pa.table(columns).replace_schema_metadata({_WATERMARK: str(watermark_us).encode()})

    def load(self, state: pa.Table) -> int:
        """Take over rows of one or more `save`s, into an object without groups; gives the watermark to go on from.

        Of several watermarks that is the lowest: rows of the workers that were behind must not become late. Keys of
        the workers that were ahead keep their own, as their windows up to there are out.
        """
        metadata = state.schema.metadata or {}
        watermarks = [int(metadata[_WATERMARK])] if _WATERMARK in metadata else []
        if not state.num_rows:
            return watermarks[0] if watermarks else NEVER_US
        state = state.combine_chunks()
        arrays = {name: _whole(state.column(name)) for name in state.column_names}
        coded = self.keys.encode(
            [stored(arrays.get(k.name), k.type, state.num_rows) for k in self.plan.keys], state.num_rows
        )
        keys = coded.of_rows()
        own = arrays["state:watermark"].to_numpy().astype(np.int64)
        watermark = min(*watermarks, int(own.min())) if watermarks else int(own.min())
        if own.max() > watermark:
            self.floors = np.full(len(self.keys), NEVER_US, np.int64)
            np.maximum.at(self.floors, keys, own)
        groups = self.load_groups(keys, state)
        loaded = self.plan.table()
        loaded.load(arrays, state.num_rows)
        self.table.merge(groups, loaded, np.arange(state.num_rows))
        if self.plan.early_us and "state:changed" in arrays:
            self.changed[groups[arrays["state:changed"].to_numpy(zero_copy_only=False)]] = True
        return watermark


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
