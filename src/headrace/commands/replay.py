"""`headrace replay`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from headrace.commands.place import find_config, json_option, opened_log, place_options
from headrace.errors import HeadraceError


@click.command()
@click.argument("pipeline")
@click.option(
    "--from", "start", required=True, metavar="TIME", help="Begin: an ISO time, or how long ago, such as 2h."
)
@click.option("--to", "end", default="0s", metavar="TIME", help="End, in the same way. Default: now.")
@click.option(
    "--shadow",
    default="",
    metavar="TOPIC",
    help="Topic for the rows. Default: the output topic's name with _replay.",
)
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Show at most so many differing rows.",
)
@place_options
@json_option
def command(
    pipeline: str,
    start: str,
    end: str,
    shadow: str,
    limit: int,
    config_file: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> int:
    """Run PIPELINE, as --config has it now, over rows of the past, and show what differs from what it wrote then.

    The rows go to a shadow topic; nothing that runs is touched. Exit code 1 when there is a difference.
    """
    from headrace.commands.output import echo_json, echo_table, plain_rows, progress
    from headrace.engine.replay import replay
    from headrace.options import suggest

    config = find_config(config_file, data_dir)
    if pipeline not in config.pipelines:
        raise HeadraceError(f"there is no pipeline {pipeline!r}{suggest(pipeline, config.pipelines)}")
    start_us, end_us = at_us(start, "--from"), at_us(end, "--to")
    if start_us >= end_us:
        raise click.UsageError("--from must be before --to")
    with opened_log(config) as log, progress(1, f"replaying {pipeline}") as bar:

        def told(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        chosen = config.pipelines[pipeline]
        others = [p for p in config.pipelines.values() if p.output == chosen.output and p.name != pipeline]
        result = replay(
            chosen, log, start_us=start_us, end_us=end_us, shadow=shadow, others=others, progress=told
        )
    if as_json:
        echo_json(
            {
                "shadow": result.shadow, "read": result.read, "written": result.written, "dead": result.dead,
                "late": result.late, "same": result.same,
                "missing": {"count": result.missing.num_rows, "rows": plain_rows(result.missing.slice(0, limit))},
                "columns": {"missing": result.lost, "extra": result.added},
                "extra": {"count": result.extra.num_rows, "rows": plain_rows(result.extra.slice(0, limit))},
            }
        )  # fmt: skip
        return 1 if result.differs else 0
    click.echo(
        f"read {result.read} rows, wrote {result.written} to {result.shadow} ({result.late} late, {result.dead} dead)"
    )
    click.echo(f"same {result.same}, missing now {result.missing.num_rows}, new now {result.extra.num_rows}")
    for title, names in (("columns missing now", result.lost), ("columns new now", result.added)):
        if names:
            click.echo(f"{title}: {', '.join(names)}")
    for title, table in (("missing now", result.missing), ("new now", result.extra)):
        if table.num_rows and limit:
            click.echo(f"\n{title}:")
            rows = plain_rows(table.slice(0, limit))
            echo_table(
                table.column_names, ([row[c] for c in table.column_names] for row in rows), max_width=32
            )
    return 1 if result.differs else 0


def at_us(text: str, flag: str) -> int:
    """Microseconds since 1970 of an ISO time (UTC unless it says otherwise), or of a duration ago."""
    from headrace.clock import SystemClock
    from headrace.units import Duration

    if re.fullmatch(r"[0-9.]+[a-z]+.*", text):
        try:
            return SystemClock().now_us() - Duration.parse(text).us
        except ValueError as error:
            raise click.UsageError(f"{flag}: {error}") from None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{flag}: {text!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 2h"
        ) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(at.timestamp() * 1_000_000)
