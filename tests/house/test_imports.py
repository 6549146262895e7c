"""Who may import whom, and what the core may not touch: DESIGN's "Imports" as a table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "headrace"

VALUES = {"errors", "model", "units", "clock"}
COMPONENT = VALUES | {"component"}
NUMERIC = COMPONENT | {"analysis", "expression", "pipeline", "backoff"}
CONFIG = COMPONENT | {
    "config",
    "config_reader",
    "old_config",
    "options",
    "pipeline",
    "plan",
    "yaml_positions",
}
STORED = VALUES | {"log", "lake", "snapshot", "guard", "catalog", "export", "jsonrows"}

ALLOWED: dict[str, set[str]] = {
    # values and what contributors import
    "errors": set(),
    "units": set(),
    "clock": set(),
    "backoff": set(),
    "metrics": VALUES,
    "model": {"errors", "units"},
    "component": VALUES,
    "pipeline": COMPONENT | {"config"},
    "expression": COMPONENT | {"dialect", "translate", "pipeline"},
    "translate": {"errors", "dialect", "grammar"},
    "grammar": {"errors", "dialect"},
    "dialect": {"errors"},
    "analysis": COMPONENT,
    "formats": VALUES,
    # components: never each other, the log or the engine
    "sources": NUMERIC | {"formats"},
    "steps": NUMERIC,
    "sinks": NUMERIC | {"lake", "jsonrows", "catalog", "export"},
    # the loops
    "log": VALUES,
    "engine": COMPONENT | {"log", "pipeline", "backoff", "metrics"},
    "ingest": COMPONENT | {"log", "metrics", "backoff"},
    "push": COMPONENT | {"log", "formats", "metrics", "ingest"},
    "deliver": COMPONENT | {"log", "metrics", "backoff"},
    # configuration
    "yaml_positions": {"errors"},
    "options": COMPONENT | {"yaml_positions"},
    "plan": COMPONENT | {"options", "pipeline"},
    "config": CONFIG,
    "config_reader": CONFIG,
    "old_config": CONFIG,
    "json_schema": CONFIG,
    # what answers questions
    "lake": VALUES,
    "snapshot": STORED,
    "guard": {"errors"},
    "catalog": VALUES,
    "jsonrows": set(),
    "export": {"errors", "jsonrows"},
    "store": STORED,
    "serve": STORED | {"store", "config", "ingest", "push", "formats"},
    # all together
    "monitor": COMPONENT | {"metrics"},
    "runtime": CONFIG
    | STORED
    | {"deliver", "engine", "ingest", "metrics", "monitor", "push", "sinks", "store"},
}
"""Part -> parts it may import. Every part has a row, but for those that put everything together."""

WIRING = {"__init__", "run", "cli", "commands", "streamer", "reference", "testing"}
"""These may import all, except that nothing but testing imports testing."""

CORE = ("engine", "log", "steps", "analysis", "ingest.py", "push.py", "deliver.py")
"""What replays the same way every time: no clock but the one handed in, no randomness."""

FORBIDDEN_CALLS = {
    "time.time", "time.time_ns", "time.monotonic", "time.perf_counter", "time.sleep", "datetime.now", "datetime.utcnow",
    "datetime.today", "date.today", "uuid.uuid4", "uuid.uuid1", "os.urandom", "random", "secrets", "np.random", "numpy.random",
}  # fmt: skip


def files(*parts: str) -> Iterator[Path]:
    for part in parts or (".",):
        path = SRC / part
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of headrace) of every import, those inside functions too, those for type checkers not."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "headrace":
                names = [f"headrace.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "headrace" and rest:
                yield node.lineno, rest.partition(".")[0]


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(SRC)))
def test_imports_follow_the_table(path: Path) -> None:
    part = part_of(path)
    for line, other in imported(path):
        where = f"{path.relative_to(SRC)}:{line} imports headrace.{other}"
        if other == part or other.startswith("_"):
            continue
        assert other != "testing" or part == "testing", f"{where}; nothing imports testing"
        if part not in WIRING:
            allowed = ALLOWED[part]
            assert other in allowed, f"{where}; {part} may import {', '.join(sorted(allowed)) or 'nothing'}"


def test_every_part_has_a_row_and_every_row_a_part() -> None:
    assert {part_of(path) for path in files()} == ALLOWED.keys() | WIRING


def test_components_do_not_know_each_other() -> None:
    for family in ("sources", "steps", "sinks"):
        for path in files(family):
            for line, other in imported(path):
                assert other not in {"sources", "steps", "sinks"} - {family}, f"{path}:{line}"


@pytest.mark.parametrize("path", list(files(*CORE)), ids=lambda path: str(path.relative_to(SRC)))
def test_the_core_has_no_clock_and_no_chance_of_its_own(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call | ast.Attribute):
            name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            bad = next((f for f in FORBIDDEN_CALLS if name == f or name.startswith(f + ".")), None)
            assert bad is None, (
                f"{path.relative_to(SRC)}:{node.lineno} uses {name}; time and chance are handed in"
            )
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            )
            taken = set(names) & {"random", "secrets"}
            assert not taken, f"{path.relative_to(SRC)}:{node.lineno} imports {taken}"


def test_sources_take_time_from_the_clock_only() -> None:
    for path in files("sources"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}, (
                    f"{path}:{node.lineno}"
                )
