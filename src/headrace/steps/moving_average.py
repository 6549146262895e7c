"""Smooth a value per key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.columns import Pick, floats, pick_key, pick_number, pick_time, stored, times
from headrace.analysis.groups import Ids, KeyIndex, compact, expand, grown, running_max, stable_order
from headrace.analysis.moving import Floats, decayed_counts, first_after, smooth, window_sums
from headrace.component import Aside, Duration, Operator, PlanError, Rows, Step, option

_NEVER_US = -(2**62)
_MOST = 10_000  # values kept for a key when only `over` is given


class MovingAverage(Step, frozen=True, kw_only=True):
    """Add the moving average of a value per key, including the row itself, in the order in which rows arrive.

    `simple` is the mean and `weighted` the linearly weighted mean (newest most) of the last `count` values, or of those
    in the time `over` up to the row (of the newest 10,000 at most), or both. `exponential` takes `alpha`, a `count` (alpha =
    2 / (count + 1)), or a `half_life`, after which a value counts half; several values at a time count alike.
    A row that comes out of order counts at the latest time seen for its key. A row without a finite value gets the
    average as it stands. A key that was silent for `expire` starts anew.
    """

    shorthand: ClassVar[str] = "value"

    value: Annotated[str, option("column to average; a dotted path goes into structs", min_length=1)]
    by: Annotated[str | list[str], option("key columns; none: one average over all rows")] = msgspec.field(
        default_factory=list
    )
    kind: Annotated[Literal["simple", "exponential", "weighted"], option("how values are weighted")] = (
        "simple"
    )
    count: Annotated[int | None, option("number of values", ge=1, le=100_000)] = None
    over: Annotated[Duration | None, option("time up to the row whose values count")] = None
    alpha: Annotated[float | None, option("exponential: weight of the newest value", gt=0, le=1)] = None
    half_life: Annotated[Duration | None, option("exponential: age at which a value counts half")] = None
    at: Annotated[str, option("event-time column", min_length=1)] = "timestamp"
    to: Annotated[str, option("name of the new column", min_length=1)] = "moving_average"
    expire: Annotated[Duration, option("silence after which a key is forgotten")] = Duration.parse("1d")

    @classmethod
    def example(cls) -> MovingAverage:
        return cls(value="value", by=["sensor_id"], count=5)

    def check(self) -> None:
        if self.kind == "exponential":
            if self.over is not None:
                raise PlanError(
                    "moving_average: an exponential average has no end; give half_life in place of over"
                )
            if sum(option_ is not None for option_ in (self.alpha, self.half_life, self.count)) != 1:
                raise PlanError(
                    "moving_average: an exponential average needs one of alpha, half_life and count"
                )
        else:
            if self.alpha is not None or self.half_life is not None:
                raise PlanError(
                    f"moving_average: alpha and half_life belong to exponential, not to {self.kind}"
                )
            if self.count is None and self.over is None:
                raise PlanError(f"moving_average: a {self.kind} average needs count or over")
        for name in ("over", "half_life", "expire"):
            if getattr(self, name) is not None and getattr(self, name).us == 0:
                raise PlanError(f"moving_average: {name} must be longer than 0s")

    def key(self) -> Sequence[str]:
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    def output(self, schema: pa.Schema) -> pa.Schema:
        return self._plan(schema).schema

    def open(self, schema: pa.Schema) -> Operator:
        plan = self._plan(schema)
        return _Exponential(plan) if self.kind == "exponential" else _Windowed(plan)

    def _plan(self, schema: pa.Schema) -> _Plan:
        self.check()
        if self.to in schema.names:
            raise PlanError(f"moving_average: there is a column {self.to!r} already; name another by `to`")
        return _Plan(
            step=self,
            schema=schema.append(pa.field(self.to, pa.float64())),
            value=pick_number(schema, self.value, step="moving_average", option="value"),
            keys=tuple(pick_key(schema, path, step="moving_average") for path in self.key()),
            at=pick_time(schema, self.at, step="moving_average"),
        )


@dataclass(frozen=True)
class _Plan:
    step: MovingAverage
    schema: pa.Schema
    value: Pick
    keys: tuple[Pick, ...]
    at: Pick


@dataclass(frozen=True)
class _Runs:
    """The rows of a batch that have a value, grouped by key: run r is of key `keys[r]` and begins at `begins[r]`.
    `times` do not go back within a run; `fresh` rows start their key anew."""

    keys: Ids
    begins: Ids
    lengths: Ids
    of: Ids
    values: Floats
    times: Ids
    fresh: npt.NDArray[np.bool_]


class _Operator(Operator):
    """What both kinds share: grouping, expiry, and the average of rows without a value."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._expire_us = plan.step.expire.us
        self._keys = KeyIndex([key.type for key in plan.keys])
        self._last: Ids = np.empty(0, np.int64)  # by key: latest time of a value
        self._average: Floats = np.empty(0)
        self._look_us = _NEVER_US  # the watermark from which expired keys are looked for again
        self._aside: list[Aside] = []

    # -- of each kind ----------------------------------------------------------------------------------

    def _averages(self, runs: _Runs) -> Floats:
        """The average at each row of the runs; the state moves on."""
        raise NotImplementedError

    def _resize(self, size: int) -> None:
        self._last = grown(self._last, size, _NEVER_US)
        self._average = grown(self._average, size, np.nan)

    def _keep(self, keys: Ids, new: Ids) -> None:
        """Forget all keys but these; `new` are their new ids."""
        last, average = self._last[keys], self._average[keys]
        self._last, self._average = np.full(len(keys), _NEVER_US), np.full(len(keys), np.nan)
        self._last[new], self._average[new] = last, average

    def _save(self, keys: Ids) -> dict[str, pa.Array]:
        return {"state:last": pa.array(self._last[keys]), "state:average": pa.array(self._average[keys])}

    def _load(self, keys: Ids, state: pa.Table) -> None:
        self._last[keys] = state.column("state:last").to_numpy()
        self._average[keys] = state.column("state:average").to_numpy()

    # -- the operator ----------------------------------------------------------------------------------

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        stamps, bad = times(self._plan.at.of(rows))
        if bad is not None:
            chosen = rows.filter(pa.array(bad))
            reason = f"moving_average: {self._plan.at.name} is missing or out of range"
            self._aside.append(Aside(chosen, "no_time", [reason] * chosen.num_rows))
            good = np.flatnonzero(~bad)
            rows, stamps = rows.take(pa.array(good)), stamps[good]
        found = self._add(rows, stamps) if rows.num_rows else np.empty(0)
        self._forget(watermark_us)
        column = pa.array(found, mask=np.isnan(found))
        return pa.RecordBatch.from_arrays([*rows.columns, column], schema=self._plan.schema)

    def _add(self, rows: Rows, stamps: Ids) -> Floats:
        keys = self._keys.encode([key.of(rows) for key in self._plan.keys], rows.num_rows).of_rows()
        self._resize(len(self._keys))
        values = floats(self._plan.value.of(rows))
        present, local = compact(keys, len(self._keys))
        order = stable_order(local, len(present))
        local, stamps, values = local[order], stamps[order], values[order]
        usable = np.isfinite(values)
        result = np.full(len(values), np.nan)
        before = self._average[present], self._last[present]
        at = usable.nonzero()[0]
        reached = np.empty(0, np.int64)
        if len(at):
            runs = self._runs(present, local[at], values[at], stamps[at])
            with np.errstate(all="ignore"):  # sums beyond the largest number are infinite
                result[at] = self._averages(runs)
            ends = runs.begins + runs.lengths - 1
            self._last[runs.keys], self._average[runs.keys] = runs.times[ends], result[at][ends]
            reached = runs.times
        if len(at) < len(values):
            self._carry(result, usable, local, stamps, reached, before)
        back = np.empty(len(values))
        back[order] = result
        return back

    def _runs(self, present: Ids, local: Ids, values: Floats, stamps: Ids) -> _Runs:
        begins = np.ones(len(local), np.bool_)
        begins[1:] = local[1:] != local[:-1]
        firsts = begins.nonzero()[0]
        keys = present[local[firsts]]
        lengths = np.diff(np.append(firsts, len(local)))
        of = np.cumsum(begins) - 1
        reached = np.maximum(stamps, self._last[keys][of])
        if ((reached[1:] < reached[:-1]) & ~begins[1:]).any():
            reached = running_max(begins, reached)
        previous = np.empty(len(local), np.int64)
        previous[1:] = reached[:-1]
        previous[firsts] = self._last[keys]
        return _Runs(keys, firsts, lengths, of, values, reached, reached - previous >= self._expire_us)

    def _carry(
        self,
        result: Floats,
        usable: npt.NDArray[np.bool_],
        local: Ids,
        stamps: Ids,
        reached: Ids,
        before: tuple[Floats, Ids],
    ) -> None:
        """Rows without a value get the average of the row of their key before them, unless it has expired."""
        number = np.cumsum(usable) - 1  # of the last row with a value so far
        rows = (~usable).nonzero()[0]
        of = local[usable]
        inside = number[rows] >= 0
        inside[inside] = of[number[rows[inside]]] == local[rows[inside]]
        average, last = before[0][local[rows]], before[1][local[rows]]
        average[inside] = result[usable][number[rows[inside]]]
        last[inside] = reached[number[rows[inside]]]
        result[rows] = np.where(stamps[rows] - last < self._expire_us, average, np.nan)

    def _forget(self, watermark_us: int) -> None:
        """Drop keys that were silent for too long, once they are the greater part."""
        if watermark_us < self._look_us:
            return
        self._look_us = watermark_us + self._expire_us // 4 + 1
        size = len(self._keys)
        kept = (self._last[:size] > watermark_us - self._expire_us).nonzero()[0]
        if self._plan.keys and 2 * len(kept) < size:
            new = self._keys.keep(kept)
            self._keep(kept, new[kept])

    def aside(self) -> Sequence[Aside]:
        handed, self._aside = self._aside, []
        return handed

    def snapshot(self) -> pa.Table:
        keys = (self._last[: len(self._keys)] > _NEVER_US).nonzero()[0]
        columns = dict(zip((k.name for k in self._plan.keys), self._keys.values(keys), strict=True))
        return pa.table(columns | self._save(keys))

    def restore(self, state: pa.Table) -> None:
        if not state.num_rows:
            return
        state = state.combine_chunks()
        arrays = {name: state.column(name).combine_chunks() for name in state.column_names}
        columns = [stored(arrays.get(key.name), key.type, state.num_rows) for key in self._plan.keys]
        keys = self._keys.encode(columns, state.num_rows).of_rows()
        self._resize(len(self._keys))
        self._load(keys, state)


class _Windowed(_Operator):
    """Simple and weighted: the newest values of each key are kept, as many as a later window may need."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__(plan)
        step = plan.step
        self._count = step.count or _MOST
        self._over_us = step.over.us if step.over is not None else 0
        self._values: list[Floats] = []  # by key
        self._times: list[Ids] = []
        self._number: Ids = np.empty(0, np.int64)  # by key: values so far

    def _averages(self, runs: _Runs) -> Floats:
        keys = runs.keys.tolist()
        kept = np.array([len(self._values[key]) for key in keys], np.int64)
        lengths = kept + runs.lengths
        starts = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        values, stamps = np.empty(total), np.zeros(total, np.int64)
        place = starts[runs.of] + kept[runs.of] + np.arange(len(runs.of)) - runs.begins[runs.of]
        values[place] = runs.values
        old = expand(starts, kept)
        values[old] = np.concatenate([self._values[key] for key in keys])
        begin = np.maximum(starts[runs.of], place + 1 - self._count)
        if self._over_us:
            stamps[place] = runs.times
            stamps[old] = np.concatenate([self._times[key] for key in keys])
            begin = np.maximum(begin, first_after(lengths, stamps, runs.of, runs.times - self._over_us))
        # `place` grows all along, and a start of an earlier key never exceeds the start of this one.
        begin = np.maximum(begin, np.maximum.accumulate(np.where(runs.fresh, place, 0)))
        shift = (self._number[runs.keys] - kept - starts)[runs.of]  # from place to number
        plain, ramp = window_sums(
            values, lengths, self._number[runs.keys] - kept, runs.of, begin + shift, place + 1 + shift
        )
        size = place + 1 - begin
        self._number[runs.keys] += runs.lengths
        ends = runs.begins + runs.lengths - 1
        tails = np.maximum(begin[ends], starts + lengths - (self._count - 1)).tolist()
        for key, low, high in zip(keys, tails, (starts + lengths).tolist(), strict=True):
            self._values[key] = values[low:high].copy()
            if self._over_us:
                self._times[key] = stamps[low:high].copy()
        averages: Floats = (
            plain / size if self._plan.step.kind == "simple" else ramp / (size * (size + 1) / 2)
        )
        return averages

    def _resize(self, size: int) -> None:
        super()._resize(size)
        self._number = grown(self._number, size, 0)
        more = size - len(self._values)
        self._values += [np.empty(0)] * more
        self._times += [np.empty(0, np.int64)] * more

    def _keep(self, keys: Ids, new: Ids) -> None:
        super()._keep(keys, new)
        number = np.zeros(len(keys), np.int64)
        number[new] = self._number[keys]
        self._number = number
        old = keys[np.argsort(new)].tolist()
        self._values, self._times = [self._values[key] for key in old], [self._times[key] for key in old]

    def _save(self, keys: Ids) -> dict[str, pa.Array]:
        saved = super()._save(keys) | {"state:number": pa.array(self._number[keys])}
        saved["state:values"] = _lists([self._values[key] for key in keys.tolist()], pa.float64())
        saved["state:times"] = _lists([self._times[key] for key in keys.tolist()], pa.int64())
        return saved

    def _load(self, keys: Ids, state: pa.Table) -> None:
        super()._load(keys, state)
        self._number[keys] = state.column("state:number").to_numpy()
        for name, store in (("state:values", self._values), ("state:times", self._times)):
            column = state.column(name).combine_chunks()
            flat = column.flatten().to_numpy()
            ends = np.cumsum(pc.list_value_length(column).to_numpy())
            for key, part in zip(keys.tolist(), np.split(flat, ends[:-1]), strict=True):
                store[key] = part.copy()


def _lists(arrays: Sequence[npt.NDArray[np.generic]], type_: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(len(array) for array in arrays)])
    flat = np.concatenate(arrays) if arrays else np.empty(0)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat, type_))


class _Exponential(_Operator):
    """The state of a key is its average, and with a half-life the weight of what is in it."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__(plan)
        step = plan.step
        self._half_life_us = step.half_life.us if step.half_life is not None else 0
        self._alpha = step.alpha if step.alpha is not None else 2 / ((step.count or 1) + 1)
        self._weight: Floats = np.empty(0)

    def _averages(self, runs: _Runs) -> Floats:
        average = self._average[runs.keys]
        gains = np.full(len(runs.of), self._alpha)
        if self._half_life_us:
            previous = np.empty(len(runs.of), np.int64)
            previous[1:] = runs.times[:-1]
            previous[runs.begins] = self._last[runs.keys]
            decay = np.where(runs.fresh, 0.0, np.exp2(-(runs.times - previous) / self._half_life_us))
            weights = decayed_counts(decay, runs.begins, self._weight[runs.keys])
            self._weight[runs.keys] = weights[runs.begins + runs.lengths - 1]
            gains = 1 / weights
        return smooth(runs.values, gains, runs.fresh, runs.begins, average)

    def _resize(self, size: int) -> None:
        super()._resize(size)
        self._weight = grown(self._weight, size, 0)

    def _keep(self, keys: Ids, new: Ids) -> None:
        super()._keep(keys, new)
        weight = np.zeros(len(keys))
        weight[new] = self._weight[keys]
        self._weight = weight

    def _save(self, keys: Ids) -> dict[str, pa.Array]:
        return super()._save(keys) | {"state:weight": pa.array(self._weight[keys])}

    def _load(self, keys: Ids, state: pa.Table) -> None:
        super()._load(keys, state)
        self._weight[keys] = state.column("state:weight").to_numpy()
