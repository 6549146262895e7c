"""`headrace init`."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.commands.place import json_option
from headrace.errors import HeadraceError


@click.command()
@click.argument(
    "target", metavar="[FILE]", default="headrace.yaml", type=click.Path(path_type=Path, dir_okay=False)
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@json_option
def command(target: Path, force: bool, as_json: bool) -> None:
    """Write the default configuration, with comments, to FILE (headrace.yaml)."""
    from headrace.config import default_text

    if target.exists() and not force:
        raise HeadraceError(f"{target} is there already; choose another name, or --force")
    target.write_text(default_text(), "utf-8")
    if as_json:
        from headrace.commands.output import echo_json

        echo_json({"written": str(target)})
    else:
        click.echo(
            f"wrote {target}; prove it with `headrace check {target}`, run it with `headrace run {target}`"
        )
