"""select: only the named columns, in the named order."""

import pyarrow as pa
import pytest

from headrace.component import Step
from headrace.errors import PlanError
from headrace.steps.select import Select

ROWS = Step.example_input().slice(0, 2)


def test_names_and_expressions_give_exactly_these_columns():
    step = Select(
        columns={"id": "source_id", "hot": "payload.temperature > 50", "five": "5", "payload": "payload"}
    )
    result = step.open(ROWS.schema).process(ROWS, 0)
    assert result.schema.equals(step.output(ROWS.schema), check_metadata=True)
    assert [(f.name, f.type, f.nullable) for f in result.schema][:3] == [
        ("id", pa.string(), False),
        ("hot", pa.bool_(), True),
        ("five", pa.int64(), True),
    ]
    assert result.to_pydict() | {"payload": None} == {
        "id": ["device-0", "device-1"],
        "hot": [False, True],
        "five": [5, 5],
        "payload": None,
    }
    assert result.schema.field("payload").metadata == ROWS.schema.field("payload").metadata  # still open


def test_a_list_keeps_last_names():
    step = Select(columns=["source_id", "payload.battery.volt"])
    assert step.output(ROWS.schema).names == ["source_id", "volt"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "name at least one"),
        (["source_id", "payload.source_id"], "same name"),
        ({"x": "sorce_id"}, "x: `sorce_id` at 1: no column 'sorce_id', did you mean 'source_id'"),
    ],
)
def test_what_is_wrong_is_said(columns, message):
    with pytest.raises(PlanError) as error:
        Select(columns=columns).output(ROWS.schema)
    assert message in str(error.value)


def test_no_rows():
    assert Select.example().open(ROWS.schema).process(ROWS.slice(0, 0), 0).num_rows == 0
