"""apply: a user's function, its faults put aside, its results checked."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.errors import PlanError
from headrace.steps.apply import Apply

ROWS = pa.RecordBatch.from_pydict({"n": list(range(100))})
calls = 0


def double(rows):
    return pa.RecordBatch.from_pydict({"n": pc.multiply(rows.column("n"), 2)})


def table(rows):
    return pa.table({"extra": pa.array([1.0] * len(rows)), "n": pc.cast(rows.column("n"), pa.int32())})


def picky(rows):
    bad = [n for n in rows.column("n").to_pylist() if n in (7, 50, 51)]
    if bad:
        raise ValueError(f"can't do {bad[0]}")
    return rows


def hopeless(rows):
    global calls
    calls += 1
    raise RuntimeError("no" * 1000)


def wrong(rows):
    return {"n": 1}


def others(rows):
    return pa.RecordBatch.from_pydict({"m": [1]})


def texts(rows):
    return pa.RecordBatch.from_pydict({"n": ["x"] * len(rows)})


def nothing(rows):
    return rows.slice(0, 0)


def run(name, rows=ROWS, **options):
    step = Apply(function=f"{__name__}:{name}", **options)
    operator = step.open(rows.schema)
    result = operator.process(rows, 0)
    assert result.schema.equals(step.output(rows.schema))
    return result, operator.aside()


def test_the_function_gets_rows_and_gives_rows():
    assert run("double")[0].column("n").to_pylist() == list(range(0, 200, 2))
    result, _ = run("table", columns={"n": "int", "extra": "double"})
    assert result.slice(3, 1).to_pylist() == [{"n": 3, "extra": 1.0}]
    assert run("nothing")[0].num_rows == 0
    assert run("hopeless", ROWS.slice(0, 0))[0].num_rows == 0


def test_rows_that_it_fails_on_are_found_and_the_others_go_on_in_order():
    result, asides = run("picky")
    assert result.column("n").to_pylist() == [n for n in range(100) if n not in (7, 50, 51)]
    assert [(a.code, a.rows.column("n").to_pylist()) for a in asides] == [
        ("apply_failed", [7]), ("apply_failed", [50]), ("apply_failed", [51]),
    ]  # fmt: skip
    assert asides[0].reasons[0].endswith("picky: ValueError: can't do 7")


def test_a_function_that_always_fails_is_not_called_for_ever():
    global calls
    calls = 0
    rows = pa.RecordBatch.from_pydict({"n": list(range(100_000))})
    result, asides = run("hopeless", rows)
    assert result.num_rows == 0
    assert sum(a.rows.num_rows for a in asides) == 100_000
    assert calls < 250
    assert all(len(reason) < 500 for a in asides for reason in a.reasons[:1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "returned a dict"),
        ("others", "returned the columns m; n are declared"),
        ("texts", "other types than declared"),
    ],
)
def test_a_wrong_result_is_a_fault_of_the_rows_with_words(name, message):
    result, asides = run(name, ROWS.slice(0, 3))
    assert result.num_rows == 0
    assert sum(a.rows.num_rows for a in asides) == 3
    assert message in asides[0].reasons[0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no.such.module:f", "importing no.such.module: ModuleNotFoundError"),
        (f"{__name__}:missing", "there is no function 'missing'"),
        (f"{__name__}:ROWS", "there is no function 'ROWS'"),
    ],
)
def test_an_address_that_leads_nowhere_is_a_plan_error(function, message):
    with pytest.raises(PlanError) as error:
        Apply(function=function).open(ROWS.schema)
    assert message in str(error.value)


def test_an_unknown_type_is_named():
    with pytest.raises(PlanError, match="no type 'number'"):
        Apply(function=f"{__name__}:double", columns={"n": "number"}).output(ROWS.schema)
