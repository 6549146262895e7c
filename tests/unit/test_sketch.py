"""Quantile and distinct sketches keep their promises on error, size and merging."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.analysis.aggregate import Feed
from headrace.analysis.sketch import EXACT_DISTINCT, MAX_BUCKETS, Distinct, Quantiles, hashes

SHARES = [0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0]
EDGES = [0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 1e-300]


def filled(kind: type[Any], values: Any, groups: Any = None, size: int = 1) -> Any:
    sketch = kind()
    sketch.resize(size)
    array = values if isinstance(values, pa.Array) else pa.array(values)
    of = np.zeros(len(array), np.int64) if groups is None else np.asarray(groups)
    sketch.add(Feed(array, of, np.zeros(len(array), np.int64)))
    return sketch


def assert_close(values: np.ndarray, found: list[np.ndarray], error: float = 0.01) -> None:
    """Between the neighbouring ranks, each known to a part of itself."""
    ordered = np.sort(values)
    for share, value in zip(SHARES, found, strict=True):
        rank = share * (len(ordered) - 1)
        low, high = ordered[int(np.floor(rank))], ordered[int(np.ceil(rank))]
        exact = low * (1 - (rank % 1)) + high * (rank % 1)
        assert abs(value[0] - exact) <= error * max(abs(low), abs(high)) + 1e-320, share
        assert ordered[0] <= value[0] <= ordered[-1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.floats(-1e9, 1e9), st.sampled_from(EDGES)), min_size=1, max_size=100))
def test_every_quantile_is_within_one_percent(values: list[float]) -> None:
    assert_close(np.array(values), filled(Quantiles, pa.array(values)).result(np.array([0]), SHARES))


@pytest.mark.parametrize("name", ["normal", "lognormal", "pareto", "uniform", "integers"])
def test_quantiles_of_large_samples(name: str) -> None:
    rng = np.random.default_rng(5)
    values = {
        "normal": lambda: rng.normal(0, 3, 50_000),
        "lognormal": lambda: rng.lognormal(3, 2, 50_000),
        "pareto": lambda: rng.pareto(1.2, 50_000),
        "uniform": lambda: rng.uniform(-5, 5, 50_000),
        "integers": lambda: rng.integers(0, 7, 50_000).astype(float),
    }[name]()
    assert_close(values, filled(Quantiles, values).result(np.array([0]), SHARES))


def test_buckets_stay_bounded_and_wider_ones_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(6)
    values = np.concatenate((10 ** rng.uniform(-300, 300, 40_000), -(10 ** rng.uniform(-300, 300, 40_000))))
    whole = filled(Quantiles, values)
    pieces = filled(Quantiles, values[:100])
    for piece in np.array_split(np.sort(values[100:]), 7):
        pieces.merge(np.array([0]), filled(Quantiles, piece), np.array([0]))
    assert whole.pairs.count <= MAX_BUCKETS
    found = whole.result(np.array([0]), SHARES)
    assert [f[0] for f in found] == [f[0] for f in pieces.result(np.array([0]), SHARES)]
    assert_close(values, found, error=0.57)  # 1 % doubled six times: 140,000 buckets in 4,096


def test_groups_do_not_touch_each_other_and_saving_keeps_all() -> None:
    rng = np.random.default_rng(7)
    groups, values = rng.integers(0, 5, 3000), rng.normal(50, 20, 3000)
    sketch = filled(Quantiles, values, groups, 7)
    order = np.array([4, 6, 0, 2])
    restored = Quantiles()
    restored.load(sketch.save(order), 4)
    for a, b in zip(sketch.result(order, SHARES), restored.result(np.arange(4), SHARES), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isnan(a[1])
    sketch.keep(order)
    assert_close(values[groups == 2], [r[3:4] for r in sketch.result(np.arange(4), SHARES)])


def test_infinities_count_as_the_largest_numbers() -> None:
    sketch = filled(Quantiles, [float("inf"), 1.0, float("-inf"), None, float("nan")])
    assert sketch.result(np.array([0]), [0.5])[0][0] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("count", [0, 1, 1024, EXACT_DISTINCT])
def test_distinct_is_exact_up_to_its_limit(count: int) -> None:
    texts = pa.array([f"user-{i}" for i in range(count)] * 2, pa.string())
    assert filled(Distinct, texts).result(np.array([0])).tolist() == [count]


@pytest.mark.parametrize("count", [EXACT_DISTINCT + 1, 20_000, 200_000])
def test_distinct_is_near_beyond_and_the_same_however_it_is_cut(count: int) -> None:
    values = np.random.default_rng(8).permutation(count)
    whole = filled(Distinct, values)
    assert whole.result(np.array([0]))[0] == pytest.approx(count, rel=0.1)  # three standard errors
    assert whole.pairs.count <= EXACT_DISTINCT
    pieces = filled(Distinct, values[:10])
    for piece in np.array_split(values, 5):
        restored = Distinct()
        restored.load(filled(Distinct, piece).save(np.array([0])), 1)
        pieces.merge(np.array([0]), restored, np.array([0]))
    assert pieces.result(np.array([0])).tolist() == whole.result(np.array([0])).tolist()


def test_hashes_are_fixed_and_equal_for_equal_numbers_of_different_types() -> None:
    assert (
        hashes(pa.array(["", "a", "ab", "b" * 2000])).tolist()
        == hashes(pa.array([b"", b"a", b"ab", b"b" * 2000])).tolist()
    )
    assert hashes(pa.array(["headrace"])).tolist() == [FIXED]
    assert hashes(pa.array([3, -1], pa.int8())).tolist() == hashes(pa.array([3.0, -1.0])).tolist()
    assert hashes(pa.array([2**63, 2], pa.uint64()))[1] == hashes(pa.array([2]))[0]
    assert hashes(pa.array([0.0]))[0] == hashes(pa.array([-0.0]))[0]
    assert len(set(hashes(pa.array([2**53, 2**53 + 1])).tolist())) == 2
    sliced = pa.array(["x", "a", "b"]).slice(1)
    assert hashes(sliced).tolist() == hashes(pa.array(["a", "b"])).tolist()


def test_hashes_of_similar_texts_do_not_collide() -> None:
    texts = [f"{a}{b}" for a in range(300) for b in ("", "0", "00", "a", "\0", "\0\0", "é")]
    assert len(set(hashes(pa.array(texts)).tolist())) == len(set(texts))


FIXED = 1984286283100204678  # what stands in checkpoints must mean the same in later versions
