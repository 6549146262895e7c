"""Every source of the package keeps to what sources have to keep to."""

from __future__ import annotations

import pytest

from headrace.testing.source_conformance import GAPS, cases, run, sources


@pytest.mark.parametrize(("kind", "check"), cases())
def test_source(kind: str, check: str) -> None:
    run(kind, check)


def test_every_gap_names_a_source_and_a_check() -> None:
    assert set(GAPS) <= set(cases())


def test_the_sources_that_are_promised_are_found() -> None:
    assert {"generate", "system_metrics", "file_tail"} <= sources().keys()
