"""`headrace forget`."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.commands.place import find_config, json_option, opened_log, place_options


@click.command()
@click.argument("reader", required=False)
@place_options
@json_option
def command(reader: str | None, config_file: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Let go of the rows that are kept for a sink or pipeline which is no more.

    Without READER: list who has a position in the log, and who of them the configuration no longer knows. READER is
    a name from that list, such as `sink:old`. A pipeline that is forgotten can't be taken up again under its name.
    """
    from headrace.commands.output import echo_json
    from headrace.errors import HeadraceError
    from headrace.options import suggest
    from headrace.runtime import strangers

    config = find_config(config_file, data_dir)
    with opened_log(config) as log:
        readers = log.readers()
        unknown = strangers(config, log)
        if reader is None:
            rows = [
                {
                    "reader": name,
                    "known": name not in unknown,
                    "behind": sum(
                        max(0, log.extent(*source).end - offset) for source, offset in positions.items()
                    ),
                }
                for name, positions in sorted(readers.items())
            ]
            if as_json:
                echo_json(rows)
            for row in [] if as_json else rows:
                note = (
                    ""
                    if row["known"]
                    else "   not in the configuration; `headrace forget` lets go of its rows"
                )
                click.echo(f"{row['reader']}  {row['behind']} rows behind{note}")
            return 0
        if reader not in readers:
            raise HeadraceError(f"there is no reader {reader!r}{suggest(reader, readers)}")
        if reader not in unknown:
            raise HeadraceError(f"{reader} is in the configuration; take it out there first, and apply that")
        log.forget(reader)
    if as_json:
        echo_json({"forgotten": reader})
    else:
        click.echo(
            f"{reader} is forgotten; retention deletes what only it kept within a minute of the next run"
        )
    return 0
