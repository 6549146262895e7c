"""derive: adds and replaces columns, later ones from earlier ones."""

import pyarrow as pa
import pytest

from headrace.component import Step
from headrace.errors import PlanError
from headrace.steps.derive import Derive

ROWS = pa.RecordBatch.from_pydict({"a": [1, None], "s": ["x", "y"]})


def run(**columns):
    step = Derive(columns=columns)
    result = step.open(ROWS.schema).process(ROWS, 0)
    assert result.schema.equals(step.output(ROWS.schema), check_metadata=True)
    return result.to_pydict()


def test_later_columns_use_earlier_ones():
    assert run(b="a + 1", c="b * 2", d="5", e="c + d") == {
        "a": [1, None], "s": ["x", "y"], "b": [2, None], "c": [4, None], "d": [5, 5], "e": [9, None],
    }  # fmt: skip


def test_replacing_keeps_the_place_and_what_follows_sees_the_new_one():
    assert run(a="coalesce(a, 0) * 1.5", b="a") == {"a": [1.5, 0.0], "s": ["x", "y"], "b": [1.5, 0.0]}
    assert list(run(s="a", z="s")) == ["a", "s", "z"]


def test_columns_of_a_struct_can_be_read_and_not_replaced():
    schema = Step.example_input().schema
    assert Derive(columns={"t": "payload.temperature"}).output(schema).field("t").type == pa.float64()
    with pytest.raises(PlanError, match="a field within payload can't be replaced"):
        Derive(columns={"payload.temperature": "1"}).output(schema)


def test_an_error_names_its_column():
    with pytest.raises(PlanError, match="c: `bb` at 1: no column 'bb'"):
        run(b="a", c="bb")
    with pytest.raises(PlanError, match="name at least one"):
        run()
