"""What each node of a SQL expression becomes, where a table of functions isn't enough: operators, conditions, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import polars as pl
from sqlglot import exp

from headrace import dialect
from headrace.dialect import DTYPE, NUMBER, TEXT, TIME, Kind, RefusedError, Typed

if TYPE_CHECKING:
    from headrace.translate import Translator

# -- operators ---------------------------------------------------------------------------------


def _logic(translate: Translator, node: exp.Expression) -> Typed:
    name = "AND" if isinstance(node, exp.And) else "OR"
    parts = [translate.need(part, (Kind.BOOL,), name).expr for part in node.flatten()]
    while len(parts) > 1:  # a balanced tree: depth grows with the logarithm of a long chain
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [reduce(lambda a, b: a & b if name == "AND" else a | b, pair) for pair in pairs]
    return Typed(parts[0], Kind.BOOL)


def _not(translate: Translator, node: exp.Expression) -> Typed:
    return Typed(~translate.need(node.this, (Kind.BOOL,), "NOT").expr, Kind.BOOL)


def _compare(translate: Translator, node: exp.Expression) -> Typed:
    (left, right), _ = translate.alike((node.this, node.expression), f"in {node.sql('duckdb')}")
    return Typed(dialect.COMPARE[type(node)](left.expr, right.expr), Kind.BOOL)


def _arithmetic(translate: Translator, node: exp.Expression) -> Typed:
    operator = dialect.ARITHMETIC[type(node)]
    left, right = translate(node.this), translate(node.expression)
    timely = {left.kind, right.kind} & {Kind.TIME, Kind.SPAN}
    if timely and operator in "+-":
        if isinstance(left.literal, str):
            left = dialect.time_literal(left.literal, node.this)
        if isinstance(right.literal, str):
            right = dialect.time_literal(right.literal, node.expression)
        pair = (left.kind, operator, right.kind)
        if pair == (Kind.TIME, "-", Kind.TIME):
            return Typed(left.expr - right.expr, Kind.SPAN)
        if pair in ((Kind.TIME, "+", Kind.SPAN), (Kind.TIME, "-", Kind.SPAN)):
            return Typed(left.expr + right.expr if operator == "+" else left.expr - right.expr, Kind.TIME)
        if Kind.NULL in (left.kind, right.kind):
            return Typed(pl.lit(None), Kind.NULL)
    a = translate.fit(left, node.this, NUMBER, operator)
    b = translate.fit(right, node.expression, NUMBER, operator)
    kind = Kind.INT if a.kind is b.kind is Kind.INT else Kind.FLOAT
    if operator == "/":
        return Typed(dialect.finite(dialect.to_float(a.expr) / dialect.to_float(b.expr)), Kind.FLOAT)
    if operator == "%":  # the sign of the dividend, as in SQL; Polars' own has the sign of the divisor
        divisor = pl.when(b.expr != 0).then(b.expr)
        return Typed(a.expr.sign() * (a.expr.abs() % divisor.abs()), kind)
    return Typed({"+": a.expr + b.expr, "-": a.expr - b.expr, "*": a.expr * b.expr}[operator], kind)


def _negative(translate: Translator, node: exp.Expression) -> Typed:
    value = translate.need(node.this, NUMBER, "-")
    if isinstance(value.literal, (int, float)):
        return dialect.number(-value.literal)
    return Typed(-value.expr, value.kind)


def _is(translate: Translator, node: exp.Expression) -> Typed:
    value = translate(node.this)
    if isinstance(node.expression, exp.Null):
        return Typed(value.expr.is_null(), Kind.BOOL)
    if isinstance(node.expression, exp.Boolean) and value.kind in (Kind.BOOL, Kind.NULL):
        return Typed(value.expr.cast(pl.Boolean).eq_missing(node.expression.this), Kind.BOOL)
    raise RefusedError("IS goes with NULL, TRUE or FALSE", node)


def _in(translate: Translator, node: exp.Expression) -> Typed:
    values, kind = translate.alike((node.this, *node.expressions), "IN")
    subject, choices = values[0].expr, values[1:]
    found: list[pl.Expr] = []
    literals = [choice.literal for choice in choices if choice.literal is not None]
    if literals and kind is not Kind.NULL:
        found.append(subject.is_in(pl.Series(literals, dtype=DTYPE[kind]).implode()))
    found += [subject == choice.expr for choice in choices if choice.literal is None]
    return Typed(reduce(lambda a, b: a | b, found), Kind.BOOL)


def _between(translate: Translator, node: exp.Expression) -> Typed:
    (value, low, high), _ = translate.alike((node.this, node.args["low"], node.args["high"]), "BETWEEN")
    return Typed((value.expr >= low.expr) & (value.expr <= high.expr), Kind.BOOL)


# -- values ------------------------------------------------------------------------------------


def _literal(translate: Translator, node: exp.Expression) -> Typed:
    if node.is_string:
        return Typed(pl.lit(node.this, dtype=pl.String), Kind.TEXT, node.this)
    try:
        return dialect.number(int(node.this))
    except ValueError:
        return dialect.number(float(node.this))


def _boolean(translate: Translator, node: exp.Expression) -> Typed:
    return Typed(pl.lit(bool(node.this)), Kind.BOOL, bool(node.this))


def _null(translate: Translator, node: exp.Expression) -> Typed:
    return Typed(pl.lit(None), Kind.NULL)


def _interval(translate: Translator, node: exp.Expression) -> Typed:
    unit = node.args.get("unit")
    name = unit.name.upper().removesuffix("S") if unit is not None else ""
    try:
        length = float(node.this.name)
    except (AttributeError, ValueError):
        length = math.nan
    if (
        name not in dialect.INTERVAL_US
        or not math.isfinite(length)
        or abs(length) * dialect.INTERVAL_US[name] > 1e18
    ):
        raise RefusedError(
            "an interval is written as INTERVAL '5 seconds' (or minutes, hours, days, weeks)", node
        )
    return Typed(pl.lit(timedelta(microseconds=length * dialect.INTERVAL_US[name])), Kind.SPAN)


# -- functions with rules of their own ---------------------------------------------------------


def _case(translate: Translator, node: exp.Expression) -> Typed:
    branches, default = node.args["ifs"], node.args.get("default") or exp.Null()
    conditions = []
    for branch in branches:
        if node.args.get("this") is not None:
            (a, b), _ = translate.alike((node.this, branch.this), "CASE")
            conditions.append(a.expr == b.expr)
        else:
            conditions.append(translate.need(branch.this, (Kind.BOOL,), "WHEN").expr)
    values, kind = translate.alike((*(branch.args["true"] for branch in branches), default), "CASE")
    return Typed(dialect.choose(conditions, [value.expr for value in values]), kind)


def _if(translate: Translator, node: exp.Expression) -> Typed:
    condition = translate.need(node.this, (Kind.BOOL,), "IF").expr
    values, kind = translate.alike((node.args["true"], node.args.get("false") or exp.Null()), "IF")
    return Typed(dialect.choose([condition], [value.expr for value in values]), kind)


def _coalesce(translate: Translator, node: exp.Expression) -> Typed:
    values, kind = translate.alike((node.this, *node.expressions), "COALESCE")
    return Typed(pl.coalesce([value.expr for value in values]), kind)


def _nullif(translate: Translator, node: exp.Expression) -> Typed:
    (a, b), _ = translate.alike((node.this, node.expression), "NULLIF")
    return Typed(pl.when((a.expr == b.expr).fill_null(False)).then(None).otherwise(a.expr), a.kind)


def _extreme(translate: Translator, node: exp.Expression) -> Typed:
    name, pick = (
        ("LEAST", pl.min_horizontal) if isinstance(node, exp.Least) else ("GREATEST", pl.max_horizontal)
    )
    values, kind = translate.alike((node.this, *node.expressions), name)
    return Typed(pick([value.expr for value in values]), kind)


def _round(translate: Translator, node: exp.Expression) -> Typed:
    value = translate.need(node.this, NUMBER, "ROUND")
    decimals = translate.constant(node.args.get("decimals"), 0, "ROUND", low=0, high=15)
    if value.kind is Kind.INT:
        return value
    return Typed(value.expr.round(decimals, mode="half_away_from_zero"), Kind.FLOAT)


def _log(translate: Translator, node: exp.Expression) -> Typed:
    base, value = (
        (node.this, node.expression) if node.args.get("expression") is not None else (None, node.this)
    )
    if base is not None and base.name != "10":
        raise RefusedError("of the logarithms there are LN and LOG10", node)
    return Typed(
        dialect.finite(dialect.to_float(translate.need(value, NUMBER, "LOG10").expr).log10()), Kind.FLOAT
    )


def _trim(translate: Translator, node: exp.Expression) -> Typed:
    text = translate.need(node.this, TEXT, "TRIM").expr.str
    position = str(node.args.get("position") or "BOTH").upper()
    strip = {"LEADING": text.strip_chars_start, "TRAILING": text.strip_chars_end}.get(
        position, text.strip_chars
    )
    return Typed(strip(" "), Kind.TEXT)


def _substring(translate: Translator, node: exp.Expression) -> Typed:
    text = translate.need(node.this, TEXT, "SUBSTRING").expr.str
    start = translate.constant(node.args.get("start"), 1, "SUBSTRING")
    if start == 0:
        raise RefusedError("SUBSTRING counts from 1", node)
    length = translate.constant(node.args.get("length"), None, "SUBSTRING", low=0)
    return Typed(text.slice(start - 1 if start > 0 else start, length), Kind.TEXT)


def _concat(translate: Translator, node: exp.Expression) -> Typed:
    if isinstance(node, exp.DPipe):
        texts = [
            translate.need(part, (Kind.TEXT, Kind.INT), "||").expr.cast(pl.String) for part in node.flatten()
        ]
        return Typed(pl.concat_str(texts), Kind.TEXT)
    texts = [
        translate.need(part, (Kind.TEXT, Kind.INT), "CONCAT").expr.cast(pl.String)
        for part in node.expressions
    ]
    return Typed(pl.concat_str(texts, ignore_nulls=True), Kind.TEXT)


def _replace(translate: Translator, node: exp.Expression) -> Typed:
    text = translate.need(node.this, TEXT, "REPLACE").expr
    new = translate.written(node.args["replacement"], "REPLACE")
    old = translate.written(node.expression, "REPLACE")
    return Typed(text.str.replace_all(old, new, literal=True) if old else text, Kind.TEXT)


def _like(translate: Translator, node: exp.Expression) -> Typed:
    name = "LIKE" if isinstance(node, exp.Like) else "ILIKE"
    text = translate.need(node.this, TEXT, name).expr
    pattern = translate.written(node.expression, name)
    return Typed(text.str.contains(dialect.like_regex(pattern, fold=name == "ILIKE")), Kind.BOOL)


def _regex(translate: Translator, node: exp.Expression) -> Typed:
    text = translate.need(node.this, TEXT, "REGEXP_MATCHES").expr
    pattern = translate.written(node.expression, "REGEXP_MATCHES")
    try:
        pl.select(pl.lit("").str.contains(pattern))
    except pl.exceptions.PolarsError as error:
        why = next(
            (line for line in str(error).splitlines() if line.startswith("error:")), "error: not valid"
        )
        raise RefusedError(
            f"{pattern!r} is not a regular expression: {why.removeprefix('error: ')}", node
        ) from None
    return Typed(text.str.contains(pattern), Kind.BOOL)


def _truncate(translate: Translator, node: exp.Expression) -> Typed:
    return _part(
        translate, node.args["unit"].name, node.this, node, dialect.TRUNCATE, "DATE_TRUNC", Kind.TIME
    )


def _extract(translate: Translator, node: exp.Expression) -> Typed:
    if node.this.name.upper() == "EPOCH":
        return translate(exp.TimeToUnix(this=node.expression))
    return _part(translate, node.this.name, node.expression, node, dialect.PARTS, "EXTRACT", Kind.INT)


def _part(
    translate: Translator,
    unit: str,
    value: exp.Expression,
    node: exp.Expression,
    table: dict[str, Any],
    name: str,
    kind: Kind,
) -> Typed:
    rule = table.get(unit.upper())
    if rule is None:
        raise RefusedError(f"{name} knows no {unit.lower()!r}; there are {', '.join(table).lower()}", node)
    time = translate.need(value, TIME, name).expr
    return Typed(rule(time) if callable(rule) else time.dt.truncate(rule), kind)


def _unix(translate: Translator, node: exp.Expression) -> Typed:
    """EPOCH_MS of a time is a number and of a number a time; TO_TIMESTAMP takes seconds."""
    scale = int(node.args["scale"].name) if node.args.get("scale") is not None else 0
    value = translate(node.this)
    if scale == 3 and value.kind is Kind.TIME:
        return Typed(value.expr.dt.timestamp("ms"), Kind.INT)
    number = translate.fit(value, node.this, NUMBER, "EPOCH_MS" if scale == 3 else "TO_TIMESTAMP")
    micros = (dialect.to_float(number.expr) * float(10 ** (6 - scale))).round(0)
    sane = pl.when(micros.is_between(dialect.YEAR_1_US, dialect.YEAR_9999_US)).then(micros)
    return Typed(sane.cast(pl.Int64, strict=False).cast(DTYPE[Kind.TIME]), Kind.TIME)


def _named(translate: Translator, node: exp.Expression) -> Typed:
    name = str(node.this).upper()
    if name == "DATE_PART" and len(node.expressions) == 2:
        return translate(exp.Extract(this=exp.var(node.expressions[0].name), expression=node.expressions[1]))
    function = dialect.NAMED.get(name)
    if function is None:
        raise RefusedError(dialect.not_allowed(node), node)
    return translate.call(function, node, node.expressions)


def _cast(translate: Translator, node: exp.Expression) -> Typed:
    target = dialect.CASTS.get(node.args["to"].this.name)
    if target is None:
        raise RefusedError(
            f"can't CAST to {node.args['to'].sql('duckdb')}; to BIGINT, DOUBLE, VARCHAR, BOOLEAN or TIMESTAMP",
            node,
        )
    value = translate(node.this)
    if target is Kind.TIME and isinstance(value.literal, str):
        return dialect.time_literal(value.literal, node)
    if value.kind is target:
        return value
    if value.kind is Kind.NULL:
        return Typed(value.expr.cast(DTYPE[target]), target)
    convert = dialect.CONVERT.get((value.kind, target))
    if convert is None:
        hint = "; use to_timestamp(seconds) or epoch_ms(milliseconds)" if target is Kind.TIME else ""
        raise RefusedError(f"can't CAST a {value.kind.value} to a {target.value}{hint}", node)
    return Typed(convert(value.expr), target)


SPECIAL: dict[type[exp.Expression], Callable[[Translator, Any], Typed]] = {
    exp.And: _logic,
    exp.Or: _logic,
    exp.Not: _not,
    exp.Neg: _negative,
    exp.Is: _is,
    exp.In: _in,
    exp.Between: _between,
    exp.Literal: _literal,
    exp.Boolean: _boolean,
    exp.Null: _null,
    exp.Interval: _interval,
    exp.Case: _case,
    exp.If: _if,
    exp.Coalesce: _coalesce,
    exp.Nullif: _nullif,
    exp.Least: _extreme,
    exp.Greatest: _extreme,
    exp.Round: _round,
    exp.Log: _log,
    exp.Trim: _trim,
    exp.Substring: _substring,
    exp.Concat: _concat,
    exp.DPipe: _concat,
    exp.Like: _like,
    exp.ILike: _like,
    exp.RegexpLike: _regex,
    exp.TimestampTrunc: _truncate,
    exp.DateTrunc: _truncate,
    exp.Extract: _extract,
    exp.UnixToTime: _unix,
    exp.Anonymous: _named,
    exp.Cast: _cast,
    exp.TryCast: _cast,
    exp.Replace: _replace,
    **dict.fromkeys(dialect.COMPARE, _compare),
    **dict.fromkeys(dialect.ARITHMETIC, _arithmetic),
}  # fmt: _skip
