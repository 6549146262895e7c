"""Which headrace a command is about: its configuration, data directory and log."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.config import Config
    from headrace.log import Log

F = TypeVar("F", bound=Callable[..., Any])

_NOTE = "run.json"  # in the data directory: which configuration the last run used

_SECRET = re.compile(
    r"secret|passw|passphrase|pwd|token|credential|authorization|bearer|(api|access|private|account)_?key",
    re.IGNORECASE,
)
_USER = re.compile(r"://[^/@\s]+@")
_ONLY_SECRETS = "storage_options"

set_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Lay a value over the file; can be repeated.",
)
data_dir_option = click.option(
    "--data-dir",
    metavar="DIR",
    help="Where headrace keeps its data. Default: HEADRACE_DATA_DIR, else the file's, else ./headrace-data.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Give the result as JSON.")


def place_options(command: F) -> F:
    """`--config` and `--data-dir`, for commands that look at a headrace that runs or ran."""
    config = click.option(
        "--config", "-c", "config_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Configuration file. Default: the one that the data directory was last run with.",
    )  # fmt: skip
    return config(data_dir_option(command))


def note_run(config: Config, file: Path | None, sets: Sequence[str], demo: bool) -> None:
    """Remember in the data directory how it is run, so that `headrace query` and others find the same topics.

    Secrets given by `--set` are not kept.
    """
    kept = [text for text in map(_kept, sets) if text]
    note = {"config": str(file.absolute()) if file else None, "sets": kept, "demo": demo}
    path = config.data_dir / _NOTE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        path.chmod(0o600)  # also of a file that was there
        json.dump(note, out)


def _kept(text: str) -> str:
    """What the commands beside a server need of a `--set`: perhaps nothing, and never a secret."""
    from headrace.yaml_positions import parse_path, parse_value

    name, _, value = text.partition("=")
    path = parse_path(name.strip())
    if path[0] == "engine" or (path[0] == "server" and path[1:] not in (("host",), ("port",))):
        return ""
    if _ONLY_SECRETS in path:
        return ""
    found = parse_value(value)
    masked = _masked(found, any(_SECRET.search(str(part)) for part in path))
    return text if masked == found else f"{name}={json.dumps(masked)}"


def _masked(value: Any, secret: bool) -> Any:
    """The value with other texts in place of secrets, of the same type so that it still fits its option."""
    if isinstance(value, dict):
        return {
            k: _masked(v, secret or bool(_SECRET.search(str(k))))
            for k, v in value.items()
            if k != _ONLY_SECRETS
        }
    if isinstance(value, list):
        return [_masked(item, secret) for item in value]
    if isinstance(value, str):
        return "not-kept" if secret else _USER.sub("://not-kept@", value)
    return 0 if secret and isinstance(value, int) and not isinstance(value, bool) else value


def find_config(config_file: Path | None, data_dir: str | None, *, used: bool = True) -> Config:
    """The configuration that a command is about: the given one, else that of the last run, else the shipped one.

    With `used`, raises HeadraceError when nothing has ever run in the data directory.
    """
    from headrace.config import DATA_DIR, load_config

    if config_file is not None:
        return load_config(config_file, data_dir=data_dir, ask=False)
    directory = Path(data_dir or os.environ.get("HEADRACE_DATA_DIR") or DATA_DIR).expanduser().absolute()
    if used and not directory.is_dir():
        raise HeadraceError(_nothing(directory))
    try:
        note = json.loads((directory / _NOTE).read_text("utf-8"))
        file, sets, demo = note["config"], [str(s) for s in note["sets"]], bool(note["demo"])
    except (OSError, ValueError, KeyError, TypeError):
        return load_config(None, data_dir=directory, ask=False)
    return load_config(Path(file) if file else None, sets=sets, demo=demo, data_dir=directory, ask=False)


def has_log(config: Config) -> bool:
    return config.log.partition("://")[0] != "sqlite" or (config.data_dir / "log.db").exists()


@contextmanager
def opened_log(config: Config) -> Iterator[Log]:
    """The log beside whoever else uses it. Raises HeadraceError when there is none: looking must not make one."""
    from headrace.clock import SystemClock
    from headrace.log import open_log

    if config.log.partition("://")[0] == "memory":
        raise HeadraceError(
            "this configuration keeps its log in memory; only the running process can read it"
        )
    if not has_log(config):
        raise HeadraceError(_nothing(config.data_dir))
    log = open_log(config.log, config.data_dir, clock=SystemClock())
    try:
        yield log
    finally:
        log.close()


def _nothing(directory: Path) -> str:
    return f"there is no headrace data in {directory}; give --data-dir, or start `headrace run`"


def topic_named(log: Log, name: str) -> Any:
    """A topic of the log, or an error that says which there are."""
    from headrace.options import suggest

    topics = log.topics()
    if name not in topics:
        raise HeadraceError(f"there is no topic {name!r}{suggest(name, topics)}")
    return topics[name]
