"""Add or replace columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import pyarrow as pa

from headrace.component import Operator, PlanError, Rows, Step, option
from headrace.expression import Compiled, Expression, evaluate


class Derive(Step, frozen=True, kw_only=True):
    """Add columns, or replace ones of the same name where they stand: name = SQL expression.

    A later expression may use an earlier name.

        - derive: {latency_ms: "millis_between(timestamp, received_at)", slow: "latency_ms > 1000"}
    """

    shorthand: ClassVar[str] = "columns"

    columns: Annotated[dict[str, str], option("name and SQL expression of each column, in order")]

    @classmethod
    def example(cls) -> Self:
        return cls(
            columns={
                "kelvin": "payload.temperature + 273.15",
                "warm": "kelvin > 295",
                "event_type": "'reading'",
            }
        )

    def check(self) -> None:
        if not self.columns:
            raise PlanError("columns: name at least one column")

    def output(self, schema: pa.Schema) -> pa.Schema:
        layers = self._layers(schema)
        return layers[-1].schema

    def open(self, schema: pa.Schema) -> Operator:
        return _Derive(self._layers(schema))

    def _layers(self, schema: pa.Schema) -> list[_Layer]:
        """Expressions that don't need each other are evaluated together; one that uses an earlier name begins anew."""
        self.check()
        layers: list[_Layer] = []
        waiting: dict[str, Compiled] = {}
        for name, text in self.columns.items():
            root, dot, _ = name.partition(".")
            if dot and root in schema.names and pa.types.is_struct(schema.field(root).type):
                raise PlanError(
                    f"{name}: a field within {root} can't be replaced; choose a name without a dot"
                )
            try:
                expression = Expression.parse(text)
                used = {path[0] for path in expression.paths} | {text}
                if used & waiting.keys():
                    layers.append(_layer(schema, waiting))
                    schema, waiting = layers[-1].schema, {}
                waiting[name] = expression.compile(schema)
            except PlanError as error:
                raise PlanError(f"{name}: {error}") from None
        return [*layers, _layer(schema, waiting)]


@dataclass(frozen=True, slots=True)
class _Layer:
    columns: tuple[Compiled, ...]
    places: tuple[int, ...]  # where each result goes; the next free place for a new column
    schema: pa.Schema  # after this layer


def _layer(schema: pa.Schema, columns: dict[str, Compiled]) -> _Layer:
    fields, places = list(schema), []
    for name, compiled in columns.items():
        place = schema.get_field_index(name)
        field = compiled.field.with_name(name)
        if place < 0:
            place = len(fields)
            fields.append(field)
        else:
            fields[place] = field
        places.append(place)
    return _Layer(tuple(columns.values()), tuple(places), pa.schema(fields, metadata=schema.metadata))


class _Derive(Operator):
    def __init__(self, layers: list[_Layer]) -> None:
        self._layers = layers

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        for layer in self._layers:
            arrays = [*rows.columns, *([None] * (len(layer.schema) - rows.num_columns))]
            for place, array in zip(layer.places, evaluate(layer.columns, rows), strict=True):
                arrays[place] = array
            rows = pa.RecordBatch.from_arrays(arrays, schema=layer.schema)
        return rows
