"""Durations and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.units import Duration, Size


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("0s", 0), ("10s", 10_000_000), ("500ms", 500_000), ("7us", 7), ("1h30m", 5_400_000_000), ("1.5s", 1_500_000),
        ("2d", 172_800_000_000), ("1w", 604_800_000_000), ("5", 5_000_000), (5, 5_000_000), (0.25, 250_000), ("1h 5s", 3_605_000_000),
    ],
)  # fmt: skip
def test_durations_people_write(text: str, us: int) -> None:
    assert Duration.parse(text).us == us


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1 fortnight", "1s garbage", "1e5s", "nan", "١s", True, -1, float("nan"), float("inf")],
)
def test_texts_that_are_no_duration(text: object) -> None:
    with pytest.raises(ValueError):
        Duration.parse(text)  # type: ignore[arg-type]


@given(st.integers(0, 10**15))
def test_a_duration_reads_back_as_it_is_shown(us: int) -> None:
    assert Duration.parse(str(Duration(us))) == Duration(us)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 * 2**20),
        ("2GB", 2 * 10**9),
        ("1 KiB", 1024),
        ("7", 7),
        (7, 7),
        ("1.5kb", 1500),
        ("3B", 3),
    ],
)
def test_sizes_people_write(text: str | int, size: int) -> None:
    assert Size.parse(text).bytes == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 MiB x", "1 parsec", True, -1])
def test_texts_that_are_no_size(text: str | int) -> None:
    with pytest.raises(ValueError):
        Size.parse(text)


@given(st.integers(0, 2**50))
def test_a_size_reads_back_as_it_is_shown(size: int) -> None:
    assert Size.parse(str(Size(size))) == Size(size)
