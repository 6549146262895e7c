"""sample: the same rows always, by share, by count, by time."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.component import TIMESTAMP, Duration, Step
from headrace.errors import PlanError
from headrace.steps.sample import Sample
from headrace.testing.step_conformance import LAWS

SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64()), ("timestamp", TIMESTAMP)])
S = 1_000_000


def rows(count=30_000, keys=1000):
    n = np.arange(count)
    return pa.RecordBatch.from_arrays(
        [pa.array([f"k{i % keys}" for i in n]), pa.array(n), pa.array(n * S, TIMESTAMP)], schema=SCHEMA
    )


def test_share_keeps_about_that_many_and_the_same_in_any_batches():
    batch = rows()
    operator = Sample(share=0.1).open(SCHEMA)
    kept = operator.process(batch, 0).column("n").to_pylist()
    assert 2_700 < len(kept) < 3_300
    again = [
        n
        for start in range(0, 30_000, 7_000)
        for n in operator.process(batch.slice(start, 7_000), 0).column("n").to_pylist()
    ]
    assert again == kept
    assert kept[:5] == [6, 18, 26, 27, 46]  # fixed for ever: a sample must not change with a version
    assert operator.process(batch.slice(0, 0), 0).num_rows == 0


def test_share_by_key_keeps_whole_keys():
    kept = set(Sample(share=0.25, by="k").open(SCHEMA).process(rows(), 0).column("k").to_pylist())
    assert 200 < len(kept) < 300
    assert Sample(share=0.25, by="k").open(SCHEMA).process(rows(), 0).num_rows == 30 * len(kept)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 100)])
def test_none_and_all(share, count):
    assert Sample(share=share).open(SCHEMA).process(rows(100), 0).num_rows == count


def test_share_takes_every_kind_of_column():
    batch = Step.example_input()
    array = pa.array([[1], None, [2, 3]] * 20)
    batch = batch.append_column("l", array).append_column("b", pa.array([b"x", None, b"\xff"] * 20))
    assert 0 < Sample(share=0.5).open(batch.schema).process(batch, 0).num_rows < 60


def test_every_counts_by_key_and_across_batches():
    operator = Sample(every=3, by="k").open(SCHEMA)
    batch = rows(20, keys=2)
    first = operator.process(batch.slice(0, 7), 0).column("n").to_pylist()
    assert first + operator.process(batch.slice(7), 0).column("n").to_pylist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert Sample(every=4).open(SCHEMA).process(batch, 0).column("n").to_pylist() == [0, 4, 8, 12, 16]


def test_every_bounds_its_keys():
    operator = Sample(every=2, by="k", max_keys=100).open(SCHEMA)
    operator.process(rows(5_000, keys=5_000), 0)
    assert operator.snapshot().num_rows == 100


def test_first_per_keeps_one_a_stretch_and_forgets():
    operator = Sample(first_per=Duration.parse("10s"), by="k").open(SCHEMA)
    assert operator.process(rows(40, keys=2), 0).column("n").to_pylist() == [0, 1, 10, 11, 20, 21, 30, 31]
    operator.process(rows(0), 100 * S)
    assert operator.snapshot().num_rows == 0


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "options",
    [{"share": 0.4}, {"first_per": Duration.parse("4s"), "by": ["sensor_id", "metric"]}, {"first_per": Duration.parse("4s")}, {"every": 4}],
    ids=str,
)  # fmt: skip
def test_every_way_keeps_the_laws(law, options):
    class Variant(Sample, frozen=True, kw_only=True):
        @classmethod
        def example(cls):
            return cls(**options)

    law(Variant)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"share": 0.5, "every": 2}, "exactly one of"),
        ({"first_per": Duration(0)}, "longer than 0s"),
        ({"every": 2, "by": ["k", "k"]}, "twice"),
        ({"every": 2, "by": "kk"}, "'kk'"),
        ({"first_per": Duration(5), "at": "k"}, "timestamp"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(PlanError) as error:
        Sample(**options).output(SCHEMA)
    assert message in str(error.value)
