"""`headrace query`, and the store that `export` asks too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.commands.place import find_config, json_option, opened_log, place_options

if TYPE_CHECKING:
    from headrace.config import Config


@contextmanager
def opened_store(config: Config) -> Iterator[Any]:
    """The tables of a data directory, beside whoever runs on it."""
    from headrace.runtime import delta_tables
    from headrace.store import Store

    with opened_log(config) as log:
        store = Store(log, delta_tables(config), catalog_path=config.data_dir / "catalog.db")
        try:
            yield store
        finally:
            store.close()


@click.command()
@click.argument("sql")
@click.option("--timeout", default="60s", show_default=True, metavar="DURATION", help="Longest run.")
@click.option(
    "--max-rows", type=click.IntRange(1), default=100_000, show_default=True, help="Most rows of the answer."
)
@click.option("--csv", "as_csv", is_flag=True, help="Give the result as CSV.")
@place_options
@json_option
def command(
    sql: str,
    timeout: str,
    max_rows: int,
    as_csv: bool,
    config_file: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Answer a read-only SQL query; every topic is a table, and so is `sensors`.

    \b
      headrace query "SELECT * FROM processed_data WHERE error_rate > 0.05"

    Works beside a running headrace, and without one; the answer holds everything up to the last committed epoch.
    """
    from headrace.units import Duration

    try:
        limit = Duration.parse(timeout)
    except ValueError as error:
        raise click.UsageError(f"--timeout: {error}") from None
    if sql == "-":
        sql = sys.stdin.read()

    from headrace.commands import output

    with opened_store(find_config(config_file, data_dir)) as store:
        table, truncated = store.query(sql, max_rows=max_rows, timeout=limit.seconds)
    if truncated:
        click.echo(f"only the first {max_rows} rows are shown; --max-rows gives more", err=True)
    if as_json:
        output.echo_json(output.plain_rows(table))
    elif as_csv:
        output.write_csv(table, sys.stdout.buffer)
    else:
        output.echo_table(
            table.column_names, ([row[c] for c in table.column_names] for row in output.plain_rows(table))
        )
        click.echo(f"{table.num_rows} row{'' if table.num_rows == 1 else 's'}", err=True)
