"""`headrace dlq`: look into the dead letters, send them again, or drop them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace.commands.client import Client, RefusedError, url_option
from headrace.commands.place import find_config, json_option, opened_log, place_options, topic_named
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.log import Log

F = TypeVar("F", bound=Callable[..., Any])

LETTERS, RESOLVED = "dead_letters", "dead_letters_resolved"
_ROWS = 20_000


@click.group()
def command() -> None:
    """Look into the dead letters, send them again, or drop them.

    Nothing is deleted: what was sent again or dropped is marked so, durably, and no longer listed.
    """


def filters(function: F) -> F:
    """Which dead letters a command is about."""
    for option in (
        click.option("--topic", metavar="NAME", help="Only those meant for this topic."),
        click.option("--component", metavar="NAME", help="Only those put aside by this component."),
        click.option("--code", metavar="CODE", help="Only those with this cause."),
        click.option("--id", "ids", multiple=True, metavar="ID", help="Only this one, as `ls` and `show` name it; can be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


@dataclass(frozen=True)
class Letter:
    """A dead letter that nothing was done about yet."""

    partition: int
    offset: int
    row: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.offset}"


@command.command("ls")
@filters
@place_options
@json_option
def ls(config_file: Path | None, data_dir: str | None, as_json: bool, **wanted: Any) -> None:
    """List causes: how many, since when, and one example to begin with."""
    from headrace.commands.output import echo_json, echo_table

    causes: dict[tuple[str, str, str], dict[str, Any]] = {}
    with opened_log(find_config(config_file, data_dir)) as log:
        for letter in _letters(log, **wanted):
            row = letter.row
            cause = causes.setdefault(
                (row["topic"], row["component"], row["code"]),
                {
                    "count": 0,
                    "first_seen": row["timestamp"],
                    "last_seen": row["timestamp"],
                    "reason": "",
                    "example": "",
                },
            )
            cause["count"] += 1
            cause["first_seen"] = min(cause["first_seen"], row["timestamp"])
            if row["timestamp"] >= cause["last_seen"]:
                cause |= {"last_seen": row["timestamp"], "reason": row["reason"], "example": letter.id}
    names = ("topic", "component", "code")
    found = [dict(zip(names, key, strict=True)) | cause for key, cause in causes.items()]
    found.sort(key=lambda cause: -cause["count"])
    if as_json:
        echo_json(found)
    elif found:
        echo_table(list(found[0]), [list(cause.values()) for cause in found], max_width=48)
    else:
        click.echo("no dead letters")


@command.command("show")
@filters
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Show the newest so many."
)
@place_options
@json_option
def show(limit: int, config_file: Path | None, data_dir: str | None, as_json: bool, **wanted: Any) -> None:
    """Show dead letters with their original bytes, the newest last."""
    from collections import deque

    from headrace.commands.output import as_text, echo_json

    with opened_log(find_config(config_file, data_dir)) as log:
        letters = deque(_letters(log, **wanted), maxlen=limit)
    if as_json:
        echo_json([{"id": letter.id, **letter.row, "raw": as_text(letter.row["raw"])} for letter in letters])
        return
    for letter in letters:
        row = letter.row
        click.echo(
            click.style(f"{letter.id}  {row['timestamp']:%Y-%m-%d %H:%M:%S}  {row['topic']}", bold=True)
        )
        click.echo(f"  {row['component']}: {row['code']}: {row['reason']}")
        click.echo(f"  {(as_text(row['raw']) or '')[:2000]!r}")


@command.command("replay")
@filters
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="PATH=VALUE",
    help="Set a value inside the JSON first, such as payload.temperature=21.5; can be repeated.",
)
@click.option("--edit", is_flag=True, help="Open each in $EDITOR first.")
@click.option("--all", "everything", is_flag=True, help="Allow it without any filter.")
@url_option
@place_options
@json_option
def replay(
    sets: tuple[str, ...], edit: bool, everything: bool, url: str | None, config_file: Path | None, data_dir: str | None,
    as_json: bool, **wanted: Any,
) -> int:  # fmt: skip
    """Send dead letters again, perhaps corrected, through a running headrace.

    One that is rejected again comes back as a new dead letter.
    """
    _need_filter(everything, wanted)
    client = Client(url)
    counts = {"accepted": 0, "rejected": 0, "unchanged": 0}
    with opened_log(find_config(config_file, data_dir)) as log:
        letters = list(_letters(log, **wanted))
        with _bar(len(letters), "sending") as bar:
            for letter in letters:
                try:
                    body = _corrected(letter, sets, edit)
                except HeadraceError as error:  # the others can be sent all the same
                    click.echo(str(error), err=True)
                    body = None
                if body is None:
                    counts["unchanged"] += 1
                else:
                    outcome, reason = _send(client, letter, body)
                    counts[outcome] += 1
                    _resolve(log, [letter], "replay", reason)
                bar.update(1)
    _say(counts, as_json)
    return 1 if counts["rejected"] or counts["unchanged"] else 0


@command.command("drop")
@filters
@click.option("--reason", default="", help="Why, for whoever looks later.")
@click.option("--all", "everything", is_flag=True, help="Allow it without any filter.")
@place_options
@json_option
def drop(
    reason: str,
    everything: bool,
    config_file: Path | None,
    data_dir: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Mark dead letters as done with, so that they are no longer listed."""
    _need_filter(everything, wanted)
    count = 0
    with opened_log(find_config(config_file, data_dir)) as log:
        letters = list(_letters(log, **wanted))
        with _bar(len(letters), "dropping") as bar:
            for start in range(0, len(letters), _ROWS):
                part = letters[start : start + _ROWS]
                _resolve(log, part, "drop", reason)
                count += len(part)
                bar.update(len(part))
    _say({"dropped": count}, as_json)


# -- reading -----------------------------------------------------------------------------------------


def _letters(
    log: Log, *, topic: str | None, component: str | None, code: str | None, ids: tuple[str, ...]
) -> Iterator[Letter]:
    """Dead letters that nothing was done about, oldest first."""
    import pyarrow.compute as pc

    wanted = {_place(text) for text in ids}
    done = _resolved(log)
    for partition in range(topic_named(log, LETTERS).partitions):
        extent = log.extent(LETTERS, partition)
        position = extent.start
        while position < extent.end:
            span = log.bounded(LETTERS, partition, position, max_rows=_ROWS, max_bytes=2**25)
            if not len(span):
                break
            rows = log.read(LETTERS, partition, span)
            keep = None
            for name, value in (("topic", topic), ("component", component), ("code", code)):
                if value is not None:
                    match = pc.equal(rows.column(name), value)
                    keep = match if keep is None else pc.and_(keep, match)
            indices = range(len(span)) if keep is None else pc.indices_nonzero(keep).to_pylist()
            indices = [
                i for i in indices
                if (partition, span.start + i) not in done and (not wanted or (partition, span.start + i) in wanted)
            ]  # fmt: skip
            # Row by row: each is looked at, edited and sent by itself.
            for i, row in zip(indices, rows.take(indices).to_pylist() if indices else [], strict=True):
                yield Letter(partition, span.start + i, row)
            position = span.end


def _place(text: str) -> tuple[int, int]:
    partition, dash, offset = text.partition("-")
    if not (dash and partition.isdigit() and offset.isdigit()):
        raise click.UsageError(f"{text!r} is not an id; `headrace dlq show` gives them")
    return int(partition), int(offset)


def _resolved(log: Log) -> set[tuple[int, int]]:
    """Places of dead letters that something was done about."""
    from headrace.model import Span

    found: set[tuple[int, int]] = set()
    if RESOLVED not in log.topics():
        return found
    extent = log.extent(RESOLVED, 0)
    for start in range(extent.start, extent.end, _ROWS):
        rows = log.read(RESOLVED, 0, Span(start, min(start + _ROWS, extent.end)))
        found.update(
            zip(rows.column("partition").to_pylist(), rows.column("offset").to_pylist(), strict=True)
        )
    return found


# -- doing -------------------------------------------------------------------------------------------


def _need_filter(everything: bool, wanted: dict[str, Any]) -> None:
    if not everything and not any(wanted.values()):
        raise click.UsageError("say which: --topic, --component, --code or --id; or --all")


def _corrected(letter: Letter, sets: tuple[str, ...], edit: bool) -> bytes | None:
    """The bytes to send; None when the editor was closed without saving. Raises HeadraceError where --set can't work."""
    raw: bytes = letter.row["raw"]
    if sets:
        raw = _with_values(letter, raw, sets)
    if edit:
        from headrace.commands.output import as_text

        note = f"# {letter.row['code']}: {' '.join(letter.row['reason'].split())}\n"
        text = click.edit(note + (as_text(raw) or ""), extension=".json")
        if text is None:
            return None
        # The note may have been edited along with the rest; JSON never begins with #.
        raw = (text.partition("\n")[2] if text.startswith("#") else text).strip().encode()
    return raw


def _with_values(letter: Letter, raw: bytes, sets: tuple[str, ...]) -> bytes:
    from headrace.yaml_positions import Document, parse_path, parse_value

    try:
        document = Document(json.loads(raw))
    except ValueError:
        raise HeadraceError(f"{letter.id} is not JSON, so --set can't change it; use --edit") from None
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--set {text}: write PATH=VALUE")
        try:
            document.put(parse_path(name), parse_value(value), "")
        except LookupError as error:
            raise HeadraceError(f"{letter.id}: {error}") from None
    return json.dumps(document.value).encode()


def _send(client: Client, letter: Letter, body: bytes) -> tuple[str, str]:
    """(`accepted` or `rejected`, why)."""
    import urllib.parse

    # The key makes a repeat after a crash between sending and marking harmless.
    key = f"dlq-{letter.id}-{hashlib.sha256(body).hexdigest()[:16]}"
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    try:
        answer = client.post(f"/ingest/{urllib.parse.quote(letter.row['topic'], safe='')}", body, headers)
    except RefusedError as error:
        if "rejected" not in error.problem:
            raise
        return "rejected", f"rejected again: {error}"
    return ("rejected", "rejected again") if answer.get("rejected") else ("accepted", "accepted")


def _resolve(log: Log, letters: list[Letter], action: str, reason: str) -> None:
    import pyarrow as pa

    from headrace.clock import SystemClock
    from headrace.model import TIMESTAMP, Topic
    from headrace.plan import DEAD_LETTERS_RESOLVED

    if RESOLVED not in log.topics():
        log.create(Topic(RESOLVED, DEAD_LETTERS_RESOLVED))
    count, now_us = len(letters), SystemClock().now_us()
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array([now_us] * count, TIMESTAMP),
            pa.array([letter.partition for letter in letters], pa.int32()),
            pa.array([letter.offset for letter in letters], pa.int64()),
            pa.array([action] * count, pa.string()),
            pa.array([reason or None] * count, pa.string()),
        ],
        schema=DEAD_LETTERS_RESOLVED,
    )
    log.append(RESOLVED, 0, rows)


def _bar(length: int, label: str) -> Any:
    from headrace.commands.output import progress

    return progress(length, label)


def _say(counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        from headrace.commands.output import echo_json

        echo_json(counts)
    else:
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
