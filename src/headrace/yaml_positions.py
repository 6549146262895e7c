"""YAML with the position of every key and value, so that a mistake can be shown where it stands.

What is read is YAML 1.2's small core: `yes`, `on` and `1:30` are texts, not true or 90. JSON is part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from headrace.errors import ConfigError, Problem

Path = tuple[str | int, ...]
"""Keys and indices from the root to a place."""

MAX_TEXT = 4 * 2**20
MAX_VALUES = 200_000  # values after aliases are followed: a few lines of nested aliases can mean billions


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1, 0 means that there is none."""

    file: str = ""
    line: int = 0
    column: int = 0


class Substituted(str):
    """A text that came in through `${NAME}`: it may still become a number, a boolean or a duration."""

    __slots__ = ()


@dataclass
class Document:
    """Plain values, with the marks of keys and values by path."""

    value: Any
    file: str = ""
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)

    def mark(self, path: Path, *, key: bool = False) -> Mark:
        """Where `path` stands, or the nearest known place around it."""
        if key and path in self.keys:
            return self.keys[path]
        for length in range(len(path), -1, -1):
            for marks in (self.values, self.keys):
                if path[:length] in marks:
                    return marks[path[:length]]
        return Mark(self.file)

    def problem(self, path: Path, what: str, *, key: bool = False) -> Problem:
        mark = self.mark(path, key=key)
        return Problem(dotted(path), what, mark.file, mark.line, mark.column)

    def put(self, path: Path, value: Any, source: str) -> None:
        """Set a value as `--set` does, making the mappings on the way. Raises LookupError where that can't be."""
        here: Any = self.value
        for depth, step in enumerate(path):
            last = depth == len(path) - 1
            if isinstance(here, list):
                if not isinstance(step, int) or not 0 <= step < len(here):
                    raise LookupError(
                        f"{dotted(path[:depth])} is a list of {len(here)}; {step!r} is not a place in it"
                    )
            elif isinstance(here, dict):
                step = str(step)
                if not last and here.get(step) is None:
                    here[step] = {}
                    self.forget(path[: depth + 1])
            else:
                raise LookupError(f"{dotted(path[:depth])} holds a single value")
            if last:
                here[step] = value
            else:
                here = here[step]
        self.forget(path)
        self.keys[path] = self.values[path] = Mark(source)

    def forget(self, path: Path) -> None:
        """Drop the marks at and below a place whose value was replaced."""
        for marks in (self.keys, self.values):
            for known in [known for known in marks if known[: len(path)] == path]:
                del marks[known]


def dotted(path: Path) -> str:
    """`("steps", 0, "where")` as `steps[0].where`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text


def parse_path(text: str) -> Path:
    """`steps[0].where` or `steps.0.where` as a path."""
    parts = [part for part in re.split(r"[.\[\]]+", text) if part]
    return tuple(int(part) if part.isdigit() else part for part in parts)


# -- reading -----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
for _name, _pattern, _first in (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("int", re.compile(rf"(?:{_INT.pattern})$"), list("-+0123456789")),
    ("float", re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
):  # fmt: skip
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)


def parse(text: str | bytes, file: str) -> Document:
    """Read one YAML or JSON document. Raises ConfigError with every duplicate key, odd tag and endless alias."""
    if isinstance(text, bytes):
        text = _decode(text, file)
    if len(text) > MAX_TEXT:
        raise ConfigError([Problem("", f"is larger than {MAX_TEXT // 2**20} MiB", file)])
    builder = _Builder(file)
    try:
        loader = _Loader(_without_tabs(text))
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        document = Document(None, file, builder.keys, builder.values)
        document.value = builder.build(node, (), ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part) or "is not YAML"
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ConfigError([Problem("", f"not valid YAML: {what}", file, *place)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem("", f"not valid YAML: {error}", file, 1, 1)]) from None
    except RecursionError:
        raise ConfigError([Problem("", "is nested too deeply", file, 1, 1)]) from None
    if builder.problems:
        raise ConfigError(sorted(builder.problems, key=lambda p: (p.line, p.column)))
    return document


def parse_value(text: str) -> Any:
    """One value as YAML reads it, for `--set`; raises ConfigError."""
    return parse(text, "").value


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise ConfigError([Problem("", "is not UTF-8 text here", file, line, column)]) from None


def _without_tabs(text: str) -> str:
    # JSON may be indented by tabs, YAML may not. In valid JSON no text holds a bare tab, so all of them are indentation.
    if "\t" in text and text.lstrip()[:1] in ("{", "["):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text
        return text.replace("\t", " ")
    return text


class _Builder:
    """Nodes to plain values, noting marks and problems on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.keys: dict[Path, Mark] = {}
        self.values: dict[Path, Mark] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def mark(self, node: Any) -> Mark:
        return Mark(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def problem(self, node: Any, path: Path, what: str) -> None:
        mark = self.mark(node)
        self.problems.append(Problem(dotted(path), what, mark.file, mark.line, mark.column))

    def build(self, node: Any, path: Path, around: tuple[int, ...]) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(
                [
                    Problem(
                        dotted(path),
                        f"aliases grow this file beyond {MAX_VALUES:,} values",
                        self.file,
                        *_place(node),
                    )
                ]
            )
        if id(node) in around:
            self.problem(node, path, "an alias here contains itself")
            return None
        self.values[path] = self.mark(node)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (_TAG + "map", _TAG + "seq"):
            self.problem(node, path, f"the tag {node.tag} is not allowed here; write a plain value")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, (*around, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i), (*around, id(node))) for i, child in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: Any, path: Path, around: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, path, "a key must be a plain text")
                continue
            key = key_node.value
            here = (*path, key)
            if key in found:
                self.problem(key_node, here, f"is given twice; first in line {self.keys[here].line}")
                continue
            self.keys[here] = self.mark(key_node)
            found[key] = self.build(value_node, here, around)
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                self.problem(other, path, "<<: needs a mapping, or a list of them")
                continue
            # What is written out wins over what is merged, and an earlier merge over a later one: the marks too.
            sub = _Builder(self.file)
            sub.count = self.count
            extra = sub.build(other, path, around)
            self.count = sub.count
            self.problems += sub.problems
            for key, value in (extra or {}).items():
                if key not in found:
                    found[key] = value
                    at = (*path, key)
                    for mine, theirs in ((self.keys, sub.keys), (self.values, sub.values)):
                        mine.update({p: m for p, m in theirs.items() if p[: len(at)] == at})
        return found

    def scalar(self, node: Any, path: Path) -> Any:
        tag, text = node.tag, node.value
        if tag == _TAG + "str":
            if any(
                "\ud800" <= c <= "\udfff" for c in text
            ):  # JSON writes characters beyond U+FFFF as two escapes
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return text
        try:
            return _SCALARS[tag.removeprefix(_TAG)](text)
        except KeyError:
            self.problem(node, path, f"the tag {tag} is not allowed here; write a plain value")
        except ValueError:
            self.problem(node, path, f"{text[:40]!r} is not a {tag.removeprefix(_TAG)}")
        return None


def _place(node: Any) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _int(text: str) -> int:
    plain = text.replace("_", "")
    if plain.startswith(("0x", "0o")):
        return int(plain, 0)
    return int(plain)


_SCALARS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "null": lambda text: None,
    "int": _int,
    "float": float,
}


# -- environment -------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|(\{))")


def substitute(document: Document, env: Mapping[str, str]) -> list[Problem]:
    """Replace `${NAME}` and `${NAME:-default}` in all texts but keys, in place; `$$` stands for `$`."""
    problems: list[Problem] = []

    def text(value: str, path: Path) -> str:
        if "$" not in value:
            return value
        changed = False

        def one(match: re.Match[str]) -> str:
            nonlocal changed
            dollar, name, default, broken = match.groups()
            if dollar:
                return "$"
            if broken:
                problems.append(
                    document.problem(path, "write ${NAME} or ${NAME:-default}; $$ stands for a plain $")
                )
                return ""
            changed = True
            if env.get(name):
                return env[name]
            if default is not None:
                return str(default)
            if name not in env:
                problems.append(
                    document.problem(
                        path,
                        f"the environment variable {name} is not set; set it or write ${{{name}:-default}}",
                    )
                )
            return ""

        result = _VARIABLE.sub(one, value)
        return Substituted(result) if changed else result

    def walk(value: Any, path: Path) -> Any:
        if isinstance(value, str):
            return text(value, path)
        if isinstance(value, dict):
            return {key: walk(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [walk(child, (*path, i)) for i, child in enumerate(value)]
        return value

    document.value = walk(document.value, ())
    return problems


def read_env_file(text: str) -> dict[str, str]:
    """`NAME=value` lines of a `.env` file; `#` begins a comment, quotes around a value are taken off."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*", line)
        if match:
            value = match[2]
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            else:
                value = re.sub(r"\s+#.*$", "", value)
            found[match[1]] = value
    return found
