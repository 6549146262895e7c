"""Check rows against rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.component import Aside, Operator, PlanError, Rows, Step, option
from headrace.expression import Compiled, Expression, evaluate, unknown_column

Value = str | int | float | bool


class Validate(Step, frozen=True, kw_only=True):
    """Check rows against rules; what fails goes to the dead letters, is marked, or is dropped.

    Rows pass unchanged. Null passes every rule but `required`, so that a missing value is reported once. Columns may be
    fields of a struct: `payload.temperature`. A dead letter has the code `invalid` and names each column that
    failed, its value and what was expected. With `on_fail: mark` all rows pass, with two more columns: `valid` (bool) and
    `errors` (text, null when valid).

        - validate:
            required: [source_id, payload.temperature]
            types: {payload.temperature: number}
            range: {payload.temperature: [-40, 60], payload.humidity: [0, null]}
            allowed: {event_type: [reading, status]}
            rules: {not_in_future: "timestamp <= received_at"}
    """

    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "filter"

    required: Annotated[list[str], option("columns that must not be null")] = msgspec.field(
        default_factory=list
    )
    types: Annotated[
        dict[str, Literal["number", "integer", "string", "boolean", "timestamp"]],
        option("what each column must be, or be readable as"),
    ] = msgspec.field(default_factory=dict)
    range: Annotated[
        dict[str, tuple[int | float | str | None, int | float | str | None]],
        option("lowest and highest value allowed, null for no limit; numbers, or times in ISO 8601"),
    ] = msgspec.field(default_factory=dict)
    regex: Annotated[
        dict[str, str], option("regular expression found in the text; write ^ and $ for the whole of it")
    ] = msgspec.field(default_factory=dict)
    allowed: Annotated[dict[str, list[Value]], option("the only values allowed")] = msgspec.field(
        default_factory=dict
    )
    max_length: Annotated[dict[str, int], option("longest text allowed, in characters")] = msgspec.field(
        default_factory=dict
    )
    rules: Annotated[dict[str, str], option("name and SQL condition that must not be false")] = msgspec.field(
        default_factory=dict
    )
    on_fail: Annotated[
        Literal["dead", "mark", "drop"],
        option(
            "dead: to the dead letters; mark: add columns valid and errors; drop: leave out, counted as filtered"
        ),
    ] = "dead"

    @classmethod
    def example(cls) -> Self:
        return cls(
            required=["source_id", "payload.temperature"],
            range={"payload.temperature": (-40, 60)},
            allowed={"event_type": ["reading", "status"]},
            rules={"sane": "payload.humidity <= 100"},
        )

    def check(self) -> None:
        if not any(
            (self.required, self.types, self.range, self.regex, self.allowed, self.max_length, self.rules)
        ):
            raise PlanError(
                "no rule is given; there are required, types, range, regex, allowed, max_length and rules"
            )

    def output(self, schema: pa.Schema) -> pa.Schema:
        self._checks(schema)
        if self.on_fail != "mark":
            return schema
        taken = [name for name in ("valid", "errors") if name in schema.names]
        if taken:
            raise PlanError(f"on_fail: mark adds a column {taken[0]!r}, and there is one already")
        added = [pa.field("valid", pa.bool_(), nullable=False), pa.field("errors", pa.string())]
        return pa.schema([*schema, *added], metadata=schema.metadata)

    def open(self, schema: pa.Schema) -> Operator:
        return _Validate(self._checks(schema), self.on_fail, self.output(schema))

    def _checks(self, schema: pa.Schema) -> list[_Check]:
        """Every rule as a condition that is true for rows that fail it."""
        self.check()
        checks = []

        def add(option_: str, name: str, failing: str, expected: str, column: str = "") -> None:
            try:
                value = Expression.parse(_sql(column, schema)).compile(schema) if column else None
                checks.append(_Check(name, Expression.parse(failing).condition(schema), value, expected))
            except PlanError as error:
                raise PlanError(f"{option_} of {name}: {error}") from None

        for column in self.required:
            add("required", column, f"{_sql(column, schema)} is null", "a value", column)
        for column, type_ in self.types.items():
            add("types", column, self._not_of_type(column, type_, schema), f"a {type_}", column)
        for column, (low, high) in self.range.items():
            self._range_is_sane(column, low, high)
            name = _sql(column, schema)
            limits = [
                f"{name} {sign} {_literal(limit)}"
                for sign, limit in (("<", low), (">", high))
                if limit is not None
            ]
            if all(isinstance(limit, (int, float)) for limit in (low, high) if limit is not None):
                limits.append(f"isnan({name})")
            words = (
                f"{low} to {high}"
                if None not in (low, high)
                else f"at least {low}"
                if high is None
                else f"at most {high}"
            )
            add("range", column, " or ".join(limits), words, column)
        for column, pattern in self.regex.items():
            failing = f"not regexp_matches({_sql(column, schema)}, {_literal(pattern)})"
            add("regex", column, failing, f"a match of {pattern}", column)
        for column, values in self.allowed.items():
            if not values:
                raise PlanError(f"allowed of {column}: name at least one value")
            listed = ", ".join(_literal(value) for value in values)
            words = f"one of {_short(', '.join(str(value) for value in values), 100)}"
            add("allowed", column, f"{_sql(column, schema)} not in ({listed})", words, column)
        for column, longest in self.max_length.items():
            add(
                "max_length",
                column,
                f"length({_sql(column, schema)}) > {longest}",
                f"at most {longest} characters",
                column,
            )
        for name, condition in self.rules.items():
            Expression.parse(condition)  # alone first, so that its errors have its own positions
            add("rules", name, f"not (\n{condition}\n)", condition)
        return checks

    def _not_of_type(self, column: str, type_: str, schema: pa.Schema) -> str:
        name = _sql(column, schema)
        have = Expression.parse(name).compile(schema).type
        have = have.value_type if pa.types.is_dictionary(have) else have
        if any(is_(have) for is_ in _IS[type_]):
            return "false"
        if type_ == "integer" and pa.types.is_floating(have):
            return f"{name} <> floor({name}) or isnan({name})"
        if pa.types.is_string(have) and type_ in _CAST:
            return f"{name} is not null and try_cast({name} as {_CAST[type_]}) is null"
        return f"{name} is not null"

    def _range_is_sane(self, column: str, low: object, high: object) -> None:
        if low is None and high is None:
            raise PlanError(f"range of {column}: give a lowest or a highest value")
        if isinstance(low, str) != isinstance(high, str) and None not in (low, high):
            raise PlanError(f"range of {column}: {low!r} and {high!r} are not of one kind")
        if low is not None and high is not None and low > high:  # type: ignore[operator]
            raise PlanError(f"range of {column}: {low} is above {high}")


_IS: dict[str, tuple[Any, ...]] = {
    "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "integer": (pa.types.is_integer,),
    "string": (pa.types.is_string, pa.types.is_large_string),
    "boolean": (pa.types.is_boolean,),
    "timestamp": (pa.types.is_timestamp,),
}
_CAST = {"number": "double", "integer": "bigint", "boolean": "boolean", "timestamp": "timestamp"}


def _sql(column: str, schema: pa.Schema) -> str:
    """A path as quoted SQL names; a column whose own name has dots is found first."""
    parts = [column] if column in schema.names else column.split(".")
    if not all(parts):
        raise unknown_column(column, schema)
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    failing: Compiled
    value: Compiled | None  # the column, to be shown; None for a rule
    expected: str


class _Validate(Operator):
    def __init__(self, checks: Sequence[_Check], on_fail: str, schema: pa.Schema) -> None:
        self._checks, self._on_fail, self._schema = checks, on_fail, schema
        self._conditions = [check.failing for check in checks]
        self._aside: list[Aside] = []

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        self._aside = []
        failing = [_mask(array) for array in evaluate(self._conditions, rows)]
        bad = np.logical_or.reduce(failing)
        if self._on_fail == "mark":
            return self._marked(rows, bad, failing)
        if not bad.any():
            return rows
        if self._on_fail == "dead":
            at = np.flatnonzero(bad)
            self._aside = [Aside(rows.take(pa.array(at)), "invalid", self._reasons(rows, at, failing))]
        return rows.filter(pa.array(~bad))

    def aside(self) -> Sequence[Aside]:
        given, self._aside = self._aside, []
        return given

    def _marked(self, rows: Rows, bad: npt.NDArray[np.bool_], failing: list[npt.NDArray[np.bool_]]) -> Rows:
        errors: list[str | None] = [None] * rows.num_rows
        at = np.flatnonzero(bad)
        for place, reason in zip(at, self._reasons(rows, at, failing), strict=True):
            errors[place] = reason
        marks = [pa.array(~bad, pa.bool_()), pa.array(errors, pa.string())]
        return pa.RecordBatch.from_arrays([*rows.columns, *marks], schema=self._schema)

    def _reasons(
        self, rows: Rows, at: npt.NDArray[np.int64], failing: list[npt.NDArray[np.bool_]]
    ) -> list[str]:
        """In words, for the rows that failed. A row loop: only over those."""
        reasons: list[list[str]] = [[] for _ in at]
        few = rows.take(pa.array(at))
        for check, mask in zip(self._checks, failing, strict=True):
            places = np.flatnonzero(mask[at])
            if not len(places):
                continue
            if check.value is None:
                text = _short(" ".join(check.expected.split()), 100)
                for place in places:
                    reasons[place].append(f"{check.name}: expected {text}")
                continue
            values = check.value.evaluate(few).take(pa.array(places)).to_pylist()
            for place, value in zip(places, values, strict=True):
                shown = (
                    "null" if value is None else _short(repr(value) if isinstance(value, str) else str(value))
                )
                reasons[place].append(f"{check.name} is {shown}, expected {check.expected}")
        return ["; ".join(parts) for parts in reasons]


def _mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    """True where the array is true; null counts as false."""
    if not pa.types.is_boolean(array.type):
        return np.zeros(len(array), np.bool_)
    mask: npt.NDArray[np.bool_] = array.fill_null(False).to_numpy(zero_copy_only=False)
    return mask
