"""`headrace check`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.commands.place import data_dir_option, json_option, set_option

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.config import Config
    from headrace.errors import Problem
    from headrace.pipeline import Pipeline


@click.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@click.option("--connect", is_flag=True, help="Also reach what sources, steps and sinks name.")
@set_option
@data_dir_option
@json_option
def command(
    config_file: Path | None, connect: bool, sets: tuple[str, ...], data_dir: str | None, as_json: bool
) -> int:
    """Prove CONFIG (or the shipped one) without touching anything outside: options, columns, keys.

    Shows the columns of each topic. Exit code 2 when something is wrong in the file, 1 when something can't be reached.
    """
    from headrace.commands.output import echo_json
    from headrace.config import load_config
    from headrace.errors import ConfigError

    try:
        config = load_config(config_file, sets=sets, data_dir=data_dir, ask=False)
        reached = _reach(config) if connect else {}
        failed = [name for name, fault in reached.items() if fault]
        if connect and not failed:
            config = load_config(
                config_file, sets=sets, data_dir=data_dir
            )  # now with columns that databases know
    except ConfigError as error:
        if not as_json:
            raise
        echo_json({"ok": False, "problems": [_problem(p) for p in error.problems]})
        return 2
    if as_json:
        echo_json(_report(config, reached, not failed))
    else:
        _show(config, reached)
    return 1 if failed else 0


def _reach(config: Config) -> dict[str, str]:
    """Component -> why it can't be reached, or nothing. All at once: one dead host costs its timeout only once."""
    from headrace.component import Component

    targets: dict[str, Callable[[], None]] = {
        **{
            f"sources.{name}": entry.source.connect for name, entry in config.sources.items() if entry.enabled
        },
        **{
            f"pipelines.{name}.steps[{i}]": step.connect
            for name, pipeline in config.pipelines.items()
            for i, step in enumerate(pipeline.steps)
            if type(step).connect is not Component.connect
        },
        **{f"sinks.{name}": entry.sink.connect for name, entry in config.sinks.items()},
    }
    if not targets:
        return {}
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(targets, pool.map(_fault, targets.values()), strict=True))


def _fault(connect: Callable[[], None]) -> str:
    try:
        connect()
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is the answer here
        return str(error) or type(error).__name__
    return ""


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.file, "line": problem.line, "column": problem.column, "where": problem.where, "what": problem.what,
    }  # fmt: skip


def _schemas(config: Config, pipeline: Pipeline, asked: bool) -> list[pa.Schema | None]:
    """Columns after each step; None where only a database knows them, and it wasn't asked."""
    known = all(topic in config.topics for topic in pipeline.reads())
    if known and (asked or not any(step.asks() for step in pipeline.steps)):
        return list(pipeline.schemas(config.topics)[1:])
    return [None] * len(pipeline.steps)


def _report(config: Config, reached: dict[str, str], ok: bool) -> dict[str, Any]:
    from headrace.component import kind_of

    asked = bool(reached) and ok

    return {
        "ok": ok,
        "problems": [],
        "warnings": [_problem(w) for w in config.warnings],
        "sources": {
            n: {"kind": kind_of(e.source), "to": e.topic, "enabled": e.enabled}
            for n, e in config.sources.items()
        },
        "pipelines": {
            n: {
                "from": p.topics,
                "to": p.output,
                "steps": [
                    {
                        "kind": kind_of(step),
                        "columns": {f.name: str(f.type) for f in schema} if schema else None,
                    }
                    for step, schema in zip(p.steps, _schemas(config, p, asked), strict=True)
                ],
            }
            for n, p in config.pipelines.items()
        },
        "sinks": {n: {"kind": kind_of(e.sink), "from": e.topics} for n, e in config.sinks.items()},
        "topics": {
            n: {
                "partitions": t.partitions,
                "key": t.key,
                "at": t.at,
                "columns": {f.name: str(f.type) for f in t.schema},
            }
            for n, t in config.topics.items()
        },
        "reached": {name: fault or "ok" for name, fault in reached.items()},
    }


def _show(config: Config, reached: dict[str, str]) -> None:
    from headrace.component import kind_of

    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    for name, source in config.sources.items():
        click.echo(
            f"source {name} ({kind_of(source.source)}) -> {source.topic}{'' if source.enabled else ' (disabled)'}"
        )
    for name, pipeline in config.pipelines.items():
        steps = " | ".join(kind_of(step) for step in pipeline.steps)
        click.echo(f"pipeline {name}: {', '.join(pipeline.topics)} | {steps} -> {pipeline.output}")
    for name, sink in config.sinks.items():
        click.echo(f"sink {name} ({kind_of(sink.sink)}) <- {', '.join(sink.topics)}")
    for name, topic in config.topics.items():
        columns = ", ".join(f"{f.name} {f.type}" for f in topic.schema)
        click.echo(click.style(f"topic {name}", bold=True) + f": {columns}")
    for name, fault in reached.items():
        click.echo(f"{name}: {fault or 'reached'}", err=bool(fault))
    verdict = "right, but not all of it can be reached" if any(reached.values()) else "ok"
    click.echo(f"{verdict}: {config.file or 'the shipped configuration'}")
