"""The golden folders give their expected rows however the run is cut, killed or divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.golden import VARIANTS, Variant, cases, expected, run
from tests.golden.make import MADE, texts

HERE = Path(__file__).parent
CASES = list(cases(HERE))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_golden_rows_come_out_of_every_way_to_run(folder: Path, variant: Variant) -> None:
    assert run(folder, variant) == expected(folder)


@pytest.mark.parametrize("name", MADE)
def test_golden_files_are_what_the_plain_loops_give(name: str) -> None:
    for file, text in texts(name).items():
        assert (HERE / name / file).read_text() == text


def test_every_folder_is_complete_and_runs() -> None:
    folders = {path for path in HERE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(CASES)
    assert len(CASES) >= 12
    for folder in CASES:
        assert expected(folder)
