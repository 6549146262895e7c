"""The planted bugs still fit the code. `make planted` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.planted_bugs import BUGS, Bug

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_planted_bug_has_its_place_and_its_tests(bug: Bug) -> None:
    text = (ROOT / "src" / "headrace" / bug.file).read_text("utf-8")
    assert text.count(bug.old) == 1, f"{bug.file}: {bug.old!r} stands there {text.count(bug.old)} times"
    assert bug.old != bug.new
    for test in bug.tests:
        file, _, name = test.partition("::")
        found = (ROOT / file).read_text("utf-8")
        function = name.rpartition("::")[2].partition("[")[0]
        inherited = (ROOT / "src" / "headrace" / "testing").glob("log_*.py")
        everywhere = found + "".join(path.read_text("utf-8") for path in inherited)
        assert not function or f"def {function}(" in everywhere, test


def test_there_are_enough_and_none_twice() -> None:
    assert len(BUGS) >= 40
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
