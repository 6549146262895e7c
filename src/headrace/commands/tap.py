"""`headrace tap`."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.commands.place import find_config, json_option, opened_log, place_options, topic_named

_ROWS = 10_000


@click.command()
@click.argument("topic")
@click.option(
    "--last",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Begin with this many of the rows that are there.",
)
@click.option("--limit", type=click.IntRange(1), help="Stop after this many rows.")
@click.option("--no-follow", is_flag=True, help="Stop at the end instead of waiting for more.")
@place_options
@json_option
def command(
    topic: str,
    last: int,
    limit: int | None,
    no_follow: bool,
    config_file: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Follow the rows of TOPIC as they become durable, beside a running headrace. Ctrl-C stops."""
    from headrace.commands.output import echo_lines, plain_rows, to_json
    from headrace.model import Span

    with opened_log(find_config(config_file, data_dir)) as log:
        partitions = topic_named(log, topic).partitions
        positions = {}
        for partition in range(partitions):
            extent = log.extent(topic, partition)
            positions[topic, partition] = max(extent.start, extent.end - last)
        shown = 0
        while True:
            moved = False
            for (_, partition), start in list(positions.items()):
                span = log.bounded(topic, partition, start, max_rows=_ROWS, max_bytes=2**23)
                if limit is not None:
                    span = Span(span.start, min(span.end, span.start + limit - shown))
                if len(span):
                    moved = True
                    rows = plain_rows(log.read(topic, partition, span))
                    if as_json:
                        echo_lines(rows)
                    else:
                        for row in rows:
                            click.echo(
                                "  ".join(
                                    f"{k}={_short(to_json(v))}" for k, v in row.items() if v is not None
                                )
                            )
                    positions[topic, partition] = span.end
                    shown += len(span)
                if limit is not None and shown >= limit:
                    return
            if not moved:
                if no_follow:
                    return
                log.wait(positions, 1.0)


def _short(value: bytes) -> str:
    text = value.decode()
    return text[1:-1] if text.startswith('"') else text
