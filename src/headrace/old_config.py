"""The older `config.json` with `stream_config` and `data_sources`, put into today's layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.component import load
from headrace.errors import ConfigError, Problem
from headrace.options import shown
from headrace.yaml_positions import Document, Path

_KINDS = {
    "api": "http_poll", "http": "http_poll", "rest": "http_poll", "rest_api": "http_poll", "url": "http_poll",
    "ws": "websocket", "csv": "file_tail", "json": "file_tail", "log": "file_tail", "logs": "file_tail", "file": "file_tail",
    "database": "sql_poll", "db": "sql_poll", "sql": "sql_poll", "system": "system_metrics", "simulated": "generate",
    "simulation": "generate", "synthetic": "generate", "random": "generate", "mock": "generate", "redis": "redis_stream",
}  # fmt: skip
"""Names of kinds as people used to write them."""

_STREAM = {
    "buffer_size": "is not used: the log on disk holds what has not been processed yet",
    "processing_interval": "is not used: rows are processed as they arrive",
}


def kind_named(name: str) -> str:
    """Today's kind for an older type name."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return _KINDS.get(plain, plain)


def modernise(old: Document, default: Document, warnings: list[Problem]) -> Document:
    """Today's layout with the positions of the old file: the shipped pipelines, fed by the old file's sources."""
    if not isinstance(old.value, dict):
        raise ConfigError([old.problem((), "a mapping is expected")])
    new = Document({**default.value, "sources": {}}, old.file, dict(default.keys), dict(default.values))
    for name, value in old.value.items():
        if name == "stream_config":
            _stream(old, new, value, warnings)
        elif name == "data_sources":
            _sources(old, new, value, warnings)
        elif name in ("data_dir", "server", "engine", "log"):
            _move(old, new, (name,), (name,), value)
        else:
            warnings.append(old.problem((name,), "is not used", key=True))
    return new


def _move(old: Document, new: Document, there: Path, here: Path, value: Any) -> None:
    new.put(here, value, old.file)
    for have, want in ((old.keys, new.keys), (old.values, new.values)):
        want.update({(*here, *p[len(there) :]): mark for p, mark in have.items() if p[: len(there)] == there})


def _stream(old: Document, new: Document, value: Any, warnings: list[Problem]) -> None:
    place: Path = ("stream_config",)
    if not isinstance(value, dict):
        raise ConfigError([old.problem(place, f"a mapping is expected, not {shown(value)}")])
    targets: dict[str, Path] = {
        "batch_size": ("engine", "max_epoch_rows"),
        "max_connections": ("server", "max_connections"),
    }
    for name, setting in value.items():
        if name in targets:
            _move(old, new, (*place, name), targets[name], setting)
        else:
            warnings.append(old.problem((*place, name), _STREAM.get(name, "is not used"), key=True))


def _sources(old: Document, new: Document, value: Any, warnings: list[Problem]) -> None:
    place: Path = ("data_sources",)
    if isinstance(value, Mapping):
        entries = [(name, (*place, name), entry) for name, entry in value.items()]
    elif isinstance(value, list):
        entries = [("", (*place, i), entry) for i, entry in enumerate(value)]
    else:
        raise ConfigError(
            [old.problem(place, f"a list or mapping of sources is expected, not {shown(value)}")]
        )
    problems: list[Problem] = []
    taken: set[str] = set()
    for given, there, entry in entries:
        if isinstance(entry, str):
            entry = {"type": "api", "url": entry}
        if not isinstance(entry, dict):
            problems.append(old.problem(there, f"a mapping is expected, not {shown(entry)}"))
            continue
        wanted = entry.get("type", entry.get("kind", "api" if "url" in entry else given))
        if not isinstance(wanted, str):
            problems.append(old.problem(there, f"type must be a text, not {shown(wanted)}"))
            continue
        kind = kind_named(wanted)
        name = _unique(str(given or entry.get("name") or kind), taken)
        _source(old, new, there, name, kind, entry, warnings)
    if problems:
        raise ConfigError(problems)


def _source(
    old: Document,
    new: Document,
    there: Path,
    name: str,
    kind: str,
    entry: Mapping[str, Any],
    warnings: list[Problem],
) -> None:
    try:
        known = {f.encode_name for f in msgspec.structs.fields(load("sources", kind))}
    except (LookupError, ImportError):
        warnings.append(
            old.problem(
                there, f"sources of kind {kind!r} are not available in this version; {name} is left out"
            )
        )
        return
    here: Path = ("sources", name)
    new.put(here, {"kind": kind}, old.file)
    new.values[here] = new.keys[here] = old.mark(there)
    for option, value in entry.items():
        if option in ("type", "kind", "name"):
            continue
        if option not in known and option not in ("to", "enabled"):
            warnings.append(
                old.problem((*there, option), f"{kind} has no option {option}; it is not used", key=True)
            )
            continue
        _move(old, new, (*there, option), (*here, option), value)


def _unique(name: str, taken: set[str]) -> str:
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:50] or "source"
    found, number = base, 2
    while found in taken:
        found, number = f"{base}_{number}", number + 1
    taken.add(found)
    return found
