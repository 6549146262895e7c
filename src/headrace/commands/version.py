"""`headrace version`."""

from __future__ import annotations

import platform

import click

from headrace import __version__
from headrace.commands.place import json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Show the version of headrace and of Python."""
    if as_json:
        import json

        click.echo(json.dumps({"headrace": __version__, "python": platform.python_version()}))
    else:
        click.echo(f"headrace {__version__} (Python {platform.python_version()})")
