"""`headrace run`."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.commands.place import data_dir_option, note_run, set_option


@click.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@data_dir_option
@click.option(
    "--host",
    metavar="H",
    help="Address to listen on. Default: HEADRACE_HOST, else the file's, else 127.0.0.1.",
)
@click.option(
    "--port",
    type=int,
    metavar="N",
    help="Port to listen on; 0 takes a free one. Default: HEADRACE_PORT, else the file's, else 8080.",
)
@set_option
@click.option(
    "--no-demo", is_flag=True, help="Without CONFIG: leave out the sources system_metrics and generate."
)
def command(
    config_file: Path | None,
    data_dir: str | None,
    host: str | None,
    port: int | None,
    sets: tuple[str, ...],
    no_demo: bool,
) -> int:
    """Run headrace until Ctrl-C.

    Without CONFIG it runs the shipped default pipelines on this machine's own metrics and a simulated fleet. A changed
    CONFIG is taken over while it runs, if it is right.
    """
    from headrace.config import Config, load_config

    def load() -> Config:
        return load_config(config_file, sets=sets, demo=not no_demo, data_dir=data_dir, host=host, port=port)

    config = load()
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)

    from headrace.run import main

    def announce(address: str) -> None:
        note_run(config, config_file, sets, not no_demo)
        click.echo(f"headrace is at {address} (data in {config.data_dir}; Ctrl-C stops it)")

    code: int = main(config, reload=load if config_file is not None else None, announce=announce)
    return code
