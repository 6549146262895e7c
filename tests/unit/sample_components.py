"""Small real components, so that configurations can be read without those of the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pyarrow as pa

from headrace.component import (
    EVENTS,
    Arrival,
    Component,
    Duration,
    Operator,
    PlanError,
    Reject,
    Sink,
    Size,
    Source,
    Step,
    Topic,
    Writer,
    option,
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    low: Annotated[float, option("lowest")] = 0.0
    high: Annotated[float, option("highest")] = 1.0


class Thermometer(Source, frozen=True, kw_only=True):
    """A source with an option of each type."""

    interval: Annotated[Duration, option("how often", gt=0)] = Duration.parse("1s")
    rate: Annotated[float, option("readings a second", gt=0, le=1000)] = 1.0
    devices: Annotated[int, option("how many", ge=1)] = 3
    buffer: Annotated[Size | None, option("room for readings")] = None
    mode: Annotated[Literal["fast", "slow"], option("how hard to try")] = "fast"
    labels: Annotated[dict[str, str], option("fixed texts")] = {}  # noqa: RUF012 - msgspec copies it
    rooms: Annotated[tuple[str, ...], option("where they hang")] = ()
    limits: Annotated[Limits | None, option("what is plausible")] = None
    verbose: Annotated[bool, option("say more")] = False
    token: Annotated[str, option("password")] = ""

    def schema(self) -> pa.Schema:
        return EVENTS

    def check(self) -> None:
        if self.mode == "slow" and self.rate > 100:
            raise PlanError("a slow thermometer gives at most 100 readings a second")


class Keep(Step, frozen=True, kw_only=True):
    """Only these columns."""

    shorthand: ClassVar[str] = "columns"
    columns: Annotated[tuple[str, ...], option("columns to keep", min_length=1)]

    def output(self, schema: pa.Schema) -> pa.Schema:
        for name in self.columns:
            if name not in schema.names:
                raise PlanError(f"no column {name!r}; there are {', '.join(schema.names)}")
        return pa.schema([schema.field(name) for name in self.columns])

    def open(self, schema: pa.Schema) -> Operator:
        raise NotImplementedError


class Rename(Step, frozen=True, kw_only=True):
    """New names: its main option is a mapping."""

    shorthand: ClassVar[str] = "names"
    names: Annotated[dict[str, str], option("old to new")]

    def output(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([f.with_name(self.names.get(f.name, f.name)) for f in schema])


class Tally(Step, frozen=True, kw_only=True):
    """Keeps state by key, and puts late rows aside."""

    by: Annotated[tuple[str, ...], option("key")] = ()
    late: Annotated[str, option("topic of late rows")] = ""

    def output(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema(
            [schema.field("timestamp"), *[schema.field(name) for name in self.by], pa.field("n", pa.int64())]
        )

    def key(self) -> tuple[str, ...]:
        return self.by


class Nowhere(Sink, frozen=True, kw_only=True):
    """Takes anything."""

    path: Annotated[str, option("place")] = ""

    def open(self, topic: Topic, *, name: str) -> Writer:
        raise NotImplementedError


def fields(component: Component) -> dict[str, Any]:
    return {name: getattr(component, name) for name in component.__struct_fields__}


class Counter(Source, frozen=True, kw_only=True):
    """Counts up to `total`, in arrivals of `size` rows, and ends."""

    total: Annotated[int, option("rows in all", ge=0)] = 100
    size: Annotated[int, option("rows of one arrival", ge=1)] = 10

    def schema(self) -> pa.Schema:
        return pa.schema([*EVENTS.remove(4), pa.field("n", pa.int64())])

    def read(self, shard: str, cursor: Any) -> Iterator[Arrival]:
        for start in range(cursor or 0, self.total, self.size):
            count = min(self.size, self.total - start)
            numbers = range(start, start + count)
            rows = pa.RecordBatch.from_pydict(
                {
                    "source_id": ["counter"] * count,
                    "timestamp": [n * 1_000_000 for n in numbers],
                    "received_at": [n * 1_000_000 for n in numbers],
                    "event_type": ["count"] * count,
                    "n": list(numbers),
                },
                schema=self.schema(),
            )
            rejects = [Reject(b"broken", "broken", "on purpose")] if start == 0 else []
            yield Arrival(rows, start + count, rejects)
