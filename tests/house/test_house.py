"""The house: size of files, words, and versions that must agree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import headrace

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
LONGER: dict[str, int] = {}
"""Files that are longer yet, and how long they may be. An entry goes as soon as its file is short enough."""

TEXT = {
    ".py",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".json",
    ".html",
    ".css",
    ".js",
    ".ts",
    ".tsx",
    ".txt",
    ".cfg",
    "",
}


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode:  # a source archive without git
        return [p for p in ROOT.rglob("*") if p.is_file() and not {".venv", ".git"} & set(p.parts)]
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def modules() -> list[Path]:
    """Shipped test suites may be long: they are lists of cases."""
    package = ROOT / "src" / "headrace"
    return [p for p in sorted(package.rglob("*.py")) if "testing" not in p.parts]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    name = str(path.relative_to(ROOT / "src" / "headrace"))
    limit = LONGER.get(name, MAX_LINES)
    assert lines <= limit, f"{lines} lines; this file has at most {limit}: split it by what changes together"
    assert name not in LONGER or lines > MAX_LINES, "short enough now: take it out of LONGER"


FORBIDDEN = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked()
        if path.suffix in {".py", ".js", ".html", ".css", ".yaml"} and "vendor" not in path.parts
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


def test_files_are_named_for_what_they_do() -> None:
    vague = {"utils", "helpers", "common", "manager", "misc", "impl", "util", "helper", "base"}
    found = [str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*.py") if p.stem in vague]
    assert not found


def test_the_version_stands_in_two_places_and_is_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert headrace.__version__ == project["version"]


def test_every_public_name_is_there() -> None:
    for name in headrace.__all__:
        assert getattr(headrace, name) is not None


def test_continuous_integration_runs_exactly_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").split("\n")
    assert [line for line in lines if line and not line.startswith(("#", "set ", "cd "))] == ["make test"]
