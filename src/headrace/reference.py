"""Writes docs/reference and the JSON schema from the component classes, so that an option stands in one place only.

python -m headrace.reference            # write
python -m headrace.reference --check    # exit code 1 when a file is not what it would be now
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
import msgspec

from headrace import errors
from headrace.cli import COMMANDS, cli
from headrace.component import Component, Step, load
from headrace.config import EngineOptions, ServerOptions, TopicOptions, kinds
from headrace.json_schema import config_schema
from headrace.options import describe, hints_of, limits, type_name
from headrace.units import Duration, Size

_GENERATED = "<!-- Written by `python -m headrace.reference`; change the source, not this file. -->\n"
_FAMILIES: tuple[Literal["sources", "steps", "sinks"], ...] = ("sources", "steps", "sinks")
_INTROS = {
    "sources": "Sources bring rows in. In the configuration: `sources: {NAME: {kind: KIND, to: TOPIC, ...options}}`. "
    "`to` is the topic (default `events`); `enabled: false` keeps a source from starting by itself.",
    "steps": "Steps turn rows into rows. In the configuration, a step is one entry of a pipeline's `steps`: "
    "`- KIND: {...options}`, or `- KIND: value` for the option marked as short form.",
    "sinks": "Sinks take rows out. In the configuration: `sinks: {NAME: {kind: KIND, from: TOPIC, ...options}}`. `from` is "
    "a topic or a list of them; `start: latest` leaves out what was there before the sink's first start.",
}
_ENVIRONMENT = {
    "HEADRACE_DATA_DIR": "where headrace keeps its data; `--data-dir` wins over it, and it over `data_dir` in the file",
    "HEADRACE_HOST": "address to listen on, and to reach the server at; `--host` wins over it",
    "HEADRACE_PORT": "port of the server; `--port` wins over it",
    "HEADRACE_URL": "address of the server for commands that talk to it",
    "HEADRACE_TOKEN": "bearer token that those commands send",
    "HEADRACE_DEBUG": "1: show a traceback with every error",
}


def pages() -> dict[str, str]:
    """File name below `docs/` to its text."""
    found = {f"reference/{family}.md": _family(family) for family in _FAMILIES}
    found["reference/config.md"] = _config()
    found["reference/cli.md"] = _cli()
    found["reference/errors.md"] = _errors()
    found["headrace.schema.json"] = json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
    return found


def stale(docs: Path) -> list[str]:
    """Files that are not what they would be now."""
    return [
        name
        for name, text in pages().items()
        if not (docs / name).is_file() or (docs / name).read_text("utf-8") != text
    ]


# -- components --------------------------------------------------------------------------------------


def _family(family: Literal["sources", "steps", "sinks"]) -> str:
    parts = [_GENERATED, f"# {family.title()}\n", _INTROS[family] + "\n"]
    found = [(kind, load(family, kind)) for kind in kinds(family)]
    parts.append("".join(f"- [`{kind}`](#{kind}): {_first_line(cls)}\n" for kind, cls in found))
    for kind, cls in found:
        parts.append(f"## {kind}\n")
        parts.append(inspect.getdoc(cls) or "")
        if issubclass(cls, Step) and cls.key.__qualname__ != Step.key.__qualname__:
            parts.append("Keeps state by key.")
        parts.append(options_table(cls, getattr(cls, "shorthand", "")))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")


def options_table(cls: type[msgspec.Struct], shorthand: str = "") -> str:
    """The options of a class as a Markdown table."""
    hints = hints_of(cls)
    rows = ["| option | type | default | |\n|---|---|---|---|\n"]
    for f in msgspec.structs.fields(cls):
        hint = hints[f.name]
        notes = [describe(hint), limits(hint), "short form" if f.name == shorthand else ""]
        default = "required" if f.required else f"`{shown_default(f)}`"
        rows.append(
            f"| `{f.encode_name}` | {_cell(type_name(hint))} | {_cell(default)} | {_cell('; '.join(n for n in notes if n))} |\n"
        )
    return "".join(rows) if len(rows) > 1 else "No options.\n"


def shown_default(f: msgspec.structs.FieldInfo) -> str:
    """A default as YAML would write it."""
    value = f.default_factory() if f.default is msgspec.NODEFAULT else f.default
    if isinstance(value, (Duration, Size)):
        return str(value)
    if isinstance(value, Component | msgspec.Struct):
        return "{}"
    return json.dumps(msgspec.to_builtins(value, enc_hook=str), ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- configuration -----------------------------------------------------------------------------------


def _config() -> str:
    parts = [
        _GENERATED,
        "# Configuration\n",
        "One YAML file (JSON is accepted, too) with the keys below, all optional. `headrace init` writes one to start from, "
        "`headrace check` proves it, and `docs/headrace.schema.json` lets an editor complete and check it while you write: "
        "begin the file with `# yaml-language-server: $schema=headrace.schema.json`.\n",
        "A text may hold `${NAME}` or `${NAME:-default}`, filled in from the environment or from a `.env` file beside the "
        "configuration; `$$` stands for `$`. A relative path of a sink is inside the data directory, any other begins at the "
        "current directory. A duration is written `10s`, `500ms`, `1h30m`; a size `64MiB`, `2GB`.\n",
        "| key | |\n|---|---|\n"
        "| `sources` | what brings rows in, by name: [sources](sources.md) |\n"
        "| `topics` | settings of topics, by name; topics that sources and pipelines write exist without |\n"
        "| `pipelines` | what turns topics into other topics, by name |\n"
        "| `sinks` | what takes topics out, by name: [sinks](sinks.md) |\n"
        "| `server` | the HTTP server |\n"
        "| `engine` | how pipelines are run |\n"
        "| `log` | where topics are kept: `sqlite` (a file in the data directory, the default) or `memory` |\n"
        "| `data_dir` | where headrace keeps everything; default `headrace-data` |\n",
        "## pipelines\n",
        "| option | type | default | |\n|---|---|---|---|\n"
        "| `from` | a topic, or a list of topics | required | what is read |\n"
        "| `steps` | a list of [steps](steps.md) | `[]` | what is done, in this order |\n"
        "| `to` | a text | required | topic that the rows go to |\n"
        "| `key` | a list of texts | that of the last step with state | columns that choose the output's partition |\n"
        "| `delay` | a duration such as 10s, 500ms or 1h30m | `0s` | how far events may be out of order before they count as late |\n"
        "| `idle_after` | a duration such as 10s, 500ms or 1h30m | `5s` | silence after which a partition no longer holds back time |\n",
    ]
    for title, cls in (("topics", TopicOptions), ("server", ServerOptions), ("engine", EngineOptions)):
        parts += [f"## {title}\n", (inspect.getdoc(cls) or "") + "\n", options_table(cls)]
    parts += [
        "## Environment\n",
        "| variable | |\n|---|---|\n" + "".join(f"| `{n}` | {t} |\n" for n, t in _ENVIRONMENT.items()),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# -- command line ------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands with their full names."""
    root = click.Context(cli, info_name="headrace")
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", child) for sub, child in sorted(command.commands.items()))


def _cli() -> str:
    parts = [
        _GENERATED,
        "# Command line\n",
        "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 server not reachable, 130 interrupted. Errors go to "
        "standard error; `HEADRACE_DEBUG=1` adds where they come from.\n",
        'Shell completion: `eval "$(_HEADRACE_COMPLETE=bash_source headrace)"` (or `zsh_source`, `fish_source`).\n',
    ]
    for name, command in commands():
        ctx = click.Context(command, info_name=f"headrace {name}")
        usage = " ".join([f"headrace {name}", *command.collect_usage_pieces(ctx)])
        parts.append(f"## headrace {name}\n\n```\n{usage}\n```\n")
        parts.append(_help(inspect.cleandoc(command.help or "")))
        rows = [record for p in command.params if (record := p.get_help_record(ctx))]
        if rows:
            parts.append(
                "| option | |\n|---|---|\n" + "".join(f"| `{_cell(n)}` | {_cell(t)} |\n" for n, t in rows)
            )
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _help(text: str) -> str:
    """Help text as Markdown: what follows a `\\b` keeps its lines."""
    return re.sub(
        r"\x08\n((?:.+\n?)+)", lambda m: "```\n" + inspect.cleandoc(m[1]).rstrip("\n") + "\n```\n", text
    )


# -- errors ------------------------------------------------------------------------------------------


def _errors() -> str:
    parts = [
        _GENERATED,
        "# Errors\n",
        "Every error that headrace raises on purpose. The type says what to do.\n",
    ]
    rows = ["| error | is a | |\n|---|---|---|\n"]
    for name, cls in vars(errors).items():
        if inspect.isclass(cls) and issubclass(cls, errors.HeadraceError):
            base = cls.__bases__[0].__name__
            rows.append(f"| `{name}` | `{base}` | {_cell(' '.join((inspect.getdoc(cls) or '').split()))} |\n")
    parts.append("".join(rows))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 when something is not up to date.")
@click.option("--docs", type=click.Path(path_type=Path), default=Path("docs"), help="The docs folder.")
def main(check: bool, docs: Path) -> None:
    """Write the reference pages and the JSON schema."""
    old = stale(docs)
    for name in old:
        click.echo(f"{docs / name}: {'not up to date' if check else 'written'}")
    if check:
        sys.exit(1 if old else 0)
    texts = pages()
    for name in old:
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(texts[name], "utf-8")


if __name__ == "__main__":
    main()
