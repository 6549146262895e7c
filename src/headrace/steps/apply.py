"""Call a Python function on Rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self

import msgspec
import pyarrow as pa

from headrace.component import Aside, Operator, PlanError, Rows, Step, option
from headrace.model import conform, empty, type_named

_MAX_CALLS = 200


class Apply(Step, frozen=True, kw_only=True):
    """Give each batch to a Python function, and go on with what it returns.

    The function takes a `pyarrow.RecordBatch` and returns one, or a table. It must not depend on how rows are cut into
    batches, on the clock or on chance, and keeps nothing between calls: after a crash, rows are run again. `columns`
    names and types what it returns; without it, the columns are those that came in.

    When it fails on a batch, the batch is halved to find the rows it fails on; those go to the dead letters with the
    code `apply_failed` and the function's own words. After 200 calls for one batch, the rest goes there together.

        - apply: {function: "plant.cleaning:smooth", columns: {source_id: string, value: double}}
    """

    shorthand: ClassVar[str] = "function"
    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "expand"

    function: Annotated[
        str, option("address of the function, `package.module:name`", pattern=r"^[\w.]+:[\w.]+$")
    ]
    columns: Annotated[dict[str, str], option("name and type of each column that it returns")] = (
        msgspec.field(default_factory=dict)
    )

    @classmethod
    def example(cls) -> Self:
        return cls(function=f"{__name__}:unchanged")

    def output(self, schema: pa.Schema) -> pa.Schema:
        self._load()
        if not self.columns:
            return schema
        return pa.schema([pa.field(name, type_named(type_, name)) for name, type_ in self.columns.items()])

    def open(self, schema: pa.Schema) -> Operator:
        return _Apply(self.function, self._load(), self.output(schema))

    def _load(self) -> Callable[[Rows], object]:
        module_name, _, path = self.function.partition(":")
        try:
            found: object = importlib.import_module(module_name)
        except Exception as error:  # a user's module may fail in any way while it is imported
            raise PlanError(f"function: importing {module_name}: {type(error).__name__}: {error}") from error
        for name in path.split("."):
            found = getattr(found, name, None)
        if not callable(found):
            raise PlanError(f"function: there is no function {path!r} in {module_name}")
        return found


def unchanged(rows: Rows) -> Rows:
    """The function of the example."""
    return rows


class _Apply(Operator):
    def __init__(self, name: str, function: Callable[[Rows], object], schema: pa.Schema) -> None:
        self._name, self._function, self._schema = name, function, schema
        self._aside: list[Aside] = []

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        self._aside = []
        if not rows.num_rows:
            return empty(self._schema)
        results: list[Rows] = []
        calls = 0
        waiting = [rows]  # last in, first out: parts stay in the order of the rows
        while waiting:
            part = waiting.pop()
            calls += 1
            try:
                results.append(self._checked(self._function(part)))
            except Exception as error:  # noqa: BLE001 - whatever a user's function raises is about these rows
                if part.num_rows > 1 and calls < _MAX_CALLS:
                    half = part.num_rows // 2
                    waiting += [part.slice(half), part.slice(0, half)]
                else:
                    words = str(error) if isinstance(error, PlanError) else f"{type(error).__name__}: {error}"
                    reason = f"{self._name}: {words[:300]}"
                    self._aside.append(Aside(part, "apply_failed", [reason] * part.num_rows))
        if len(results) == 1:
            return results[0]
        return pa.concat_batches(results) if results else empty(self._schema)

    def aside(self) -> Sequence[Aside]:
        given, self._aside = self._aside, []
        return given

    def _checked(self, result: object) -> Rows:
        """The result in exactly the declared columns and types."""
        if isinstance(result, pa.Table):
            batches = result.combine_chunks().to_batches()
            result = batches[0] if batches else empty(result.schema)
        if not isinstance(result, pa.RecordBatch):
            raise PlanError(f"returned a {type(result).__name__}; a pyarrow.RecordBatch or Table is expected")
        if result.schema.equals(self._schema):
            return result
        names, wanted = result.schema.names, self._schema.names
        if sorted(names) != sorted(wanted):
            raise PlanError(
                f"returned the columns {', '.join(names)}; {', '.join(wanted)} are declared (option columns)"
            )
        try:
            rows = conform(result, self._schema)
        except pa.ArrowException as error:
            raise PlanError(f"returned other types than declared: {error}") from error
        for field, column in zip(self._schema, rows.columns, strict=True):
            if column.null_count and not field.nullable:
                raise PlanError(f"returned null in {field.name}, which is never null")
        return rows
