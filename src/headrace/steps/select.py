"""Only some columns, renamed or computed."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import pyarrow as pa

from headrace.component import Operator, PlanError, Rows, Step, option
from headrace.expression import Compiled, compile_all, evaluate


class Select(Step, frozen=True, kw_only=True):
    """Only these columns, in this order: new name = SQL expression, or a list of names.

    A name from a list keeps its last part: `payload.temperature` becomes `temperature`.

        - select: {sensor: source_id, celsius: "(payload.fahrenheit - 32) / 1.8"}
        - select: [source_id, timestamp, payload.temperature]
    """

    shorthand: ClassVar[str] = "columns"

    columns: Annotated[
        dict[str, str] | list[str], option("new name and SQL expression of each column, or names of columns")
    ]

    @classmethod
    def example(cls) -> Self:
        return cls(
            columns={"sensor": "source_id", "at": "timestamp", "fahrenheit": "payload.temperature * 1.8 + 32"}
        )

    def check(self) -> None:
        if not self.columns:
            raise PlanError("columns: name at least one column")
        if isinstance(self.columns, list) and len(self._named()) < len(self.columns):
            raise PlanError("columns: two have the same name; give one another name: {other: ...}")

    def output(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([one.field.with_name(name) for name, one in self._compiled(schema).items()])

    def open(self, schema: pa.Schema) -> Operator:
        return _Project(tuple(self._compiled(schema).values()), self.output(schema))

    def _named(self) -> dict[str, str]:
        if isinstance(self.columns, dict):
            return self.columns
        return {text.rpartition(".")[2].strip('"'): text for text in self.columns}

    def _compiled(self, schema: pa.Schema) -> dict[str, Compiled]:
        self.check()
        return compile_all(self._named(), schema)


class _Project(Operator):
    def __init__(self, columns: tuple[Compiled, ...], schema: pa.Schema) -> None:
        self._columns, self._schema = columns, schema

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        return pa.RecordBatch.from_arrays(evaluate(self._columns, rows), schema=self._schema)
