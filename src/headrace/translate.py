"""From a parsed SQL expression to a Polars one: walks sqlglot's tree, checks kinds, refuses what isn't allowed.

Functions are tables in `headrace.dialect`; the other nodes are in `headrace.grammar`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sqlglot import exp

from headrace import dialect
from headrace.dialect import DTYPE, NUMBER, TEXT, TIME, Kind, RefusedError, Typed
from headrace.grammar import SPECIAL

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
        function, special = dialect.NODES.get(type(node)), SPECIAL.get(type(node))
        if function is None and special is None:
            raise RefusedError(dialect.not_allowed(node), node)
        dialect.nothing_left_out(node)
        if function is not None:
            result = self.call(
                function, node, [node.args.get(attribute) for attribute, _ in function.arguments]
            )
        else:
            assert special is not None
            result = special(self, node)
        return Typed(~result.expr, result.kind) if node.args.get("negate") else result

    def call(self, function: dialect.Function, node: exp.Expression, arguments: Sequence[Any]) -> Typed:
        if len(arguments) != len(function.arguments) or any(a is None for a in arguments):
            raise RefusedError(f"{function.name} takes {len(function.arguments)} argument(s)", node)
        values = [
            self.need(argument, kinds, function.name)
            for argument, (_, kinds) in zip(arguments, function.arguments, strict=True)
        ]
        return Typed(function.build(*(value.expr for value in values)), function.result or values[0].kind)

    def need(self, node: exp.Expression, kinds: tuple[Kind, ...], where: str) -> Typed:
        """The translated node, which must be of one of `kinds`; null is of any kind."""
        return self.fit(self(node), node, kinds, where)

    def fit(self, value: Typed, node: exp.Expression, kinds: tuple[Kind, ...], where: str) -> Typed:
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

    def constant(
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

    def written(self, node: exp.Expression, where: str) -> str:
        value = self(node)
        if not isinstance(value.literal, str):
            raise RefusedError(f"{where} needs this as a text written in quotes", node)
        return value.literal
