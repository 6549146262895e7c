"""unpivot: one row for each number in the payload."""

import pyarrow as pa
import pytest

from headrace.component import EVENTS, TIMESTAMP
from headrace.errors import PlanError
from headrace.model import empty, open_struct
from headrace.steps.unpivot import Unpivot

PAYLOAD = pa.struct(
    [
        ("t", pa.float64()), ("n", pa.int32()), ("on", pa.bool_()), ("text", pa.string()),
        ("in", pa.struct([("v", pa.float32()), ("deep", pa.struct([("ä", pa.int64())]))])), ("list", pa.list_(pa.int64())),
        ("nothing", pa.null()),
    ]
)  # fmt: skip
SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        open_struct(list(PAYLOAD)),
    ]
)
ROWS = pa.RecordBatch.from_pylist(
    [
        {"source_id": "a", "timestamp": 1, "payload": {"t": 1.5, "n": 2, "on": True, "text": "x", "in": {"v": 0.5, "deep": {"ä": 7}}}},
        {"source_id": "b", "timestamp": 2, "payload": None},
        {"source_id": "c", "timestamp": 3, "payload": {"t": None, "n": 3, "on": False, "in": {"v": None, "deep": None}}},
    ],
    schema=SCHEMA,
)  # fmt: skip


def run(rows=ROWS, **options):
    step = Unpivot(**options)
    result = step.open(rows.schema).process(rows, 0)
    result.validate(full=True)
    assert result.schema.equals(step.output(rows.schema))
    return result


def test_every_number_becomes_a_row():
    result = run()
    assert [next(iter(row.values())) + " " + row["metric"] + f" {row['value']}" for row in result.to_pylist()] == [
        "a t 1.5", "a n 2.0", "c n 3.0", "a on 1.0", "c on 0.0", "a in.v 0.5", "a in.deep.ä 7.0",
    ]  # fmt: skip
    assert result.schema.equals(
        pa.schema(
            [
                pa.field("sensor_id", pa.string(), nullable=False),
                pa.field("timestamp", TIMESTAMP, nullable=False),
                pa.field("metric", pa.string(), nullable=False),
                pa.field("value", pa.float64(), nullable=False),
            ]
        )
    )


def test_a_slice_gives_its_own_rows():
    assert run(ROWS.slice(2)).column("metric").to_pylist() == ["n", "on"]


def test_globs_choose_metrics_and_keep_chooses_columns():
    assert run(include=["in.*", "t"], exclude=["*.ä"]).column("metric").to_pylist() == ["t", "in.v"]
    assert run(keep=["source_id"]).schema.names == ["source_id", "metric", "value"]
    assert run(keep={"who": "upper(source_id)"}, include=["t"]).to_pylist() == [
        {"who": "A", "metric": "t", "value": 1.5}
    ]


def test_no_payload_yet_gives_no_rows():
    assert run(empty(EVENTS)).num_rows == 0
    assert run(empty(SCHEMA)).num_rows == 0


def test_integers_beyond_a_double_become_the_nearest():
    rows = pa.RecordBatch.from_pylist([{"source_id": "a", "timestamp": 1, "payload": {"n": 2**53 + 1}}],
        schema=pa.schema([SCHEMA.field(0), SCHEMA.field(1), pa.field("payload", pa.struct([("n", pa.int64())]))]))  # fmt: skip
    assert run(rows).column("value").to_pylist() == [float(2**53)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "pay"}, "no column 'pay', did you mean 'payload'"),
        ({"column": "source_id"}, "is a string; a struct is expected"),
        ({"keep": {"value": "source_id"}}, "is the name of a column that this step adds"),
        ({"keep": ["sorce_id"]}, "no column 'sorce_id'"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(PlanError) as error:
        Unpivot(**options).output(SCHEMA)
    assert message in str(error.value)
