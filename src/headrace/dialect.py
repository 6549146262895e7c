"""The SQL of expressions: every node and function that is allowed, as a typed Polars expression.

Written and named as in DuckDB. What isn't in the tables below is refused with its name. Where an engine would stop
at a value (division by zero, root of a negative number, a text that is no number), the result is null; NaN counts as the
largest number, as in DuckDB, PostgreSQL and Spark. Integers have 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import polars as pl
from sqlglot import exp


class Kind(Enum):
    """What an expression gives, in words for messages."""

    NULL = "null"
    INT = "whole number"
    FLOAT = "number"
    BOOL = "true or false"
    TEXT = "text"
    TIME = "time"
    SPAN = "difference of times"
    OTHER = "nested value"


NUMBER = (Kind.FLOAT, Kind.INT)
DTYPE = {
    Kind.NULL: pl.Float64(),
    Kind.INT: pl.Int64(),
    Kind.FLOAT: pl.Float64(),
    Kind.BOOL: pl.Boolean(),
    Kind.TEXT: pl.String(),
    Kind.TIME: pl.Datetime("us", "UTC"),
    Kind.SPAN: pl.Duration("us"),
    Kind.OTHER: pl.Boolean(),
}


@dataclass(frozen=True, slots=True)
class Typed:
    """A Polars expression and its kind; `literal` is the value when it is written out."""

    expr: pl.Expr
    kind: Kind
    literal: Any = None


class RefusedError(Exception):
    """A part of an expression that isn't allowed or doesn't fit; becomes a PlanError with its position."""

    def __init__(self, message: str, node: exp.Expression) -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True, slots=True)
class Function:
    """`arguments` are (attribute of the node, allowed kinds); `result` None means the kind of the first argument."""

    name: str
    arguments: tuple[tuple[str, tuple[Kind, ...]], ...]
    result: Kind | None
    build: Callable[..., pl.Expr]


def _one(name: str, kinds: tuple[Kind, ...], result: Kind | None, build: Callable[..., pl.Expr]) -> Function:
    return Function(name, (("this", kinds),), result, build)


def _two(name: str, kinds: tuple[Kind, ...], result: Kind | None, build: Callable[..., pl.Expr]) -> Function:
    return Function(name, (("this", kinds), ("expression", kinds)), result, build)


def finite(expr: pl.Expr) -> pl.Expr:
    """Null for what isn't a finite number."""
    return pl.when(expr.is_finite()).then(expr)


def to_float(expr: pl.Expr) -> pl.Expr:
    return expr.cast(pl.Float64)


def to_whole(expr: pl.Expr) -> pl.Expr:
    return expr.cast(pl.Int64)


TEXT = (Kind.TEXT,)
TIME = (Kind.TIME,)
PARTS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "YEAR": lambda t: to_whole(t.dt.year()),
    "QUARTER": lambda t: to_whole(t.dt.quarter()),
    "MONTH": lambda t: to_whole(t.dt.month()),
    "WEEK": lambda t: to_whole(t.dt.week()),
    "DAY": lambda t: to_whole(t.dt.day()),
    "DAYOFWEEK": lambda t: to_whole(t.dt.weekday()) % 7,  # Sunday is 0
    "HOUR": lambda t: to_whole(t.dt.hour()),
    "MINUTE": lambda t: to_whole(t.dt.minute()),
    "SECOND": lambda t: to_whole(t.dt.second()),
}
TRUNCATE = {
    "SECOND": "1s",
    "MINUTE": "1m",
    "HOUR": "1h",
    "DAY": "1d",
    "WEEK": "1w",
    "MONTH": "1mo",
    "QUARTER": "1q",
    "YEAR": "1y",
}
INTERVAL_US = {
    "MICROSECOND": 1, "MILLISECOND": 1_000, "SECOND": 1_000_000, "MINUTE": 60_000_000, "HOUR": 3_600_000_000,
    "DAY": 86_400_000_000, "WEEK": 604_800_000_000,
}  # fmt: skip

NODES: dict[type[exp.Expression], Function] = {
    exp.Abs: _one("ABS", NUMBER, None, lambda x: x.abs()),
    exp.Floor: _one("FLOOR", NUMBER, None, lambda x: x.floor()),
    exp.Ceil: _one("CEIL", NUMBER, None, lambda x: x.ceil()),
    exp.Sign: _one("SIGN", NUMBER, Kind.INT, lambda x: x.sign().cast(pl.Int64, strict=False)),
    exp.Sqrt: _one("SQRT", NUMBER, Kind.FLOAT, lambda x: finite(to_float(x).sqrt())),
    exp.Ln: _one("LN", NUMBER, Kind.FLOAT, lambda x: finite(to_float(x).log())),
    exp.Exp: _one("EXP", NUMBER, Kind.FLOAT, lambda x: finite(to_float(x).exp())),
    exp.Pow: _two("POW", NUMBER, Kind.FLOAT, lambda x, y: finite(to_float(x).pow(to_float(y)))),
    exp.IsNan: _one("ISNAN", NUMBER, Kind.BOOL, lambda x: to_float(x).is_nan()),
    exp.Lower: _one("LOWER", TEXT, Kind.TEXT, lambda s: s.str.to_lowercase()),
    exp.Upper: _one("UPPER", TEXT, Kind.TEXT, lambda s: s.str.to_uppercase()),
    exp.Length: _one("LENGTH", TEXT, Kind.INT, lambda s: to_whole(s.str.len_chars())),
    exp.StartsWith: _two("STARTS_WITH", TEXT, Kind.BOOL, lambda s, p: s.str.starts_with(p)),
    exp.EndsWith: _two("ENDS_WITH", TEXT, Kind.BOOL, lambda s, p: s.str.ends_with(p)),
    exp.Contains: _two("CONTAINS", TEXT, Kind.BOOL, lambda s, p: s.str.contains(p, literal=True)),
    exp.TimeToUnix: _one("EPOCH", TIME, Kind.FLOAT, lambda t: t.dt.timestamp("us") / 1_000_000.0),
    **{
        node: _one(name, TIME, Kind.INT, PARTS[name])
        for node, name in (
            (exp.Year, "YEAR"), (exp.Quarter, "QUARTER"), (exp.Month, "MONTH"), (exp.Week, "WEEK"), (exp.WeekOfYear, "WEEK"),
            (exp.Day, "DAY"), (exp.DayOfMonth, "DAY"), (exp.DayOfWeek, "DAYOFWEEK"), (exp.Hour, "HOUR"),
            (exp.Minute, "MINUTE"), (exp.Second, "SECOND"),
        )
    },
}  # fmt: skip

NAMED: dict[str, Function] = {
    "MILLIS_BETWEEN": _two(
        "MILLIS_BETWEEN", TIME, Kind.FLOAT, lambda a, b: (b - a).dt.total_microseconds() / 1000.0
    ),
    "EPOCH_US": _one("EPOCH_US", TIME, Kind.INT, lambda t: t.dt.timestamp("us")),
}
"""Functions that the SQL parser has no node for, by name. `millis_between(a, b)`: milliseconds from a to b."""

_WITH_RULES = (
    "CASE", "CAST", "COALESCE", "CONCAT", "DATE_TRUNC", "EPOCH_MS", "EXTRACT", "GREATEST", "IF", "LEAST", "LOG10", "NULLIF",
    "REGEXP_MATCHES", "REPLACE", "ROUND", "SUBSTRING", "TO_TIMESTAMP", "TRIM", "TRY_CAST",
)  # fmt: skip
FUNCTIONS: tuple[str, ...] = tuple(sorted({*(f.name for f in NODES.values()), *NAMED, *_WITH_RULES}))
"""Every function that may be called."""


def not_allowed(node: exp.Expression) -> str:
    text = node.sql("duckdb")
    text = text if len(text) <= 60 else text[:57] + "..."
    why = "is not allowed in an expression"
    if isinstance(node, exp.AggFunc):
        why += "; aggregates belong into a window step"
    elif isinstance(node, (exp.Window, exp.Query, exp.Subquery)):
        why += "; it sees one row at a time"
    elif isinstance(node, (exp.CurrentTimestamp, exp.CurrentDate, exp.Rand)) or text.lower().startswith(
        ("now(", "random(")
    ):
        why += ": the same rows must always give the same result"
    return f"{text} {why}. Allowed are operators, comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL and {', '.join(FUNCTIONS)}"


def like_regex(pattern: str, *, fold: bool) -> str:
    """An equivalent regular expression; every other character stands for itself."""
    body = "".join(
        ".*" if c == "%" else "." if c == "_" else c if c.isalnum() or c in " \t\n" else f"\\x{{{ord(c):x}}}"
        for c in pattern
    )
    return f"(?s{'i' if fold else ''})^{body}$"


def _text_to_time(text: pl.Expr) -> pl.Expr:
    """ISO 8601 in a few fixed spellings: inferring one from the data would let a batch's other rows decide."""
    iso = text.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(r"[Zz]$", "+00:00")
    utc, local = pl.Datetime("us", "UTC"), pl.Datetime("us")
    return pl.coalesce(
        iso.str.strptime(utc, "%Y-%m-%dT%H:%M:%S%.f%:z", strict=False),
        iso.str.strptime(local, "%Y-%m-%dT%H:%M:%S%.f", strict=False).dt.replace_time_zone("UTC"),
        iso.str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(utc),
    )


def _text_to_bool(text: pl.Expr) -> pl.Expr:
    word = text.str.strip_chars().str.to_lowercase()
    yes, no = pl.Series(["true", "t", "yes", "1"]).implode(), pl.Series(["false", "f", "no", "0"]).implode()
    return pl.when(word.is_in(yes)).then(True).when(word.is_in(no)).then(False)


YEAR_1_US, YEAR_9999_US = -62_135_596_800_000_000, 253_402_300_799_000_000
CASTS = {
    "BIGINT": Kind.INT, "INT": Kind.INT, "DOUBLE": Kind.FLOAT, "FLOAT": Kind.FLOAT, "TEXT": Kind.TEXT, "VARCHAR": Kind.TEXT,
    "BOOLEAN": Kind.BOOL, "TIMESTAMP": Kind.TIME, "TIMESTAMPTZ": Kind.TIME, "TIMESTAMPNTZ": Kind.TIME,
}  # fmt: skip
CONVERT: dict[tuple[Kind, Kind], Callable[[pl.Expr], pl.Expr]] = {
    (Kind.INT, Kind.FLOAT): to_float,
    (Kind.BOOL, Kind.FLOAT): to_float,
    (Kind.TEXT, Kind.FLOAT): lambda x: x.str.strip_chars().cast(pl.Float64, strict=False),
    (Kind.FLOAT, Kind.INT): lambda x: x.round(0, mode="half_to_even").cast(pl.Int64, strict=False),
    (Kind.BOOL, Kind.INT): to_whole,
    (Kind.TEXT, Kind.INT): lambda x: x.str.strip_chars().cast(pl.Int64, strict=False),
    (Kind.INT, Kind.TEXT): lambda x: x.cast(pl.String),
    (Kind.FLOAT, Kind.TEXT): lambda x: x.cast(pl.String),
    (Kind.BOOL, Kind.TEXT): lambda x: x.cast(pl.String),
    (Kind.TIME, Kind.TEXT): lambda x: x.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
    (Kind.INT, Kind.BOOL): lambda x: x != 0,
    (Kind.FLOAT, Kind.BOOL): lambda x: x != 0,
    (Kind.TEXT, Kind.BOOL): _text_to_bool,
    (Kind.TEXT, Kind.TIME): _text_to_time,
}

COMPARE: dict[type[exp.Expression], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.EQ: lambda a, b: a == b,
    exp.NEQ: lambda a, b: a != b,
    exp.LT: lambda a, b: a < b,
    exp.LTE: lambda a, b: a <= b,
    exp.GT: lambda a, b: a > b,
    exp.GTE: lambda a, b: a >= b,
    exp.NullSafeEQ: lambda a, b: a.eq_missing(b),
    exp.NullSafeNEQ: lambda a, b: a.ne_missing(b),
}
ARITHMETIC: dict[type[exp.Expression], str] = {
    exp.Add: "+",
    exp.Sub: "-",
    exp.Mul: "*",
    exp.Div: "/",
    exp.Mod: "%",
}


def choose(conditions: Sequence[pl.Expr], values: Sequence[pl.Expr]) -> pl.Expr:
    chain: Any = pl
    for condition, value in zip(conditions, values, strict=False):
        chain = chain.when(condition).then(value)
    result: pl.Expr = chain.otherwise(values[-1])
    return result


def number(value: int | float) -> Typed:
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return Typed(pl.lit(value, dtype=pl.Int64), Kind.INT, value)
    return Typed(pl.lit(float(value), dtype=pl.Float64), Kind.FLOAT, float(value))


def time_literal(text: str, node: exp.Expression) -> Typed:
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise RefusedError(f"{text!r} is not a time; write for instance 2026-01-31T12:00:00Z", node) from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return Typed(pl.lit(at).cast(DTYPE[Kind.TIME]), Kind.TIME, at)


def nothing_left_out(node: exp.Expression) -> None:
    """Refuse arguments that would silently be ignored."""
    function = NODES.get(type(node))
    known = (
        {attribute for attribute, _ in function.arguments}
        if function
        else _ATTRIBUTES.get(type(node), _USUAL)
    )
    for attribute, value in node.args.items():
        if attribute not in known and attribute not in _HARMLESS and value not in (None, False, []):
            raise RefusedError(f"{node.sql('duckdb')}: {attribute.replace('_', ' ')} is not supported", node)


_USUAL = {"this", "expression", "expressions"}
_ATTRIBUTES: dict[type[exp.Expression], set[str]] = {
    exp.Literal: {"this", "is_string"},
    exp.Interval: {"this", "unit"},
    exp.Between: {"this", "low", "high"},
    exp.Case: {"this", "ifs", "default"},
    exp.If: {"this", "true", "false"},
    exp.Round: {"this", "decimals"},
    exp.Trim: {"this", "position"},
    exp.Substring: {"this", "start", "length"},
    exp.TimestampTrunc: {"this", "unit"},
    exp.DateTrunc: {"this", "unit"},
    exp.UnixToTime: {"this", "scale"},
    exp.Replace: {"this", "expression", "replacement"},
    exp.Cast: {"this", "to"},
    exp.TryCast: {"this", "to"},
}
_HARMLESS = {"typed", "safe", "ignore_nulls", "coalesce", "zone", "negate"}
"""Arguments that the SQL parser sets by itself and that don't change the meaning here."""
