"""Expressions: the same answers as DuckDB, null instead of a stop, and errors that say what would be right."""

from __future__ import annotations

import itertools
import math
import time
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.dialect import FUNCTIONS
from headrace.errors import PlanError
from headrace.expression import Expression, compile_all, evaluate
from headrace.model import EVENTS, TIMESTAMP, empty, open_struct


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


ROWS = pa.RecordBatch.from_pydict(
    {
        "a": pa.array([7, -7, 0, None, 3], pa.int64()),
        "b": pa.array([2, 2, 0, 4, None], pa.int64()),
        "f": pa.array([2.5, -2.5, 0.125, None, 1e6], pa.float64()),
        "g": pa.array([-0.5, 0.0, 4.0, 2.0, None], pa.float64()),
        "s": pa.array(["Abc", " x y ", "", None, "ä%_\n."], pa.string()),
        "p": pa.array(["A", "x", "", "q", None], pa.string()),
        "o": pa.array([True, False, None, True, False], pa.bool_()),
        "t": pa.array(
            [
                at("2024-01-07T02:03:04.005678"),
                at("1969-12-31T23:59:59.5"),
                None,
                at("2024-02-29"),
                at("2026-12-31T12:00:00"),
            ],
            TIMESTAMP,
        ),
        "u": pa.array([at("2024-01-07")] * 5, TIMESTAMP),
    }
)

SAME_AS_DUCKDB = [
    "a + b", "a - b", "a * b", "f / (g + 9)", "a % (b + 1)", "f % 2", "-a", "a + 1.5", "a ** 2", "pow(f, 2)", "power(a, b)",
    "a > b", "a >= b", "a = b", "a <> b", "a != 3", "a < 2.5", "a is distinct from b", "a is not distinct from b",
    "o and a > 0", "o or a > 0", "not o", "o and null", "o or null", "o is true", "o is not false",
    "a in (7, 3)", "a not in (7, null)", "a in (b, 3)", "s in ('Abc', '')", "a between 0 and b", "a not between 0 and 3",
    "s like 'A%'", "s like '%b_'", "s ilike 'a%'", "s not like '%'", "s like '%.%'",
    "s is null", "s is not null", "case when a > 0 then 'pos' when a < 0 then 'neg' end", "case a when 7 then 1 else b end",
    "case when o then a else 0.5 end", "if(o, a, b)", "coalesce(a, b)", "coalesce(a, f)", "ifnull(s, 'none')",
    "nullif(a, b)", "nullif(a, 7)", "abs(a)", "abs(f)", "round(f)", "round(f, 2)", "floor(f)", "ceil(f)", "sign(a)", "sign(f)",
    "exp(g)", "least(a, b)", "greatest(a, b, 1)", "least(f, a)", "least(s, 'Z')", "lower(s)", "upper(s)", "trim(s)",
    "ltrim(s)", "rtrim(s)", "length(s)", "substring(s, 2)", "substring(s, 1, 2)", "substring(s, -2, 1)", "concat(s, p)",
    "s || p", "s || a", "concat(s, 'x', a)", "replace(s, 'b', 'zz')", "starts_with(s, 'A')",
    "starts_with(s, p)", "ends_with(s, 'c')", "contains(s, 'b')", "contains(s, '.')", "regexp_matches(s, '^A.c$')",
    "s ~ 'b+'", "date_trunc('hour', t)", "date_trunc('week', t)", "date_trunc('month', t)", "date_trunc('quarter', t)",
    "year(t)", "quarter(t)", "month(t)", "week(t)", "day(t)", "dayofweek(t)", "hour(t)", "minute(t)", "second(t)",
    "extract(hour from t)", "extract(epoch from t)", "date_part('day', t)", "epoch(t)", "epoch_ms(t)", "epoch_us(t)",
    "t > u", "t = timestamptz '2024-02-29 00:00:00+00'", "t > u - interval '1 hour'", "t + interval 2 days",
    "t - u > interval '5 seconds'", "t between u and u + interval '1 week'", "date_trunc('day', t) = u",
    "cast(a as double)", "cast(a as varchar)", "try_cast(s as double)", "cast(f as bigint)", "cast(o as bigint)",
    "cast(a as boolean)", "a::double / 2", "cast(o as varchar)", "try_cast('12.5' as double)", "1 + 1", "'x'", "true", "isnan(f)",
    "extract(minute from t) * 100", "length(s) - 10", "-(-a)", "(a + b) * 2 - a", "least(a, null)", "a in (1) or b in (2)",
    "try_cast('2024-01-01T00:00:00Z' as timestamptz)", "case when a > 100 then 1 end", "not (a > 0 and b > 0)",
]  # fmt: skip


@pytest.fixture(scope="module")
def database():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("rows", pa.table(ROWS.to_pydict(), schema=ROWS.schema))
        yield connection


def close(left, right):
    if (
        isinstance(left, bool)
        or isinstance(right, bool)
        or not isinstance(left, (int, float))
        or right is None
    ):
        return left == right
    return math.isclose(left, float(right), rel_tol=1e-12)


@pytest.mark.parametrize("text", SAME_AS_DUCKDB)
def test_an_expression_gives_what_duckdb_gives(text, database):
    ours = Expression.parse(text).compile(ROWS.schema).evaluate(ROWS).to_pylist()
    theirs = database.sql(f"select {text} as r from rows").to_arrow_table()["r"].to_pylist()
    assert len(ours) == len(theirs)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


EDGES = [
    ("1 / a", [1 / 7, -1 / 7, None, None, 1 / 3]),
    ("f / 0", [None] * 5),
    ("a % b", [1, -1, None, None, None]),
    ("a % 0", [None] * 5),
    ("sqrt(f)", [2.5**0.5, None, 0.125**0.5, None, 1000.0]),
    ("ln(g)", [None, None, math.log(4), math.log(2), None]),
    ("log10(f)", [math.log10(2.5), None, math.log10(0.125), None, 6.0]),
    ("exp(f)", [math.exp(2.5), math.exp(-2.5), math.exp(0.125), None, None]),
    ("cast(s as bigint)", [None] * 5),
    ("cast('7' as bigint)", [7] * 5),
    ("cast('yes' as boolean)", [True] * 5),
    ("null", [None] * 5),
    ("millis_between(u, t)", [7_384_005.678, -1704585600500.0, None, 4_579_200_000.0, 94132800000.0]),
    ("to_timestamp(1.5)", [at("1970-01-01T00:00:01.5")] * 5),
    ("epoch_ms(1500)", [at("1970-01-01T00:00:01.5")] * 5),
    ("to_timestamp(1e18)", [None] * 5),
    ("t = '2024-02-29T01:00:00+01:00'", [False, False, None, True, False]),
    ("cast('2024-02-29 00:00' as timestamp)", [at("2024-02-29")] * 5),
    ("cast(s || '' as timestamp)", [None] * 5),
    ("cast(t as varchar)", ["2024-01-07T02:03:04.005678Z", "1969-12-31T23:59:59.500000Z", None, "2024-02-29T00:00:00.000000Z",
                            "2026-12-31T12:00:00.000000Z"]),
    ("9223372036854775808", [9223372036854775808.0] * 5),
    ('"a"', [7, -7, 0, None, 3]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), EDGES)
def test_what_has_no_answer_is_null(text, expected):
    given_ = Expression.parse(text).compile(ROWS.schema).evaluate(ROWS).to_pylist()
    assert all(close(a, b) for a, b in zip(given_, expected, strict=True)), given_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("payload.temp > 3", "no column 'payload.temp'; there are"),
        ("A > 3", "`A > 3` at 1: no column 'A', did you mean 'a'?"),
        ("a > 1 and vlaue > 3", "at 11: no column 'vlaue'"),
        ("s > 3", "a text and a whole number don't go together; CAST one of them"),
        ("s + 1", "needs a number, and s is a text; write CAST(... AS DOUBLE)"),
        ("a > ", "not a SQL expression"),
        ("a >\n >> > 2", "at line 2"),
        ("", "is empty"),
        ("a; b", "expected"),
        ("select 1", "sees one row at a time"),
        ("(select 1)", "sees one row at a time"),
        ("a in (select 1)", "query is not supported"),
        ("sum(a)", "aggregates belong into a window step"),
        ("sum(a) over ()", "sees one row at a time"),
        ("count(*)", "aggregates belong into a window step"),
        ("now()", "the same rows must always give the same result"),
        ("random()", "the same rows must always give the same result"),
        ("current_timestamp", "the same rows must always give the same result"),
        ("read_csv('/etc/passwd')", "Allowed are operators"),
        ("a[1]", "is not allowed"),
        ("a as b", "is not allowed"),
        ("*", "is not allowed"),
        ("$1", "is not allowed"),
        ("t - u", "millis_between"),
        ("t > 'yesterday'", "'yesterday' is not a time; write for instance"),
        ("t + 5", "needs a number"),
        ("t - u > 5", "don't go together"),
        ("regexp_matches(s, '((')", "is not a regular expression: unclosed group"),
        ("s like p", "a text written in quotes"),
        ("cast(a as json)", "can't CAST to JSON"),
        ("extract(century from t)", "EXTRACT knows no 'century'"),
        ("log(2, a)", "LN and LOG10"),
        ("interval '1 month' + t", "INTERVAL '5 seconds'"),
        ("not a", "NOT needs a true or false"),
        ("abs(s)", "ABS needs a number"),
        ("millis_between(t)", "takes 2 argument(s)"),
        ("s like 'a' escape 'b'", "is not allowed"),
        ("x" * 30_000, "characters"),
        ("(" * 5000 + "a" + ")" * 5000, "nested too deep"),
        ("-- nothing", "one SQL expression is expected"),
        (" + ".join(["a"] * 300), "nested more than"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_what_would_be_right(text, message):
    with pytest.raises(PlanError) as error:
        Expression.parse(text).compile(ROWS.schema)
    assert message in str(error.value)


def test_a_long_chain_of_conditions_is_fine():
    text = " or ".join(f"a = {number}" for number in range(1000))
    assert Expression.parse(text).compile(ROWS.schema).evaluate(ROWS).to_pylist() == [
        True,
        False,
        True,
        None,
        True,
    ]


def test_every_function_is_compared_or_in_the_edges():
    said = " ".join([*SAME_AS_DUCKDB, *(text for text, _ in EDGES)]).upper()
    assert [name for name in FUNCTIONS if name not in said] == []


# -- structs and types -----------------------------------------------------------------------------

DEEP = pa.RecordBatch.from_pydict(
    {"payload": pa.array([{"t": 1.5, "in": {"x y": 2}}, None, {"t": None, "in": None}])},
)
OPEN_SCHEMA = pa.schema(
    [open_struct([pa.field("t", pa.float64()), pa.field("in", pa.struct([("x y", pa.int64())]))])]
)


def test_a_path_goes_into_structs_and_is_null_where_one_above_is():
    assert Expression.parse("payload.t").compile(DEEP.schema).evaluate(DEEP).to_pylist() == [1.5, None, None]
    assert Expression.parse('payload."in"."x y" + 1').compile(DEEP.schema).evaluate(DEEP).to_pylist() == [
        3,
        None,
        None,
    ]


def test_a_sliced_batch_gives_its_own_rows():
    rows = pa.concat_batches([DEEP, DEEP]).slice(3, 2)
    assert Expression.parse("payload.t * 2").compile(rows.schema).evaluate(rows).to_pylist() == [3.0, None]


def test_an_unseen_field_of_an_open_struct_is_null_and_of_a_closed_one_an_error():
    rows = pa.RecordBatch.from_arrays(DEEP.columns, schema=OPEN_SCHEMA)
    unseen = Expression.parse("payload.later.deeper").compile(OPEN_SCHEMA)
    assert unseen.type == pa.float64()
    assert unseen.evaluate(rows).to_pylist() == [None] * 3
    for text in (
        "payload.later > 3",
        "payload.later = 'x'",
        "lower(payload.later) like 'a%'",
        "payload.t.below = 1",
    ):
        assert Expression.parse(text).condition(OPEN_SCHEMA).mask(rows).to_pylist() == [False] * 3
    assert (
        Expression.parse("payload.later is null").condition(OPEN_SCHEMA).mask(rows).to_pylist() == [True] * 3
    )
    with pytest.raises(PlanError, match=r"no column 'payload.later'"):
        Expression.parse("payload.later").compile(DEEP.schema)


def test_an_empty_open_payload_plans_and_runs():
    compiled = Expression.parse("payload.temperature > 30 and timestamp <= received_at").condition(EVENTS)
    assert compiled.mask(empty(EVENTS)).to_pylist() == []


def test_a_nested_value_can_be_handed_on_and_asked_for_null_only():
    assert Expression.parse("payload").compile(OPEN_SCHEMA).field.metadata == OPEN_SCHEMA.field(0).metadata
    assert Expression.parse("payload is null").compile(DEEP.schema).evaluate(DEEP).to_pylist() == [
        False,
        True,
        False,
    ]
    with pytest.raises(PlanError, match="nested value"):
        Expression.parse("payload = payload").compile(DEEP.schema)


@pytest.mark.parametrize(
    ("array", "text", "expected"),
    [
        (pa.array([100, 100], pa.int8()), "x * x", pa.array([10000, 10000])),
        (pa.array([2, 5], pa.uint32()), "x - 3", pa.array([-1, 2])),
        (pa.array([1.5, None], pa.float32()), "x + 1", pa.array([2.5, None])),
        (pa.array(["a", None, "b"]).dictionary_encode(), "x = 'a'", pa.array([True, None, False])),
        (pa.array(["a", None], pa.large_string()), "upper(x)", pa.array(["A", None])),
        (pa.array([None, None], pa.null()), "x + 1", pa.array([None, None], pa.float64())),
        (pa.array([None, None], pa.null()), "x", pa.array([None, None], pa.float64())),
        (pa.array([1_000], pa.timestamp("ms")), "epoch_ms(x)", pa.array([1_000])),
        (pa.array([1_000_000_000], pa.timestamp("ns", tz="America/Sao_Paulo")), "second(x)", pa.array([1])),
        (pa.array([1], pa.date32()), "day(x)", pa.array([2])),
        (pa.array(["1.50"]).cast(pa.decimal128(5, 2)), "x * 2", pa.array([3.0])),
        (pa.array(["a"]).dictionary_encode(), "x", pa.array(["a"]).dictionary_encode()),
    ],
)
def test_narrow_and_unusual_types(array, text, expected):
    rows = pa.RecordBatch.from_arrays([array], ["x"])
    compiled = Expression.parse(text).compile(rows.schema)
    result = compiled.evaluate(rows)
    assert result.equals(expected)
    assert compiled.type == expected.type


def test_null_is_not_kept():
    assert Expression.parse("a > 1").condition(ROWS.schema).mask(ROWS).to_pylist() == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert Expression.parse("null").condition(ROWS.schema).mask(ROWS).to_pylist() == [False] * 5
    with pytest.raises(PlanError, match="a condition is expected"):
        Expression.parse("a + 1").condition(ROWS.schema)


def test_a_column_named_as_a_keyword_is_found_by_its_bare_name():
    rows = pa.RecordBatch.from_pydict({"select": [1], "order by": [2]})
    assert Expression.parse("select").compile(rows.schema).evaluate(rows).to_pylist() == [1]


def test_several_expressions_in_one_pass_and_the_error_names_its_own():
    compiled = compile_all({"x": "a + 1", "y": "s", "z": "5", "w": "a * 2"}, ROWS.schema)
    x, y, z, w = evaluate(list(compiled.values()), ROWS)
    assert (x.to_pylist(), z.to_pylist(), w.to_pylist()) == (
        [8, -6, 1, None, 4],
        [5] * 5,
        [14, -14, 0, None, 6],
    )
    assert y.equals(ROWS.column("s"))
    with pytest.raises(PlanError, match="bad: `q`"):
        compile_all({"good": "a", "bad": "q"}, ROWS.schema)


def test_paths_lists_what_is_mentioned():
    assert Expression.parse("a + payload.x.y > a").paths == (("a",), ("payload", "x", "y"))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab(),.'\"=<>+-*/%| \n0159andorits[]{}:;?$_éLIKECASEWHEN", max_size=40))
def test_any_text_gives_a_plan_error_or_a_result(text):
    try:
        result = Expression.parse(text).compile(ROWS.schema).evaluate(ROWS)
    except PlanError:
        return
    assert len(result) == ROWS.num_rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=4))
def test_the_cut_into_batches_does_not_matter(cuts):
    compiled = compile_all(
        {str(i): text for i, text in enumerate(("a * f", "cast(s as timestamp)", "s || p", "t > u"))},
        ROWS.schema,
    )
    whole = [array.to_pylist() for array in evaluate(list(compiled.values()), ROWS)]
    edges = sorted({0, 5, *cuts})
    parts = [evaluate(list(compiled.values()), ROWS.slice(i, j - i)) for i, j in itertools.pairwise(edges)]
    assert [[v for part in parts for v in part[k].to_pylist()] for k in range(4)] == whole


def test_a_small_batch_costs_little():
    rows = pa.concat_batches([ROWS] * 20)
    compiled = Expression.parse("f > 0.5 and a < 3").condition(rows.schema)
    compiled.mask(rows)
    spent = []
    for _ in range(50):
        begin = time.perf_counter()
        compiled.mask(rows)
        spent.append(time.perf_counter() - begin)
    assert min(spent) < 0.0006
