"""where: keeps rows for which the condition is true."""

import pyarrow as pa
import pytest

from headrace.errors import PlanError
from headrace.steps.where import Where

ROWS = pa.RecordBatch.from_pydict({"a": [1, None, 3], "s": ["x", "y", None]})


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("a > 1", [3]),
        ("a > 0", [1, 3]),
        ("a > 5", []),
        ("true", [1, None, 3]),
        ("null", []),
        ("s <> 'x'", [None]),
        ("1 = 2", []),
    ],
)
def test_only_true_is_kept(condition, kept):
    result = Where(condition=condition).open(ROWS.schema).process(ROWS, 0)
    assert result.column("a").to_pylist() == kept
    assert result.schema.equals(ROWS.schema)


def test_a_condition_that_is_not_one_is_refused_at_plan_time():
    with pytest.raises(PlanError, match="a condition is expected, and this is a int64"):
        Where(condition="a + 1").output(ROWS.schema)
    with pytest.raises(PlanError, match="no column 'aa', did you mean 'a'"):
        Where(condition="aa > 1").open(ROWS.schema)
