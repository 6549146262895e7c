"""SQL expressions over columns: `payload.temperature > 30 and received_at - timestamp < interval '5 seconds'`.

    hot = Expression.parse("payload.temperature > 30").condition(schema)
    mask = hot.evaluate(rows)

Names are as in the schema, upper and lower case count; a dot goes into a struct, at any depth, and is null where the
struct is null; `"quoted"` names may hold anything. Under an open struct (`headrace.model.OPEN`), a field that hasn't
been seen yet is null. What may be written is in `headrace.dialect`; the language is that of DuckDB.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, SqlglotError

from headrace.dialect import DTYPE, Kind, RefusedError, Typed
from headrace.errors import PlanError
from headrace.model import TIMESTAMP, UNSEEN, Rows
from headrace.pipeline import is_open
from headrace.translate import Translator

_T = TypeVar("_T")

MAX_TEXT = 20_000
"""Characters; a longer expression is refused."""

_ARROW = {
    Kind.NULL: pa.float64(),
    Kind.INT: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.BOOL: pa.bool_(),
    Kind.TEXT: pa.string(),
    Kind.TIME: TIMESTAMP,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column or a field within one: where it is in a schema, and what it is there."""

    path: tuple[str, ...]
    index: int
    children: tuple[int, ...]
    field: pa.Field  # under its own name; nullable when anything above it is

    def take(self, rows: Rows) -> pa.Array:
        """Its values, null where a struct above is null."""
        array = rows.column(self.index)
        return pc.struct_field(array, list(self.children)) if self.children else array


def find_column(schema: pa.Schema, path: Sequence[str]) -> Column | None:
    """The column at a path. None: not seen yet in an open struct. Raises PlanError when there can't be one."""
    index = schema.get_field_index(path[0])
    if index < 0:
        raise unknown_column(path, schema)
    field, open_, nullable = schema.field(index), False, schema.field(index).nullable
    children: list[int] = []
    for name in path[1:]:
        open_ = open_ or is_open(field)
        at = field.type.get_field_index(name) if pa.types.is_struct(field.type) else -1
        if at < 0:
            if open_:
                return None
            raise unknown_column(path, schema)
        children.append(at)
        field = field.type.field(at)
        nullable = nullable or field.nullable
    return Column(tuple(path), index, tuple(children), field.with_nullable(nullable))


def unknown_column(path: Sequence[str] | str, schema: pa.Schema) -> PlanError:
    """The error for a column that isn't there: the nearest name, and all that are."""
    name = path if isinstance(path, str) else ".".join(path)
    known = _names(schema)
    near = difflib.get_close_matches(name, known, 1, 0.6) or [k for k in known if k.lower() == name.lower()]
    listed = ", ".join(known[:30]) + (f" and {len(known) - 30} more" if len(known) > 30 else "")
    return PlanError(
        f"no column {name!r}"
        + (f", did you mean {near[0]!r}?" if near else "")
        + f"; there are {listed or 'none'}"
    )


def _names(fields: Sequence[pa.Field] | pa.Schema, above: str = "") -> list[str]:
    names = []
    for field in fields:
        names.append(above + field.name)
        if pa.types.is_struct(field.type):
            names += _names(list(field.type), f"{above}{field.name}.")
    return names


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. `tree` is sqlglot's, in its duckdb dialect."""

    text: str
    tree: exp.Expression

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Raises PlanError with the position of what can't be read."""
        if not isinstance(text, str) or not text.strip():
            raise PlanError("an expression is empty; write a column or SQL such as: value > 3")
        if len(text) > MAX_TEXT:
            raise PlanError(f"an expression has {len(text)} characters; {MAX_TEXT} are allowed")
        try:
            trees = sqlglot.parse(text, dialect="duckdb")
        except ParseError as error:
            at = error.errors[0] if error.errors else {}
            where = (
                f" at {at.get('col')}"
                if at.get("line") == 1
                else f" at line {at.get('line')}, {at.get('col')}"
            )
            near = f" near {at.get('highlight')!r}" if at.get("highlight") else ""
            raise PlanError(
                f"{_quote(text)}{where}: not a SQL expression{near}: {at.get('description', error)}"
            ) from None
        except (SqlglotError, RecursionError, ValueError, AttributeError, TypeError) as error:
            why = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
            raise PlanError(f"{_quote(text)}: not a SQL expression: {why}") from None
        if len(trees) != 1 or trees[0] is None:
            raise PlanError(f"{_quote(text)}: one SQL expression is expected")
        try:
            for node in trees[0].walk():
                if _is_whole_column(node):
                    _path(node)
        except RefusedError as error:
            raise PlanError(f"{_quote(text)}{_position(error.node)}: {error}") from None
        return cls(text, trees[0])

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Every column that is mentioned, once each."""
        columns = (node for node in self.tree.walk() if _is_whole_column(node))
        return tuple(dict.fromkeys(_path(node) for node in columns))

    def compile(self, schema: pa.Schema) -> Compiled:
        """Check against `schema` and prepare. Raises PlanError saying where, what, and what there is."""
        if self.text in schema.names:  # a name as it is, keyword or not
            return _bare((self.text,), schema)
        if isinstance(self.tree, (exp.Column, exp.Dot)):
            return self._guard(lambda: _bare(_path(self.tree), schema), self.tree)
        inputs: dict[str, tuple[Column, Kind]] = {}

        def column(node: exp.Expression) -> Typed:
            path = _path(node)
            found = self._guard(lambda: find_column(schema, path), node)
            kind = Kind.NULL if found is None else _kind(found.field.type)
            if found is None or kind is Kind.NULL:
                return Typed(pl.lit(None), Kind.NULL)
            name = "\x1f".join(path)
            inputs[name] = (found, kind)
            return Typed(pl.col(name), kind)

        try:
            result = Translator(column)(self.tree)
            if result.kind in (Kind.SPAN, Kind.OTHER):
                raise RefusedError(
                    "the result is a difference of times; millis_between(earlier, later) gives it as a number"
                    if result.kind is Kind.SPAN
                    else "the result is a nested value",
                    self.tree,
                )
            frame = pl.DataFrame(schema={name: DTYPE[kind] for name, (_, kind) in inputs.items()})
            expr = result.expr.cast(pl.Float64) if result.kind is Kind.NULL else result.expr
            tried = frame.select(expr).to_series()
        except RefusedError as error:
            raise PlanError(f"{_quote(self.text)}{_position(error.node)}: {error}") from None
        except (pl.exceptions.PolarsError, RecursionError) as error:
            raise PlanError(f"{_quote(self.text)}: {str(error).splitlines()[0]}") from error
        unseen = result.kind is Kind.NULL and self.paths  # a written NULL is a double
        field = pa.field("", _ARROW[result.kind], metadata=UNSEEN if unseen else None)
        constant = None if inputs else pa.scalar(tried.to_list()[0] if len(tried) else None, field.type)
        return Compiled(field, None, expr, tuple((n, c, k) for n, (c, k) in inputs.items()), constant)

    def condition(self, schema: pa.Schema) -> Compiled:
        """As `compile`, for an expression that must be true or false."""
        compiled = self.compile(schema)
        if not pa.types.is_boolean(compiled.type) and not (
            compiled.constant is not None and not compiled.constant.is_valid
        ):
            raise PlanError(f"{_quote(self.text)}: a condition is expected, and this is a {compiled.type}")
        return compiled

    def _guard(self, look: Callable[[], _T], node: exp.Expression) -> _T:
        try:
            return look()
        except PlanError as error:
            raise PlanError(f"{_quote(self.text)}{_position(node)}: {error}") from None


@dataclass(frozen=True, slots=True)
class Compiled:
    """An expression at work on one schema. Stateless; safe in several threads.

    `field` has the type and the nullability of the result and, when it is a plain column, its metadata.
    """

    field: pa.Field
    column: Column | None  # a plain column is handed on as it is, without Polars
    expr: pl.Expr | None
    inputs: tuple[tuple[str, Column, Kind], ...]
    constant: pa.Scalar | None

    @property
    def type(self) -> pa.DataType:
        return self.field.type

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the columns that are read."""
        return (self.column.path,) if self.column is not None else tuple(c.path for _, c, _ in self.inputs)

    def evaluate(self, rows: Rows) -> pa.Array:
        """The result for each row, of type `type`."""
        return evaluate((self,), rows)[0]

    def mask(self, rows: Rows) -> pa.Array:
        """As `evaluate`, for a condition: true or false, and false for null."""
        result = self.evaluate(rows)
        if not pa.types.is_boolean(result.type):  # a condition that is only NULL
            return pa.repeat(pa.scalar(False), rows.num_rows)
        return pc.fill_null(result, False) if result.null_count else result


def evaluate(compiled: Sequence[Compiled], rows: Rows) -> list[pa.Array]:
    """The results of several expressions of one schema, in one pass over a frame of only the columns they need."""
    results: dict[int, pa.Array] = {}
    inputs: dict[str, pl.Series] = {}
    wanted: list[pl.Expr] = []
    for number, one in enumerate(compiled):
        if one.constant is not None:
            results[number] = pa.repeat(one.constant, rows.num_rows)
        elif one.column is not None:
            array = one.column.take(rows)
            results[number] = array if array.type.equals(one.type) else pc.cast(array, one.type)
        elif one.expr is not None:
            for name, column, kind in one.inputs:
                if name not in inputs:
                    inputs[name] = _series(name, column.take(rows), kind)
            wanted.append(one.expr.alias(str(number)))
    if wanted:
        for series in pl.DataFrame(list(inputs.values())).select(wanted).get_columns():
            number = int(series.name)
            array, type_ = series.to_arrow(), compiled[number].type
            results[number] = array if array.type.equals(type_) else pc.cast(array, type_)
    return [results[number] for number in range(len(compiled))]


def compile_all(texts: Mapping[str, str], schema: pa.Schema) -> dict[str, Compiled]:
    """Several named expressions; errors name the one they are in."""
    compiled = {}
    for name, text in texts.items():
        try:
            compiled[name] = Expression.parse(text).compile(schema)
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from None
    return compiled


# -- columns ---------------------------------------------------------------------------------------


def _bare(path: tuple[str, ...], schema: pa.Schema) -> Compiled:
    found = find_column(schema, path)
    if found is None:
        unseen = pa.field("", pa.float64(), metadata=UNSEEN)
        return Compiled(unseen, None, None, (), pa.scalar(None, pa.float64()))
    field = found.field
    if pa.types.is_null(field.type):
        field = pa.field(field.name, pa.float64(), metadata=UNSEEN)
    return Compiled(field, found, None, (), None)


def _is_whole_column(node: exp.Expression) -> bool:
    return isinstance(node, (exp.Column, exp.Dot)) and not isinstance(node.parent, exp.Dot)


def _path(node: exp.Expression) -> tuple[str, ...]:
    if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Identifier):
        return (*_path(node.this), node.expression.name)
    if isinstance(node, exp.Column) and all(isinstance(part, exp.Identifier) for part in node.parts):
        return tuple(part.name for part in node.parts)
    raise RefusedError(f"{node.sql('duckdb')} is not a column", node)


def _kind(type_: pa.DataType) -> Kind:
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    for test, kind in _KINDS:
        if test(type_):
            return kind
    return Kind.OTHER


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], Kind], ...] = (
    (pa.types.is_null, Kind.NULL),
    (pa.types.is_boolean, Kind.BOOL),
    (pa.types.is_integer, Kind.INT),
    (pa.types.is_floating, Kind.FLOAT),
    (pa.types.is_decimal, Kind.FLOAT),
    (pa.types.is_string, Kind.TEXT),
    (pa.types.is_large_string, Kind.TEXT),
    (pa.types.is_string_view, Kind.TEXT),
    (pa.types.is_timestamp, Kind.TIME),
    (pa.types.is_date, Kind.TIME),
)


def _series(name: str, array: pa.Array, kind: Kind) -> pl.Series:
    """Zero copy where Polars holds the same (64-bit numbers, microseconds); narrower numbers widen, so that sums
    and products don't overflow where the values of one batch happen to be small."""
    if kind is Kind.OTHER:  # only asked whether it is null
        return pl.Series(name, pc.if_else(array.is_valid(), True, None))
    if pa.types.is_dictionary(array.type):
        array = pc.cast(array, array.type.value_type)
    series = pl.Series(name, array)
    return series if series.dtype == DTYPE[kind] else series.cast(DTYPE[kind], strict=False)


# -- messages --------------------------------------------------------------------------------------


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return f"`{line}`" if len(line) <= 80 else f"`{line[:77]}...`"


def _position(node: exp.Expression) -> str:
    """` at 9`: the character, from 1, where the first part of a node with a position stands."""
    starts = [part.meta["start"] for part in node.walk() if "start" in part.meta]
    return f" at {min(starts) + 1}" if starts else ""
