"""The laws every step keeps, as checks that any step can be put through.

For the steps of this package, `tests/conformance/test_steps.py` runs them all. For your own:

    import pytest
    from acme.steps import Smooth
    from headrace.testing.step_conformance import LAWS

    @pytest.mark.parametrize("law", LAWS)
    def test_smooth_keeps_the_laws(law):
        law(Smooth)

A step shows itself by `example()` and brings the rows to run on in `example_input()`, which must be in order of event
time, with all rows of one moment on time at that moment. A step that reads other topics gives their rows in
`example_sides()`. A law that is broken raises AssertionError; Hypothesis then prints the cuts that break it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.component import Aside, Operator, Rows, Step, load
from headrace.expression import find_column
from headrace.model import OPEN, concat, conform, empty, partition_of

_END_US = 2**60
_law_settings = settings(
    max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def discover() -> list[type[Step]]:
    """The step of every module in `headrace.steps`. A module without one raises LookupError."""
    package = importlib.import_module("headrace.steps")
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        cls = load("steps", module.name)
        if not issubclass(cls, Step):
            raise LookupError(f"headrace.steps.{module.name} names no step")
        found.append(cls)
    return found


# -- the laws --------------------------------------------------------------------------------------


def declared_schema_is_the_real_one(cls: type[Step]) -> None:
    """`process` gives exactly the columns of `output`, also for no rows, and well-formed arrays."""
    bench = _Bench.of(cls)
    declared = bench.step.output(bench.rows.schema)
    for rows in (bench.rows, bench.rows.slice(3, 5), empty(bench.rows.schema)):
        operator = bench.open()
        bench.hand_sides(operator, -(2**62), _END_US)
        for watermark_us in (0, _END_US):
            result = operator.process(rows, watermark_us)
            assert result.schema.equals(declared, check_metadata=True), f"{result.schema} is not {declared}"
            result.validate(full=True)
            for column, of in zip(result.columns, declared, strict=True):
                assert of.nullable or not column.null_count, f"{of.name} is declared never null, and is"
            rows = empty(bench.rows.schema)


def cut_into_epochs_does_not_matter(cls: type[Step]) -> None:
    """On-time rows give the same rows, whatever the epochs."""
    bench = _Bench.of(cls)
    whole = bench.run([])

    @_law_settings
    @given(_cuts(bench.rows.num_rows))
    def law(cuts: list[int]) -> None:
        _same(bench.run(cuts), whole)

    law()
    _same(bench.run(list(range(bench.rows.num_rows))), whole)  # epochs of one row


def restart_does_not_matter(cls: type[Step]) -> None:
    """Saving the state at any epoch's end and going on with it in a fresh operator gives the same rows."""
    bench = _Bench.of(cls)
    whole = bench.run([])

    @_law_settings
    @given(_cuts(bench.rows.num_rows))
    def law(cuts: list[int]) -> None:
        _same(bench.run(cuts, restart=True), whole)

    law()


def rescaling_does_not_matter(cls: type[Step]) -> None:
    """State divided by the partition of its key between two operators, and put together again, gives the same rows."""
    bench = _Bench.of(cls)
    key = bench.step.key()
    if not key:
        return
    whole = bench.run([])

    @_law_settings
    @given(st.integers(0, bench.rows.num_rows), st.integers(0, bench.rows.num_rows))
    def law(a: int, b: int) -> None:
        first, second = sorted((a, b))
        _same(_rescaled(bench, key, first, second), whole)

    law()


def same_rows_twice_give_the_same(cls: type[Step]) -> None:
    """No clock and no chance: two runs agree to the last bit, and in order."""
    bench = _Bench.of(cls)
    cuts = [bench.rows.num_rows // 3, bench.rows.num_rows // 2]
    one, two = bench.run(cuts), bench.run(cuts)
    assert one.rows.equals(two.rows) or _plain_rows(one.rows) == _plain_rows(two.rows)
    assert one.asides == two.asides


def every_row_is_accounted_for(cls: type[Step]) -> None:
    """For `map` and `filter`, late rows included: rows in = out + put aside, or more for `filter`, never less."""
    bench = _Bench.of(cls)
    if bench.step.shape not in ("map", "filter"):
        return
    operator = bench.open()
    bench.hand_sides(operator, -(2**62), _END_US)
    half = bench.rows.num_rows // 2
    batches = [
        bench.rows.slice(half),
        bench.rows.slice(0, half),
        bench.rows.slice(half, 3),
    ]  # the second is late
    for rows in batches:
        out = operator.process(rows, bench.newest_us)
        spent = out.num_rows + sum(aside.rows.num_rows for aside in operator.aside())
        if bench.step.shape == "map":
            assert spent == rows.num_rows, f"{rows.num_rows} rows went in, {spent} are accounted for"
        else:
            assert spent <= rows.num_rows, f"{rows.num_rows} rows went in, {spent} came out"


def asides_are_handed_out_once(cls: type[Step]) -> None:
    """A second call of `aside` gives nothing; each row has a reason and each group a code."""
    bench = _Bench.of(cls)
    operator = bench.open()
    bench.hand_sides(operator, -(2**62), _END_US)
    for rows in (bench.rows, bench.rows, bench.rows.slice(0, 0)):  # the second time, all is late
        operator.process(rows, _END_US)
        for aside in operator.aside():
            assert aside.code or aside.to, "rows put aside need a code"
            assert len(aside.reasons) == aside.rows.num_rows, "one reason for each row put aside"
        assert list(operator.aside()) == [], "handed out twice"


def state_survives_a_grown_schema(cls: type[Step]) -> None:
    """A new field in an open struct reopens the step on the wider schema, with the state of before."""
    bench = _Bench.of(cls)
    grown = pa.schema([_grown(field_) for field_ in bench.rows.schema], metadata=bench.rows.schema.metadata)
    if grown.equals(bench.rows.schema):
        return
    half = bench.rows.num_rows // 2
    operator = bench.open()
    bench.feed(operator, bench.rows.slice(0, half), -(2**62), bench.watermark(half))
    wider = bench.step.open(grown)
    _restore(wider, operator.snapshot())
    declared = bench.step.output(grown)
    result = wider.process(conform(bench.rows.slice(half), grown), _END_US)
    assert result.schema.equals(declared, check_metadata=True)


LAWS: tuple[Callable[[type[Step]], None], ...] = (
    declared_schema_is_the_real_one,
    cut_into_epochs_does_not_matter,
    restart_does_not_matter,
    rescaling_does_not_matter,
    same_rows_twice_give_the_same,
    every_row_is_accounted_for,
    asides_are_handed_out_once,
    state_survives_a_grown_schema,
)
"""Every check; each takes the class of a step."""


# -- running a step --------------------------------------------------------------------------------


@dataclass
class _Run:
    rows: Rows
    asides: list[tuple[str, str, str]]  # code, topic, row; in order


@dataclass
class _Bench:
    """A step with its example rows, and the watermark that makes each of them on time."""

    step: Step
    rows: Rows
    times: Any  # event time by row, never falling
    sides: Mapping[str, Rows] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: type[Step]) -> _Bench:
        step, rows, sides = kind.example(), kind.example_input(), kind.example_sides()
        missing = set(step.reads()) - sides.keys()
        assert not missing, f"{kind.__name__}.example_sides() gives no rows of {', '.join(missing)}"
        step = step.bind({topic: side.schema for topic, side in sides.items()})
        times = _times(rows, getattr(step, "at", "timestamp"))
        assert rows.num_rows > 10, "example_input() needs more rows to be cut"
        assert (np.diff(times) >= 0).all(), "example_input() must be in order of event time"
        return cls(step, rows, times, sides)

    @property
    def newest_us(self) -> int:
        return int(self.times[-1])

    def open(self) -> Operator:
        return self.step.open(self.rows.schema)

    def watermark(self, end: int) -> int:
        """After the first `end` rows."""
        return int(self.times[end - 1]) if end else -(2**62)

    def hand_sides(self, operator: Operator, after_us: int, until_us: int) -> None:
        """Rows of the other topics that the watermark passes on its way."""
        for topic, side in self.sides.items():
            times = _times(side, "timestamp")
            chosen = side.filter(pa.array((times > after_us) & (times <= until_us)))
            if chosen.num_rows:
                operator.side(topic, chosen)

    def feed(
        self, operator: Operator, rows: Rows, before_us: int, watermark_us: int
    ) -> tuple[Rows, Sequence[Aside]]:
        self.hand_sides(operator, before_us, watermark_us)
        return operator.process(rows, watermark_us), operator.aside()

    def run(self, cuts: Sequence[int], *, restart: bool = False) -> _Run:
        """All rows in epochs that end at `cuts`, then the end of time."""
        operator, before_us = self.open(), -(2**62)
        results: list[tuple[Rows, Sequence[Aside]]] = []
        for start, end in pairwise([0, *sorted(cuts), self.rows.num_rows]):
            watermark_us = self.watermark(end)
            results.append(self.feed(operator, self.rows.slice(start, end - start), before_us, watermark_us))
            before_us = watermark_us
            if restart:
                state, operator = operator.snapshot(), self.open()
                _restore(operator, state)
        results.append(self.feed(operator, empty(self.rows.schema), before_us, _END_US))
        return self.gather(results)

    def gather(self, results: Sequence[tuple[Rows, Sequence[Aside]]]) -> _Run:
        asides = [
            (aside.code, aside.to, row)
            for _, group in results
            for aside in group
            for row in _plain_rows(aside.rows)
        ]
        return _Run(concat([rows for rows, _ in results], self.step.output(self.rows.schema)), asides)


def _rescaled(bench: _Bench, key: Sequence[str], first: int, second: int) -> _Run:
    """One operator up to row `first`, two up to `second`, one to the end."""
    results = []

    def part(operator: Operator, rows: Rows, before: int, after: int) -> None:
        results.append(bench.feed(operator, rows, bench.watermark(before), bench.watermark(after)))

    one = bench.open()
    part(one, bench.rows.slice(0, first), 0, first)
    state = _stored(one.snapshot())
    halves = [bench.open(), bench.open()]
    rows = bench.rows.slice(first, second - first)
    for number, operator in enumerate(halves):
        if state.num_columns:
            _restore(operator, state.filter(pa.array(_partition(state, key, 2) == number)))
        part(operator, rows.filter(pa.array(_partition(rows, key, 2) == number)), first, second)
    states = [_stored(operator.snapshot()) for operator in halves]
    last = bench.open()
    if states[0].num_columns:
        last.restore(pa.concat_tables(states, promote_options="default"))
    part(last, bench.rows.slice(second), second, bench.rows.num_rows)
    results.append(bench.feed(last, empty(bench.rows.schema), bench.newest_us, _END_US))
    return bench.gather(results)


def _partition(rows: Rows | pa.Table, key: Sequence[str], partitions: int) -> Any:
    """Partition by key of rows, or of rows of state, where a dotted path may stand under its last part."""
    if isinstance(rows, pa.Table):
        missing = [
            n for n in key if n not in rows.column_names and n.rpartition(".")[2] not in rows.column_names
        ]
        assert not missing, f"the state has no column {missing} of the key, so it can't be divided"
        whole = rows.combine_chunks()
        columns = [whole.column(n if n in rows.column_names else n.rpartition(".")[2]) for n in key]
        arrays = [pa.concat_arrays(c.chunks) if c.num_chunks else pa.nulls(0, c.type) for c in columns]
    else:
        found = [find_column(rows.schema, [n] if n in rows.schema.names else n.split(".")) for n in key]
        arrays = [column.take(rows) if column else pa.nulls(rows.num_rows, pa.float64()) for column in found]
    return partition_of(pa.RecordBatch.from_arrays(arrays, names=list(key)), key, partitions)


def _restore(operator: Operator, state: pa.Table) -> None:
    if state.num_columns:
        operator.restore(_stored(state))


def _stored(state: pa.Table) -> pa.Table:
    """State as it comes back from a checkpoint."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, state.schema) as writer:
        writer.write_table(state)
    with pa.ipc.open_stream(stream.getvalue()) as reader:
        return reader.read_all()


def _times(rows: Rows, name: str) -> Any:
    if name not in rows.schema.names:
        return np.zeros(rows.num_rows, np.int64)
    return rows.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _grown(field_: pa.Field) -> pa.Field:
    if field_.metadata is None or b"headrace.open" not in field_.metadata:
        return field_
    return field_.with_type(pa.struct([*field_.type, pa.field("brand_new", pa.string())])).with_metadata(OPEN)


def _cuts(rows: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, rows), max_size=8)


def _same(run: _Run, whole: _Run) -> None:
    """The same rows, out and aside, in any order."""
    for name, ours, theirs in (
        ("rows", _plain_rows(run.rows), _plain_rows(whole.rows)),
        ("put aside", [str(aside) for aside in run.asides], [str(aside) for aside in whole.asides]),
    ):
        more, less = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
        assert sum((more + less).values()) == 0, (
            f"{name}: too many {list(more)[:3]}, missing {list(less)[:3]}"
        )


def _plain_rows(rows: Rows) -> list[str]:
    """Rows as text. Sums may differ in their last digits with the order of adding, so nine digits count."""
    return [repr(_plain(row)) for row in rows.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value + 0.0:.9g}"
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
