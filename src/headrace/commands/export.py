"""`headrace export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from headrace.commands.place import find_config, json_option, opened_log, place_options, topic_named
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    import pyarrow as pa

_FORMATS = ("parquet", "csv", "ndjson", "arrow")
_ROWS = 100_000
_MOST = 50_000_000  # rows of a query


@click.command()
@click.argument("what", metavar="TOPIC|SQL")
@click.argument("target", metavar="FILE")
@click.option("--format", "format_", type=click.Choice(_FORMATS), help="Default: by the file's ending.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@place_options
@json_option
def command(
    what: str,
    target: str,
    format_: str | None,
    force: bool,
    config_file: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Write what the log holds of a TOPIC, or the answer of a SQL query, to FILE (`-`: standard output).

    The file appears whole or not at all.
    """
    from headrace.commands.output import echo_json

    format_ = format_ or {"jsonl": "ndjson", "json": "ndjson"}.get(
        Path(target).suffix[1:], Path(target).suffix[1:]
    )
    if format_ not in _FORMATS:
        raise click.UsageError(f"say the --format: {', '.join(_FORMATS)}")
    if target != "-" and Path(target).exists() and not force:
        raise HeadraceError(f"{target} is there already; choose another name, or --force")
    config = find_config(config_file, data_dir)
    if what.replace("_", "a").isalnum():
        with opened_log(config) as log:
            topic = topic_named(log, what)
            rows = _write(target, format_, topic.schema, _topic(log, topic))
    else:
        from headrace.commands.query import opened_store

        with opened_store(config) as store:
            table, truncated = store.query(what, max_rows=_MOST, timeout=3600)
        if truncated:
            raise HeadraceError(
                f"the answer has more than {_MOST} rows; narrow the query, or export the topic"
            )
        rows = _write(target, format_, table.schema, iter(table.to_batches(_ROWS)))
    if target != "-":
        if as_json:
            echo_json({"file": target, "rows": rows, "format": format_})
        else:
            click.echo(f"wrote {rows} rows to {target}")


def _topic(log: Any, topic: Any) -> Iterator[pa.RecordBatch]:
    from headrace.commands.output import progress

    extents = [log.extent(topic.name, p) for p in range(topic.partitions)]
    with progress(sum(len(e) for e in extents), f"exporting {topic.name}") as bar:
        for partition, extent in enumerate(extents):
            position = extent.start
            while position < extent.end:
                span = log.bounded(
                    topic.name,
                    partition,
                    position,
                    max_rows=min(_ROWS, extent.end - position),
                    max_bytes=2**26,
                )
                if not len(span):
                    break
                yield log.read(topic.name, partition, span)
                position = span.end
                bar.update(len(span))


def _write(target: str, format_: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    if target == "-":
        return _rows(sys.stdout.buffer, format_, schema, batches)
    path = Path(target)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as out:
            rows = _rows(out, format_, schema, batches)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return rows


def _rows(out: IO[bytes], format_: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    import pyarrow as pa

    from headrace.commands.output import plain_rows, to_json, write_csv
    from headrace.model import conform

    # A struct that has no field yet can't be stored in Parquet.
    schema = pa.schema([f for f in schema if not (pa.types.is_struct(f.type) and f.type.num_fields == 0)])
    rows, writer = 0, None
    if format_ == "parquet":
        from pyarrow import parquet

        writer = parquet.ParquetWriter(out, schema)
    elif format_ == "arrow":
        writer = pa.ipc.new_stream(out, schema)
    elif format_ == "csv":
        write_csv(pa.table({f.name: pa.nulls(0, f.type) for f in schema}), out)
    try:
        for batch in batches:
            batch = conform(batch, schema)
            rows += batch.num_rows
            if writer is not None:
                writer.write_batch(batch)
            elif format_ == "csv":
                write_csv(pa.Table.from_batches([batch]), out, header=False)
            else:
                out.writelines(to_json(row) + b"\n" for row in plain_rows(batch))
    finally:
        if writer is not None:
            writer.close()
    return rows
