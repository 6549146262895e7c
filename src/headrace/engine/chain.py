"""The open operators of a pipeline in a row: what a worker runs on every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa

from headrace.component import Aside, Operator, Step, kind_of
from headrace.log import Transaction
from headrace.model import Reject, Rows, Topic, as_json, conform, dead_letters, empty, split
from headrace.pipeline import Pipeline, settle, settled
from headrace.units import Duration, Size

_END_US = 2**60  # later than any event


@dataclass
class Outcome:
    """What one epoch gave: rows, what was put aside, and how the input rows are accounted for."""

    rows: Rows
    late: dict[str, list[Rows]] = field(default_factory=dict)  # topic -> rows
    asides: list[tuple[str, Aside]] = field(default_factory=list)  # (component, what it put aside)
    counts: dict[str, int] = field(default_factory=dict)  # received, sent, filtered, dead, late, emitted

    def write(
        self, transaction: Transaction, pipeline: Pipeline, topics: Mapping[str, Topic], now_us: int
    ) -> None:
        """Append everything to where it belongs: output, late rows, dead letters."""
        for name, batches in ((pipeline.output, [self.rows]), *self.late.items()):
            for rows in batches:
                if name and rows.num_rows:
                    for partition, part in split(rows, topics[name].key, topics[name].partitions).items():
                        transaction.append(name, partition, part)
        origin = "+".join(pipeline.topics)
        for component, aside in self.asides:
            # Made only here: an epoch that runs again to rebuild the state needs no letters.
            sources = _sources(aside.rows)
            rejects = [
                Reject(raw, aside.code, aside.reasons[i], sources[i], i)
                for i, raw in enumerate(as_json(aside.rows))
            ]
            letters = dead_letters(rejects, now_us=now_us, topic=origin, component=component)
            transaction.append("dead_letters", 0, letters)


class Chain:
    """A pipeline opened on the present schemas of its topics."""

    def __init__(self, pipeline: Pipeline, topics: Mapping[str, Topic]) -> None:
        self._pipeline = pipeline
        self._steps: Sequence[Step] = pipeline.bound(topics)
        self._within = pipeline.within(topics)
        self.schemas = (*self._within[:-1], settled(self._within[-1]))
        self.operators: list[Operator] = [
            step.open(schema) for step, schema in zip(self._steps, self.schemas, strict=False)
        ]
        self.fingerprints = [fingerprint(step) for step in pipeline.steps]

    @property
    def stateful(self) -> bool:
        """Whether time alone can make rows come out."""
        return any(step.key() is not None for step in self._steps)

    def process(
        self,
        inputs: Sequence[Rows],
        sides: Mapping[str, Sequence[Rows]],
        watermark_us: int,
        *,
        ending: Collection[int] = (),
    ) -> Outcome:
        """Run all steps on `inputs` (rows of the pipeline's topics), after `sides` (rows of topics that steps read).
        The steps at the positions `ending` give all that they still hold, as at the end of time."""
        batches = [conform(rows, self.schemas[0]) for rows in inputs if rows.num_rows]
        rows = (
            pa.concat_batches(batches)
            if len(batches) > 1
            else batches[0]
            if batches
            else empty(self.schemas[0])
        )
        outcome = Outcome(rows)
        received = rows.num_rows
        filtered = dead = late = 0
        whole = True  # until a step gives other rows than it got, counts are in rows of the input
        for number, (step, operator) in enumerate(zip(self._steps, self.operators, strict=True)):
            for topic in step.reads():
                for side in sides.get(topic, ()):
                    operator.side(topic, side)
            before = rows.num_rows
            rows = operator.process(rows, _END_US if number in ending else watermark_us)
            aside = 0
            for item in operator.aside():
                count = item.rows.num_rows
                aside += count
                if item.to:
                    outcome.late.setdefault(item.to, []).append(settle(item.rows, self._within[number]))
                elif count:
                    outcome.asides.append((f"{self._pipeline.name}.{kind_of(step)}", item))
                if whole:
                    if item.code == "late" or item.to:
                        late += count
                    else:
                        dead += count
            if step.shape == "filter" and whole:
                filtered += before - rows.num_rows - aside
            if step.shape in ("expand", "absorb"):
                whole = False
        outcome.rows = settle(rows, self._within[-1])
        outcome.counts = {
            "received": received,
            "sent": received - filtered - dead - late,
            "filtered": filtered,
            "dead": dead,
            "late": late,
            "emitted": rows.num_rows,
        }
        return outcome

    def refresh(self, now_us: int) -> None:
        for operator in self.operators:
            operator.refresh(now_us)

    def ending(self, successor: Pipeline) -> list[int]:
        """Positions of the steps whose state `successor` can't take over."""
        prints = [fingerprint(step) for step in successor.steps]
        ending = []
        for number, step in enumerate(self._steps):
            if self.fingerprints[number] in prints:
                del prints[: prints.index(self.fingerprints[number]) + 1]
            elif step.key() is not None:
                ending.append(number)
        return ending

    @property
    def problem(self) -> str:
        """What operators complain of, by step; empty when all is well."""
        told = (
            (number, kind_of(step), operator.problem)
            for number, (step, operator) in enumerate(zip(self._steps, self.operators, strict=True), 1)
        )
        return "; ".join(f"step {number} ({kind}): {problem}" for number, kind, problem in told if problem)

    def snapshot(self) -> list[pa.Table]:
        return [operator.snapshot() for operator in self.operators]

    def restore(self, states: Sequence[pa.Table], fingerprints: Sequence[str]) -> list[int]:
        """Take over states of steps that are the same as then, matched in order; gives the positions of steps that
        keep state and found none."""
        available = list(zip(fingerprints, states, strict=True))
        missing = []
        for number, operator in enumerate(self.operators):
            for i, (print_, state) in enumerate(available):
                if print_ == self.fingerprints[number]:
                    if state.num_columns:
                        operator.restore(state)
                    del available[: i + 1]
                    break
            else:
                if self._steps[number].key() is not None:
                    missing.append(number)
        return missing


def fingerprint(step: Step) -> str:
    """Same text for steps with the same kind and options: their state can be exchanged."""

    def plain(value: object) -> object:
        if isinstance(value, (Duration, Size)):
            return str(value)
        raise NotImplementedError

    options = msgspec.json.encode(step, enc_hook=plain, order="sorted")
    return f"{kind_of(step)}:{hashlib.sha256(options).hexdigest()[:16]}"


def _sources(rows: Rows) -> list[str | None]:
    for name in ("source_id", "sensor_id"):
        if name in rows.schema.names:
            return [None if value is None else str(value) for value in rows.column(name).to_pylist()]
    return [None] * rows.num_rows
