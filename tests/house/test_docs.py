"""The docs are true: generated pages are fresh, options and flags are documented, code blocks work."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import yaml

from headrace import reference
from headrace.component import load
from headrace.config import EngineOptions, ServerOptions, TopicOptions, kinds, load_config
from headrace.errors import ConfigError
from headrace.options import describe, hints_of

ROOT = Path(__file__).parents[2]
FAMILIES: tuple[Literal["sources", "steps", "sinks"], ...] = ("sources", "steps", "sinks")
COMPONENTS = [(family, kind) for family in FAMILIES for kind in kinds(family)]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for p in (ROOT / "docs").rglob("*.md") if "decisions" not in p.parts)]
)
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)


def test_the_reference_is_what_the_code_says() -> None:
    assert reference.stale(ROOT / "docs") == [], "run `make reference`"


@pytest.mark.parametrize(("family", "kind"), COMPONENTS)
def test_every_option_is_described(family: Literal["sources", "steps", "sinks"], kind: str) -> None:
    cls = load(family, kind)
    assert cls.__doc__, f"{kind} has no docstring; it is the reference text"
    hints = hints_of(cls)
    for field in msgspec.structs.fields(cls):
        assert describe(hints[field.name]), f"{family}.{kind}.{field.name} has no description"
        assert field.encode_name not in {
            "sources": ("kind", "to", "enabled"),
            "sinks": ("kind", "from", "start"),
        }.get(family, ()), f"{field.encode_name} is taken by the configuration itself"
    if cls is not None and getattr(cls, "shorthand", ""):
        assert cls.shorthand in hints


@pytest.mark.parametrize("cls", [ServerOptions, EngineOptions, TopicOptions])
def test_every_setting_is_described(cls: type[msgspec.Struct]) -> None:
    for name, hint in hints_of(cls).items():
        assert describe(hint), name


def test_every_flag_has_a_help_text() -> None:
    for name, command in reference.commands():
        assert command.help, name
        for param in command.params:
            if param.param_type_name == "option":
                assert getattr(param, "help", None), f"headrace {name} {param.opts[0]}"


def test_most_commands_give_json() -> None:
    without = {
        name for name, command in reference.commands() if not any("--json" in p.opts for p in command.params)
    }
    assert without == {"run", "dlq"}  # `run` is a server; `dlq` only holds its subcommands


# -- code blocks -------------------------------------------------------------------------------------


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == language and "skip" not in match[2]:
                line = text.count("\n", 0, match.start()) + 2
                yield f"{page.relative_to(ROOT)}:{line}", match[3]


@pytest.mark.parametrize(
    ("where", "text"), list(blocks("yaml")), ids=lambda value: value if "\n" not in value else ""
)
def test_configurations_in_the_docs_are_right(where: str, text: str, tmp_path: Path) -> None:
    value = yaml.safe_load(text)
    if not isinstance(value, dict) or not set(value) & {
        "sources",
        "pipelines",
        "sinks",
        "topics",
        "server",
        "engine",
        "log",
    }:
        return  # a step, a piece of Compose, anything but a configuration
    file = tmp_path / "headrace.yaml"
    file.write_text(text, "utf-8")
    env = dict.fromkeys(re.findall(r"\$\{(\w+)", text), "1")
    try:
        load_config(file, env=env)
    except ConfigError as error:
        pytest.fail(f"{where}:\n{error}")


@pytest.mark.parametrize(
    ("where", "text"), list(blocks("python")), ids=lambda value: value if "\n" not in value else ""
)
def test_python_in_the_docs_names_what_there_is(where: str, text: str) -> None:
    """The block compiles, and what it imports from headrace exists. Blocks that only build pipelines are run."""
    tree = ast.parse(text, where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "headrace":
            module = __import__(node.module or "", fromlist=["*"])
            for alias in node.names:
                assert hasattr(module, alias.name), f"{where}: {node.module} has no {alias.name}"
    if text.lstrip().startswith("import headrace as hr") and "DataStreamer" not in text:
        exec(compile(tree, where, "exec"), {})
