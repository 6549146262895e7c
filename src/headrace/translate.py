"""From a parsed SQL expression to a Polars one: walks sqlglot's tree, checks kinds, refuses what isn't allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import reduce
from typing import Any

import polars as pl
from sqlglot import exp

from headrace import dialect
from headrace.dialect import DTYPE, NUMBER, TEXT, TIME, Kind, RefusedError, Typed

MAX_DEPTH = 100
"""Levels of nesting; beyond, an expression is refused before it can exhaust a stack."""


class Translator:
    """Turns a parsed expression into a Polars one, checking kinds on the way.

    `column` gives the expression of a column node.
    """

    def __init__(self, column: Callable[[exp.Expression], Typed]) -> None:
        self._column = column
        self._depth = 0

    def __call__(self, node: exp.Expression) -> Typed:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RefusedError(f"is nested more than {MAX_DEPTH} levels deep", node)
        try:
            return self._translate(node)
        finally:
            self._depth -= 1

    def _translate(self, node: exp.Expression) -> Typed:
        if isinstance(node, exp.Paren):
            return self(node.this)
        if isinstance(node, (exp.Column, exp.Dot)):
            return self._column(node)
        function, special = dialect.NODES.get(type(node)), _SPECIAL.get(type(node))
        if function is None and special is None:
            raise RefusedError(dialect.not_allowed(node), node)
        dialect.nothing_left_out(node)
        if function is not None:
            result = self._call(
                function, node, [node.args.get(attribute) for attribute, _ in function.arguments]
            )
        else:
            assert special is not None
            result = special(self, node)
        return Typed(~result.expr, result.kind) if node.args.get("negate") else result

    def _call(self, function: dialect.Function, node: exp.Expression, arguments: Sequence[Any]) -> Typed:
        if len(arguments) != len(function.arguments) or any(a is None for a in arguments):
            raise RefusedError(f"{function.name} takes {len(function.arguments)} argument(s)", node)
        values = [
            self.need(argument, kinds, function.name)
            for argument, (_, kinds) in zip(arguments, function.arguments, strict=True)
        ]
        return Typed(function.build(*(value.expr for value in values)), function.result or values[0].kind)

    def need(self, node: exp.Expression, kinds: tuple[Kind, ...], where: str) -> Typed:
        """The translated node, which must be of one of `kinds`; null is of any kind."""
        return self._fit(self(node), node, kinds, where)

    def _fit(self, value: Typed, node: exp.Expression, kinds: tuple[Kind, ...], where: str) -> Typed:
        if value.kind is Kind.NULL:
            return Typed(value.expr.cast(DTYPE[kinds[0]]), kinds[0])
        if kinds == TIME and isinstance(value.literal, str):
            return dialect.time_literal(value.literal, node)
        if value.kind not in kinds:
            hint = ""
            if kinds == TEXT and value.kind in NUMBER:
                hint = "; write CAST(... AS VARCHAR)"
            elif kinds == NUMBER and value.kind is Kind.TEXT:
                hint = "; write CAST(... AS DOUBLE)"
            elif kinds == NUMBER and value.kind is Kind.SPAN:
                hint = "; write millis_between(earlier, later)"
            wanted = "number" if kinds == NUMBER else " or ".join(kind.value for kind in kinds)
            raise RefusedError(
                f"{where} needs a {wanted}, and {node.sql('duckdb')} is a {value.kind.value}{hint}", node
            )
        return value

    def alike(self, nodes: Sequence[exp.Expression], where: str) -> tuple[list[Typed], Kind]:
        """Translated nodes brought to one kind: whole numbers widen, null fits all, a written time is parsed."""
        values = [self(node) for node in nodes]
        kinds = {value.kind for value in values} - {Kind.NULL}
        if kinds == {Kind.TIME, Kind.TEXT}:
            values = [
                dialect.time_literal(v.literal, n) if isinstance(v.literal, str) else v
                for v, n in zip(values, nodes, strict=True)
            ]
            kinds = {value.kind for value in values} - {Kind.NULL}
        if kinds == set(NUMBER):
            kind = Kind.FLOAT
        elif len(kinds) > 1:
            first = next(v.kind for v in values if v.kind is not Kind.NULL)
            odd = next(i for i, v in enumerate(values) if v.kind not in (Kind.NULL, first))
            raise RefusedError(
                f"{where}: a {first.value} and a {values[odd].kind.value} don't go together; CAST one of them",
                nodes[odd],
            )
        else:
            kind = next(iter(kinds), Kind.NULL)
        if kind is Kind.OTHER:
            raise RefusedError(f"{where} can't work on a nested value; name a field in it", nodes[0])
        dtype = DTYPE[kind]
        return [v if v.kind is kind else Typed(v.expr.cast(dtype), kind, v.literal) for v in values], kind

    # -- operators ---------------------------------------------------------------------------------

    def _logic(self, node: exp.Expression) -> Typed:
        name = "AND" if isinstance(node, exp.And) else "OR"
        parts = [self.need(part, (Kind.BOOL,), name).expr for part in node.flatten()]
        while len(parts) > 1:  # a balanced tree: depth grows with the logarithm of a long chain
            pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
            parts = [reduce(lambda a, b: a & b if name == "AND" else a | b, pair) for pair in pairs]
        return Typed(parts[0], Kind.BOOL)

    def _not(self, node: exp.Expression) -> Typed:
        return Typed(~self.need(node.this, (Kind.BOOL,), "NOT").expr, Kind.BOOL)

    def _compare(self, node: exp.Expression) -> Typed:
        (left, right), _ = self.alike((node.this, node.expression), f"in {node.sql('duckdb')}")
        return Typed(dialect.COMPARE[type(node)](left.expr, right.expr), Kind.BOOL)

    def _arithmetic(self, node: exp.Expression) -> Typed:
        operator = dialect.ARITHMETIC[type(node)]
        left, right = self(node.this), self(node.expression)
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
        a = self._fit(left, node.this, NUMBER, operator)
        b = self._fit(right, node.expression, NUMBER, operator)
        kind = Kind.INT if a.kind is b.kind is Kind.INT else Kind.FLOAT
        if operator == "/":
            return Typed(dialect.finite(dialect.to_float(a.expr) / dialect.to_float(b.expr)), Kind.FLOAT)
        if operator == "%":  # the sign of the dividend, as in SQL; Polars' own has the sign of the divisor
            divisor = pl.when(b.expr != 0).then(b.expr)
            return Typed(a.expr.sign() * (a.expr.abs() % divisor.abs()), kind)
        return Typed({"+": a.expr + b.expr, "-": a.expr - b.expr, "*": a.expr * b.expr}[operator], kind)

    def _negative(self, node: exp.Expression) -> Typed:
        value = self.need(node.this, NUMBER, "-")
        if isinstance(value.literal, (int, float)):
            return dialect.number(-value.literal)
        return Typed(-value.expr, value.kind)

    def _is(self, node: exp.Expression) -> Typed:
        value = self(node.this)
        if isinstance(node.expression, exp.Null):
            return Typed(value.expr.is_null(), Kind.BOOL)
        if isinstance(node.expression, exp.Boolean) and value.kind in (Kind.BOOL, Kind.NULL):
            return Typed(value.expr.cast(pl.Boolean).eq_missing(node.expression.this), Kind.BOOL)
        raise RefusedError("IS goes with NULL, TRUE or FALSE", node)

    def _in(self, node: exp.Expression) -> Typed:
        values, kind = self.alike((node.this, *node.expressions), "IN")
        subject, choices = values[0].expr, values[1:]
        found: list[pl.Expr] = []
        literals = [choice.literal for choice in choices if choice.literal is not None]
        if literals and kind is not Kind.NULL:
            found.append(subject.is_in(pl.Series(literals, dtype=DTYPE[kind]).implode()))
        found += [subject == choice.expr for choice in choices if choice.literal is None]
        return Typed(reduce(lambda a, b: a | b, found), Kind.BOOL)

    def _between(self, node: exp.Expression) -> Typed:
        (value, low, high), _ = self.alike((node.this, node.args["low"], node.args["high"]), "BETWEEN")
        return Typed((value.expr >= low.expr) & (value.expr <= high.expr), Kind.BOOL)

    # -- values ------------------------------------------------------------------------------------

    def _literal(self, node: exp.Expression) -> Typed:
        if node.is_string:
            return Typed(pl.lit(node.this, dtype=pl.String), Kind.TEXT, node.this)
        try:
            return dialect.number(int(node.this))
        except ValueError:
            return dialect.number(float(node.this))

    def _boolean(self, node: exp.Expression) -> Typed:
        return Typed(pl.lit(bool(node.this)), Kind.BOOL, bool(node.this))

    def _null(self, node: exp.Expression) -> Typed:
        return Typed(pl.lit(None), Kind.NULL)

    def _interval(self, node: exp.Expression) -> Typed:
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

    def _case(self, node: exp.Expression) -> Typed:
        branches, default = node.args["ifs"], node.args.get("default") or exp.Null()
        conditions = []
        for branch in branches:
            if node.args.get("this") is not None:
                (a, b), _ = self.alike((node.this, branch.this), "CASE")
                conditions.append(a.expr == b.expr)
            else:
                conditions.append(self.need(branch.this, (Kind.BOOL,), "WHEN").expr)
        values, kind = self.alike((*(branch.args["true"] for branch in branches), default), "CASE")
        return Typed(dialect.choose(conditions, [value.expr for value in values]), kind)

    def _if(self, node: exp.Expression) -> Typed:
        condition = self.need(node.this, (Kind.BOOL,), "IF").expr
        values, kind = self.alike((node.args["true"], node.args.get("false") or exp.Null()), "IF")
        return Typed(dialect.choose([condition], [value.expr for value in values]), kind)

    def _coalesce(self, node: exp.Expression) -> Typed:
        values, kind = self.alike((node.this, *node.expressions), "COALESCE")
        return Typed(pl.coalesce([value.expr for value in values]), kind)

    def _nullif(self, node: exp.Expression) -> Typed:
        (a, b), _ = self.alike((node.this, node.expression), "NULLIF")
        return Typed(pl.when((a.expr == b.expr).fill_null(False)).then(None).otherwise(a.expr), a.kind)

    def _extreme(self, node: exp.Expression) -> Typed:
        name, pick = (
            ("LEAST", pl.min_horizontal) if isinstance(node, exp.Least) else ("GREATEST", pl.max_horizontal)
        )
        values, kind = self.alike((node.this, *node.expressions), name)
        return Typed(pick([value.expr for value in values]), kind)

    def _round(self, node: exp.Expression) -> Typed:
        value = self.need(node.this, NUMBER, "ROUND")
        decimals = self._constant(node.args.get("decimals"), 0, "ROUND", low=0, high=15)
        if value.kind is Kind.INT:
            return value
        return Typed(value.expr.round(decimals, mode="half_away_from_zero"), Kind.FLOAT)

    def _log(self, node: exp.Expression) -> Typed:
        base, value = (
            (node.this, node.expression) if node.args.get("expression") is not None else (None, node.this)
        )
        if base is not None and base.name != "10":
            raise RefusedError("of the logarithms there are LN and LOG10", node)
        return Typed(
            dialect.finite(dialect.to_float(self.need(value, NUMBER, "LOG10").expr).log10()), Kind.FLOAT
        )

    def _trim(self, node: exp.Expression) -> Typed:
        text = self.need(node.this, TEXT, "TRIM").expr.str
        position = str(node.args.get("position") or "BOTH").upper()
        strip = {"LEADING": text.strip_chars_start, "TRAILING": text.strip_chars_end}.get(
            position, text.strip_chars
        )
        return Typed(strip(" "), Kind.TEXT)

    def _substring(self, node: exp.Expression) -> Typed:
        text = self.need(node.this, TEXT, "SUBSTRING").expr.str
        start = self._constant(node.args.get("start"), 1, "SUBSTRING")
        if start == 0:
            raise RefusedError("SUBSTRING counts from 1", node)
        length = self._constant(node.args.get("length"), None, "SUBSTRING", low=0)
        return Typed(text.slice(start - 1 if start > 0 else start, length), Kind.TEXT)

    def _concat(self, node: exp.Expression) -> Typed:
        if isinstance(node, exp.DPipe):
            texts = [
                self.need(part, (Kind.TEXT, Kind.INT), "||").expr.cast(pl.String) for part in node.flatten()
            ]
            return Typed(pl.concat_str(texts), Kind.TEXT)
        texts = [
            self.need(part, (Kind.TEXT, Kind.INT), "CONCAT").expr.cast(pl.String) for part in node.expressions
        ]
        return Typed(pl.concat_str(texts, ignore_nulls=True), Kind.TEXT)

    def _replace(self, node: exp.Expression) -> Typed:
        text = self.need(node.this, TEXT, "REPLACE").expr
        new = self._written(node.args["replacement"], "REPLACE")
        old = self._written(node.expression, "REPLACE")
        return Typed(text.str.replace_all(old, new, literal=True) if old else text, Kind.TEXT)

    def _like(self, node: exp.Expression) -> Typed:
        name = "LIKE" if isinstance(node, exp.Like) else "ILIKE"
        text = self.need(node.this, TEXT, name).expr
        pattern = self._written(node.expression, name)
        return Typed(text.str.contains(dialect.like_regex(pattern, fold=name == "ILIKE")), Kind.BOOL)

    def _regex(self, node: exp.Expression) -> Typed:
        text = self.need(node.this, TEXT, "REGEXP_MATCHES").expr
        pattern = self._written(node.expression, "REGEXP_MATCHES")
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

    def _truncate(self, node: exp.Expression) -> Typed:
        return self._part(node.args["unit"].name, node.this, node, dialect.TRUNCATE, "DATE_TRUNC", Kind.TIME)

    def _extract(self, node: exp.Expression) -> Typed:
        if node.this.name.upper() == "EPOCH":
            return self(exp.TimeToUnix(this=node.expression))
        return self._part(node.this.name, node.expression, node, dialect.PARTS, "EXTRACT", Kind.INT)

    def _part(
        self,
        unit: str,
        value: exp.Expression,
        node: exp.Expression,
        table: dict[str, Any],
        name: str,
        kind: Kind,
    ) -> Typed:
        rule = table.get(unit.upper())
        if rule is None:
            raise RefusedError(
                f"{name} knows no {unit.lower()!r}; there are {', '.join(table).lower()}", node
            )
        time = self.need(value, TIME, name).expr
        return Typed(rule(time) if callable(rule) else time.dt.truncate(rule), kind)

    def _unix(self, node: exp.Expression) -> Typed:
        """EPOCH_MS of a time is a number and of a number a time; TO_TIMESTAMP takes seconds."""
        scale = int(node.args["scale"].name) if node.args.get("scale") is not None else 0
        value = self(node.this)
        if scale == 3 and value.kind is Kind.TIME:
            return Typed(value.expr.dt.timestamp("ms"), Kind.INT)
        number = self._fit(value, node.this, NUMBER, "EPOCH_MS" if scale == 3 else "TO_TIMESTAMP")
        micros = (dialect.to_float(number.expr) * float(10 ** (6 - scale))).round(0)
        sane = pl.when(micros.is_between(dialect.YEAR_1_US, dialect.YEAR_9999_US)).then(micros)
        return Typed(sane.cast(pl.Int64, strict=False).cast(DTYPE[Kind.TIME]), Kind.TIME)

    def _named(self, node: exp.Expression) -> Typed:
        name = str(node.this).upper()
        if name == "DATE_PART" and len(node.expressions) == 2:
            return self(exp.Extract(this=exp.var(node.expressions[0].name), expression=node.expressions[1]))
        function = dialect.NAMED.get(name)
        if function is None:
            raise RefusedError(dialect.not_allowed(node), node)
        return self._call(function, node, node.expressions)

    def _cast(self, node: exp.Expression) -> Typed:
        target = dialect.CASTS.get(node.args["to"].this.name)
        if target is None:
            raise RefusedError(
                f"can't CAST to {node.args['to'].sql('duckdb')}; to BIGINT, DOUBLE, VARCHAR, BOOLEAN or TIMESTAMP",
                node,
            )
        value = self(node.this)
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

    def _constant(
        self,
        node: exp.Expression | None,
        default: Any,
        where: str,
        *,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Any:
        if node is None:
            return default
        value = self(node)
        if not (isinstance(value.literal, int) and low <= value.literal <= high):
            raise RefusedError(f"{where} needs a written whole number here, not {node.sql('duckdb')}", node)
        return value.literal

    def _written(self, node: exp.Expression, where: str) -> str:
        value = self(node)
        if not isinstance(value.literal, str):
            raise RefusedError(f"{where} needs this as a text written in quotes", node)
        return value.literal


_SPECIAL: dict[type[exp.Expression], Callable[[Translator, Any], Typed]] = {
    exp.And: Translator._logic, exp.Or: Translator._logic, exp.Not: Translator._not, exp.Neg: Translator._negative,
    exp.Is: Translator._is, exp.In: Translator._in, exp.Between: Translator._between,
    exp.Literal: Translator._literal, exp.Boolean: Translator._boolean, exp.Null: Translator._null,
    exp.Interval: Translator._interval, exp.Case: Translator._case, exp.If: Translator._if,
    exp.Coalesce: Translator._coalesce, exp.Nullif: Translator._nullif, exp.Least: Translator._extreme,
    exp.Greatest: Translator._extreme, exp.Round: Translator._round, exp.Log: Translator._log, exp.Trim: Translator._trim,
    exp.Substring: Translator._substring, exp.Concat: Translator._concat, exp.DPipe: Translator._concat,
    exp.Like: Translator._like, exp.ILike: Translator._like, exp.RegexpLike: Translator._regex,
    exp.TimestampTrunc: Translator._truncate, exp.DateTrunc: Translator._truncate, exp.Extract: Translator._extract,
    exp.UnixToTime: Translator._unix, exp.Anonymous: Translator._named, exp.Cast: Translator._cast,
    exp.TryCast: Translator._cast, exp.Replace: Translator._replace,
    **dict.fromkeys(dialect.COMPARE, Translator._compare),
    **dict.fromkeys(dialect.ARITHMETIC, Translator._arithmetic),
}  # fmt: skip
