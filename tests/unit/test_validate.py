"""validate: each rule, what happens to rows that fail, and the words of the reasons."""

import math
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from headrace.component import EVENTS, TIMESTAMP
from headrace.errors import PlanError
from headrace.model import empty
from headrace.steps.validate import Validate

ROWS = pa.RecordBatch.from_pydict(
    {
        "s": pa.array(["ab", "12", None, "it's " + "x" * 100]),
        "n": pa.array([1, 50, None, -3]),
        "f": pa.array([1.0, 2.5, None, math.nan]),
        "t": pa.array([datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)], TIMESTAMP),
        "p": pa.array([{"x": "1"}, {"x": None}, None, {"x": "y"}]),
    }
)


@pytest.mark.parametrize(
    ("options", "failing"),
    [
        ({"required": ["s"]}, {2: "s is null, expected a value"}),
        ({"required": ["p.x"]}, {1: "p.x is null, expected a value", 2: "p.x is null, expected a value"}),
        ({"types": {"s": "number"}}, {0: "s is 'ab', expected a number", 3: "..."}),
        ({"types": {"p.x": "integer"}}, {3: "p.x is 'y', expected a integer"}),
        ({"types": {"f": "integer"}}, {1: "f is 2.5, expected a integer", 3: "f is nan, expected a integer"}),
        ({"types": {"n": "string"}}, {0: "n is 1, expected a string", 1: "...", 3: "..."}),
        ({"types": {"n": "number", "t": "timestamp"}}, {}),
        ({"range": {"n": (0, 10)}}, {1: "n is 50, expected 0 to 10", 3: "n is -3, expected 0 to 10"}),
        ({"range": {"f": (None, 2)}}, {1: "f is 2.5, expected at most 2", 3: "f is nan, expected at most 2"}),
        ({"range": {"t": ("2024-01-02", None)}}, {0: "t is 2024-01-01 00:00:00+00:00, expected at least 2024-01-02"}),
        ({"regex": {"s": "^[a-z]+$"}}, {1: "s is '12', expected a match of ^[a-z]+$", 3: "..."}),
        ({"allowed": {"s": ["ab", "12", "it's"]}}, {3: "s is \"it's xxx...\", expected one of ab, 12, it's"}),
        ({"allowed": {"n": [1, 50]}}, {3: "n is -3, expected one of 1, 50"}),
        ({"max_length": {"s": 10}}, {3: "..."}),
        ({"rules": {"small": "n < 40 -- a comment"}}, {1: "small: expected n < 40 -- a comment"}),
        ({"required": ["n"], "range": {"f": (0, 1)}}, {1: "...", 2: "n is null, expected a value", 3: "..."}),
        ({"rules": {"one": "n < 40", "two": "f < 2"}}, {1: "one: expected n < 40; two: expected f < 2", 3: "two: expected f < 2"}),
    ],
)  # fmt: skip
def test_rows_that_fail_are_put_aside_with_words(options, failing):
    step = Validate(**options)
    operator = step.open(ROWS.schema)
    passed = operator.process(ROWS, 0)
    assert passed.select(["t", "p"]).equals(
        ROWS.select(["t", "p"]).take(pa.array(sorted({0, 1, 2, 3} - failing.keys()), pa.int64()))
    )
    asides = operator.aside()
    assert operator.aside() == []
    if not failing:
        assert asides == []
        return
    (aside,) = asides
    assert (aside.code, aside.to) == ("invalid", "")
    assert aside.rows.column("s").to_pylist() == [ROWS.column("s").to_pylist()[i] for i in failing]
    for reason, expected in zip(aside.reasons, failing.values(), strict=True):
        if "..." not in expected:
            assert reason == expected
        assert len(reason) < 200


def test_mark_keeps_all_rows_and_says_which_are_valid():
    step = Validate(range={"n": (0, 10)}, on_fail="mark")
    operator = step.open(ROWS.schema)
    result = operator.process(ROWS, 0)
    assert result.schema.equals(step.output(ROWS.schema))
    assert result.column("valid").to_pylist() == [True, False, True, False]
    assert result.column("errors").to_pylist() == [
        None,
        "n is 50, expected 0 to 10",
        None,
        "n is -3, expected 0 to 10",
    ]
    assert operator.aside() == []
    assert operator.process(ROWS.slice(0, 0), 0).num_rows == 0


def test_drop_leaves_rows_out_silently():
    operator = Validate(required=["s"], on_fail="drop").open(ROWS.schema)
    assert operator.process(ROWS, 0).num_rows == 3
    assert operator.aside() == []


def test_fields_not_seen_yet_pass_all_rules_but_required():
    step = Validate(
        types={"payload.t": "number"}, range={"payload.t": (0, 1)}, regex={"payload.s": "x"}, allowed={"payload.s": ["x"]},
        max_length={"payload.s": 3}, rules={"r": "payload.t < payload.u"},
    )  # fmt: skip
    rows = pa.RecordBatch.from_pylist([{"source_id": "a", "timestamp": 1}], schema=EVENTS)
    assert step.open(EVENTS).process(rows, 0).num_rows == 1
    assert Validate(required=["payload.t"]).open(EVENTS).process(rows, 0).num_rows == 0
    assert step.open(EVENTS).process(empty(EVENTS), 0).num_rows == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no rule is given; there are required"),
        ({"required": ["q"]}, "required of q: "),
        ({"required": ["q"]}, "no column 'q'; there are s, n, f, t, p, p.x"),
        ({"range": {"n": (5, 1)}}, "range of n: 5 is above 1"),
        ({"range": {"n": (None, None)}}, "give a lowest or a highest"),
        ({"range": {"s": (0, 1)}}, "range of s: "),
        ({"regex": {"s": "(("}}, "is not a regular expression"),
        ({"regex": {"n": "1"}}, "needs a text"),
        ({"allowed": {"n": ["a"]}}, "allowed of n: "),
        ({"allowed": {"n": []}}, "at least one value"),
        ({"rules": {"r": "n +"}}, "not a SQL expression"),
        ({"rules": {"r": "n + 1"}}, "rules of r: "),
        ({"rules": {"r": "n < 1) or (true"}}, "not a SQL expression"),
    ],
)
def test_rules_that_cannot_work_are_refused(options, message):
    with pytest.raises(PlanError) as error:
        Validate(**options).open(ROWS.schema)
    assert message in str(error.value)
