"""`headrace generate`."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from headrace.commands.client import Client, url_option
from headrace.commands.place import json_option
from headrace.errors import HeadraceError

_BATCH = 1000


@click.command()
@click.argument("target", metavar="[FILE|-]", default="-")
@click.option(
    "--count",
    type=click.IntRange(1),
    help="Stop after this many events. Default: 1000, with --url until Ctrl-C.",
)
@click.option("--topic", default="events", show_default=True, help="With --url: topic to send to.")
@click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the source `generate`, such as devices=50 or seed=7; can be repeated.",
)
@url_option
@json_option
def command(
    target: str, count: int | None, topic: str, options: tuple[str, ...], url: str | None, as_json: bool
) -> int:
    """Make events of a simulated fleet as NDJSON, on standard output, into FILE, or sent to a server by --url."""
    from headrace.commands.output import echo_json, progress
    from headrace.commands.send import Verdict, push
    from headrace.component import Source, load
    from headrace.config import build
    from headrace.yaml_positions import parse_value

    given: dict[str, Any] = {"rate": 0}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--option {text}: write NAME=VALUE")
        given[name.strip()] = parse_value(value)
    source = build(load("sources", "generate"), given, where="generate")
    assert isinstance(source, Source)
    if count is None and url is None:
        count = _BATCH
    verdict, made, run = Verdict(), 0, uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        client = Client(url) if url is not None else None
        out = None if client else _target(target, stack)
        bar = stack.enter_context(progress(count, "generating")) if count and target != "-" else None
        for number, lines in enumerate(_lines(source, count)):
            if client is not None:
                push(client, topic, b"\n".join(lines), "ndjson", f"{run}-{number}", verdict)
            elif out is not None:
                out.write(b"\n".join(lines) + b"\n")
                out.flush()
            made += len(lines)
            if bar is not None:
                bar.update(len(lines))
    if as_json and (client is not None or target != "-"):
        echo_json(
            {"made": made, "accepted": verdict.accepted, "rejected": verdict.rejected}
            if client
            else {"made": made}
        )
    elif client is not None:
        click.echo(f"made {made}, accepted {verdict.accepted}, rejected {verdict.rejected}")
    return 0


def _target(target: str, stack: contextlib.ExitStack) -> IO[bytes]:
    if target == "-":
        return sys.stdout.buffer
    try:
        return stack.enter_context(Path(target).open("wb"))
    except OSError as error:
        raise HeadraceError(f"{target} can't be written: {error.strerror}") from None


def _lines(source: Any, count: int | None) -> Iterator[list[bytes]]:
    """NDJSON lines by batches, `count` of them in all; what the source made malformed goes out as it is."""
    from headrace.commands.output import to_json

    left = count
    with contextlib.closing(source.read(source.shards()[0], None)) as arrivals:
        for arrival in arrivals:
            lines = (
                [] if arrival.rows is None else [to_json(_envelope(row)) for row in arrival.rows.to_pylist()]
            )
            lines += [reject.raw.replace(b"\n", b" ") for reject in arrival.rejects]
            if left is not None:
                lines = lines[:left]
                left -= len(lines)
            for start in range(0, len(lines), _BATCH):
                yield lines[start : start + _BATCH]
            if left == 0:
                return


def _envelope(row: dict[str, Any]) -> dict[str, Any]:
    """A row in the shape that `POST /ingest` takes. A row loop: this is text for a pipe."""
    row["sourceId"] = row.pop("source_id")
    row.pop("received_at", None)
    if isinstance(row.get("payload"), dict):
        row["payload"] = {k: v for k, v in row["payload"].items() if v is not None}
    return {k: v for k, v in row.items() if v is not None}
