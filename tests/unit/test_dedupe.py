"""dedupe: first to arrive within a time, bounded, across restarts."""

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.component import TIMESTAMP, Duration
from headrace.errors import PlanError
from headrace.steps.dedupe import Dedupe
from headrace.testing.step_conformance import LAWS

SCHEMA = pa.schema([("k", pa.string()), ("j", pa.int64()), ("timestamp", TIMESTAMP)])
S = 1_000_000


def rows(*values, j=None):
    """(key, second) pairs."""
    keys, seconds = [v[0] for v in values], [v[1] for v in values]
    times = [None if s is None else int(s * S) for s in seconds]
    return pa.RecordBatch.from_arrays(
        [pa.array(keys, pa.string()), pa.array(j or [1] * len(keys), pa.int64()), pa.array(times, TIMESTAMP)],
        schema=SCHEMA,
    )


def seconds(result):
    return [
        (k, t.timestamp())
        for k, t in zip(result.column("k").to_pylist(), result.column("timestamp").to_pylist(), strict=True)
    ]


def test_the_first_within_the_time_stays_in_and_across_batches():
    operator = Dedupe(by="k", within=Duration.parse("10s")).open(SCHEMA)
    assert seconds(operator.process(rows(("a", 1), ("b", 1), ("a", 5), ("a", 11), ("a", 12)), 0)) == [
        ("a", 1),
        ("b", 1),
        ("a", 11),
    ]
    assert seconds(operator.process(rows(("a", 20), ("a", 21), ("b", 2), ("c", 3)), 0)) == [
        ("a", 21),
        ("c", 3),
    ]


def test_a_row_before_the_one_seen_is_a_duplicate_when_it_is_near():
    operator = Dedupe(by="k", within=Duration.parse("10s")).open(SCHEMA)
    assert seconds(operator.process(rows(("a", 100), ("a", 95), ("a", 90), ("a", 105)), 0)) == [
        ("a", 100),
        ("a", 90),
    ]


def test_a_null_in_the_key_is_never_a_duplicate():
    operator = Dedupe(by=["k", "j"], within=Duration.parse("10s")).open(SCHEMA)
    batch = rows(("a", 1), (None, 1), (None, 1), ("a", 2), ("a", 2), j=[1, 1, 1, None, 1])
    assert seconds(operator.process(batch, 0)) == [("a", 1), (None, 1), (None, 1), ("a", 2)]


def test_a_row_without_time_goes_aside():
    operator = Dedupe(by="k").open(SCHEMA)
    assert operator.process(rows(("a", None), ("b", 1)), 0).num_rows == 1
    (aside,) = operator.aside()
    assert (aside.code, aside.rows.num_rows, len(aside.reasons)) == ("no_time", 1, 1)
    assert operator.aside() == []


def test_what_the_watermark_has_passed_is_forgotten():
    operator = Dedupe(by="k", within=Duration.parse("10s")).open(SCHEMA)
    for start in range(0, 100_000, 5_000):
        operator.process(
            rows(*((f"key{i}", start + i / 1000) for i in range(start, start + 5_000))), (start + 1) * S
        )
    assert operator.snapshot().num_rows <= 10_000
    assert len(operator._seen._keys) <= 21_000


def test_never_more_keys_than_allowed_and_the_newest_stay():
    operator = Dedupe(by="k", within=Duration.parse("1h"), max_keys=10).open(SCHEMA)
    operator.process(rows(*((f"k{i}", i) for i in range(50))), 0)
    assert sorted(operator.snapshot().column("k").to_pylist()) == sorted(f"k{i}" for i in range(40, 50))


def oracle(values, within):
    """The same row by row."""
    seen, kept = {}, []
    for key, at in values:
        if key not in seen or abs(at - seen[key]) >= within:
            kept.append((key, at))
            seen[key] = max(at, seen.get(key, at))
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=60),
    st.integers(1, 20),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_it_agrees_with_a_loop_over_rows(values, within, cuts):
    operator = Dedupe(by="k", within=Duration(within * S)).open(SCHEMA)
    edges = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    batch = rows(*values)
    result = [
        pair
        for i in range(len(edges) - 1)
        for pair in seconds(operator.process(batch.slice(edges[i], edges[i + 1] - edges[i]), -(2**62)))
    ]
    assert result == [(k, float(t)) for k, t in oracle(values, within)]


def test_one_key_that_passes_many_times_in_a_batch_agrees_too():
    chance = random.Random(5)
    values = [("a", chance.randrange(100_000)) for _ in range(3_000)]
    operator = Dedupe(by="k", within=Duration(3 * S)).open(SCHEMA)
    assert seconds(operator.process(rows(*values), 0)) == [(k, float(t)) for k, t in oracle(values, 3)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_simple_key_keeps_the_laws(law):
    class Simple(Dedupe, frozen=True, kw_only=True):
        @classmethod
        def example(cls):
            return cls(by="sensor_id", within=Duration.parse("5s"))

    law(Simple)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": []}, "at least one column"),
        ({"by": ["k", "k"]}, "each once"),
        ({"by": "k", "within": Duration(0)}, "longer than 0s"),
        ({"by": "kk"}, "'kk'"),
        ({"by": "k", "at": "k"}, "timestamp"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(PlanError) as error:
        Dedupe(**options).output(SCHEMA)
    assert message in str(error.value)
