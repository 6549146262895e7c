"""`headrace send`."""

from __future__ import annotations

import gzip
import io
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import click

from headrace.commands.client import Client, RefusedError, url_option
from headrace.commands.place import json_option
from headrace.errors import HeadraceError

_CHUNK = 2**20  # bytes of lines in one request
_WHOLE = 64 * 2**20  # most bytes of what can't be cut, such as a JSON array
_TYPES = {
    "json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
}  # fmt: skip
_ENDINGS = {
    ".json": "json",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".arrow": "arrow",
    ".arrows": "arrow",
}


@dataclass
class Verdict:
    """What the server said to all requests together."""

    accepted: int = 0
    rejected: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        # The server counts rows within one request; here they are counted over all of them.
        before = self.accepted + self.rejected
        found = [
            {**e, "row": before + e["row"]} if isinstance(e.get("row"), int) else e
            for e in answer.get("errors", ())
        ]
        self.accepted += int(answer.get("accepted", 0))
        self.rejected += int(answer.get("rejected", 0))
        self.errors += found[: 100 - len(self.errors)]


@click.command()
@click.argument("data", metavar="[DATA|FILE|-]", default="-")
@click.option("--topic", default="events", show_default=True, help="Topic to send to.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(_TYPES)),
    help="Default: by the file's ending, else by its first character.",
)
@url_option
@json_option
def command(data: str, topic: str, format_: str | None, url: str | None, as_json: bool) -> int:
    """Send events to a running headrace: JSON given here, a FILE (also .gz and .zst), or standard input.

    \b
      headrace send '{"sourceId": "s1", "payload": {"temperature": 21.5}}'
      headrace send readings.csv --topic events
      tail -f app.ndjson | headrace send -

    Each part of the input is acknowledged once it is durable. Exit code 1 when a row was rejected.
    """
    client = Client(url)
    verdict = Verdict()
    name, stream, size = _opened(data)
    format_ = format_ or _ENDINGS.get(Path(name).suffix.lower())
    run = uuid.uuid4().hex

    from headrace.commands.output import echo_json, progress

    with stream, progress(size, f"sending {name}") as bar:
        for number, (body, kind, read) in enumerate(_bodies(stream, format_)):
            push(client, topic, body, kind, f"{run}-{number}", verdict)
            bar.update(read)
    if as_json:
        echo_json({"accepted": verdict.accepted, "rejected": verdict.rejected, "errors": verdict.errors})
    else:
        click.echo(f"accepted {verdict.accepted}, rejected {verdict.rejected}")
        for error in verdict.errors[:20]:
            click.echo(f"  row {error.get('row')}: {error.get('code')}: {error.get('reason')}", err=True)
    return 1 if verdict.rejected else 0


def push(client: Client, topic: str, body: bytes, kind: str, key: str, verdict: Verdict) -> None:
    """One request; rejected rows are counted, any other refusal is raised."""
    import urllib.parse

    headers = {"Content-Type": _TYPES[kind], "Idempotency-Key": key}
    try:
        verdict.add(client.post(f"/ingest/{urllib.parse.quote(topic, safe='')}", body, headers))
    except RefusedError as error:
        if error.status != 422 or "rejected" not in error.problem:
            raise
        verdict.add(dict(error.problem))


def _opened(data: str) -> tuple[str, IO[bytes], int | None]:
    if data.lstrip()[:1] in ("{", "["):
        return "events", io.BytesIO(data.encode()), len(data.encode())
    if data == "-":
        return "-", sys.stdin.buffer, None
    path = Path(data)
    if not path.exists():
        raise click.UsageError(f"there is no file {data!r}; JSON begins with {{ or [")
    if path.suffix == ".gz":
        return path.stem, gzip.open(path, "rb"), None  # type: ignore[return-value]
    if path.suffix == ".zst":
        import zstandard

        return path.stem, zstandard.open(path, "rb"), None
    return path.name, path.open("rb"), path.stat().st_size


def _bodies(stream: IO[bytes], kind: str | None) -> Iterator[tuple[bytes, str, int]]:
    """(request body, format, bytes of the input it stands for)."""
    reader = stream if isinstance(stream, io.BufferedIOBase) else io.BufferedReader(stream)  # type: ignore[type-var]
    first = reader.readline(_WHOLE)
    while first and not first.strip():
        first = reader.readline(_WHOLE)
    if not first:
        raise HeadraceError("there is nothing to send: the input is empty")
    if kind is None:
        kind = _guess(first)
    if kind in ("json", "arrow"):
        body = first + reader.read(_WHOLE - len(first) + 1)
        if len(body) > _WHOLE:
            raise HeadraceError(
                f"one {kind} document may have {_WHOLE // 2**20} MiB; send NDJSON or CSV, which is cut into parts"
            )
        yield body, kind, len(body)
        return
    header = first if kind == "csv" else b""
    lines, size = ([], 0) if header else ([first], len(first))
    quotes, started = 0, time.monotonic()
    for line in iter(lambda: reader.readline(_WHOLE), b""):
        lines.append(line)
        size += len(line)
        quotes += line.count(b'"') if header else 0  # a CSV value in quotes may hold line breaks
        if not quotes % 2 and (size >= _CHUNK or time.monotonic() - started > 0.5):
            yield header + b"".join(lines), kind, size
            lines, size, quotes, started = [], 0, 0, time.monotonic()
    if lines or header:
        yield header + b"".join(lines), kind, size + len(header)


def _guess(first: bytes) -> str:
    """The format, by the first line."""
    text = first.strip()
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "ndjson" if text.endswith(b"}") else "json"
    if first[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    return "csv"
