"""Keep the rows for which a condition is true."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pyarrow as pa

from headrace.component import Operator, Rows, Step, option
from headrace.expression import Compiled, Expression


class Where(Step, frozen=True, kw_only=True):
    """Keep the rows for which a SQL condition is true; false and null are left out.

    Columns stay as they are. Rows left out count as filtered.

        - where: "payload.temperature > 30 and event_type = 'reading'"
    """

    shorthand: ClassVar[str] = "condition"
    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "filter"

    condition: Annotated[str, option("SQL condition over the columns of a row", examples=["value > 30"])]

    @classmethod
    def example(cls) -> Self:
        return cls(condition="payload.temperature > 20")

    def output(self, schema: pa.Schema) -> pa.Schema:
        Expression.parse(self.condition).condition(schema)
        return schema

    def open(self, schema: pa.Schema) -> Operator:
        return _Keep(Expression.parse(self.condition).condition(schema))


class _Keep(Operator):
    def __init__(self, condition: Compiled) -> None:
        self._condition = condition

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        if not rows.num_rows:
            return rows
        mask = self._condition.mask(rows)
        return rows if mask.true_count == rows.num_rows else rows.filter(mask)
