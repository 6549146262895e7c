"""`headrace doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from headrace.commands.client import Client, UnreachableError, url_option
from headrace.commands.place import find_config, json_option, place_options
from headrace.errors import ConfigError, DataDirInUseError, HeadraceError

if TYPE_CHECKING:
    from headrace.config import Config

_FREE = 2 * 2**30  # bytes below which a data directory soon fills
_SLOW_FSYNC = 100  # writes a second below which acknowledgements are felt


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `advice` says what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


@click.command()
@url_option
@place_options
@json_option
def command(url: str | None, config_file: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Look at this machine, the data directory and the server. Exit code 1 when something can't work."""
    from headrace.commands.output import echo_json

    findings = list(_look(config_file, data_dir, url))
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        colors = {"ok": "green", "warn": "yellow", "fail": "red"}
        for finding in findings:
            advice = f"; {finding.advice}" if finding.advice else ""
            click.echo(
                f"{click.style(finding.status.ljust(4), fg=colors[finding.status])}  {finding.name}: {finding.found}{advice}"
            )
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def _look(config_file: Path | None, data_dir: str | None, url: str | None) -> Iterator[Finding]:
    old = sys.version_info < (3, 11)
    yield Finding(
        "python", "fail" if old else "ok", platform.python_version(), "3.11 or newer is needed" if old else ""
    )
    old = sqlite3.sqlite_version_info < (3, 35)
    yield Finding(
        "sqlite", "fail" if old else "ok", sqlite3.sqlite_version, "3.35 or newer is needed" if old else ""
    )
    try:
        config = find_config(config_file, data_dir, used=False)
    except ConfigError as error:
        yield Finding("config", "fail", str(error), "fix the file")
        return
    yield Finding(
        "config", "ok", f"{config.file or 'the shipped configuration'}: {len(config.pipelines)} pipelines"
    )
    yield from _disk(config)
    yield from _readers(config)
    running = _server(url or _address(config))
    yield running
    yield _lock(config, running.status != "warn")
    if running.status == "warn":
        yield _port(config)


def _address(config: Config) -> str | None:
    if os.environ.get("HEADRACE_URL") or os.environ.get("HEADRACE_PORT") or not config.server.port:
        return None
    host = config.server.host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{config.server.port}"  # noqa: S104 - not bound here


def _readers(config: Config) -> Iterator[Finding]:
    from headrace.commands.place import has_log, opened_log
    from headrace.runtime import strangers

    if has_log(config) and config.log.partition("://")[0] == "sqlite":
        with opened_log(config) as log:
            gone = strangers(config, log)
        advice = "let go of their rows with `headrace forget READER`" if gone else ""
        yield Finding(
            "readers", "warn" if gone else "ok", ", ".join(gone) or "all are in the configuration", advice
        )


def _disk(config: Config) -> Iterator[Finding]:
    # The directory need not exist yet; what counts is the disk it would be on.
    place = next(p for p in (config.data_dir, *config.data_dir.parents) if p.is_dir())
    if not os.access(place, os.W_OK):
        yield Finding(
            "data directory", "fail", f"{place} can't be written to", "choose another with --data-dir"
        )
        return
    free = shutil.disk_usage(place).free
    low = free < _FREE
    yield Finding(
        "disk",
        "warn" if low else "ok",
        f"{free / 2**30:.1f} GiB free under {config.data_dir}",
        "make room" if low else "",
    )
    rate = _fsync_rate(place)
    slow = rate < _SLOW_FSYNC
    yield Finding(
        "fsync", "warn" if slow else "ok", f"{rate:.0f} durable writes a second",
        "acknowledgements will be slow; a local SSD is better" if slow else "",
    )  # fmt: skip


def _fsync_rate(place: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=place, prefix=".headrace-doctor-") as file:
        started, count = time.monotonic(), 0
        while (passed := time.monotonic() - started) < 0.5 and count < 2000:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            count += 1
    return count / max(passed, 1e-6)


def _server(url: str | None) -> Finding:
    client = Client(url)
    try:
        health = client.get("/api/v1/health", timeout=5)
    except UnreachableError:
        return Finding("server", "warn", f"nothing answers at {client.url}", "`headrace run` starts it")
    except HeadraceError as error:
        return Finding("server", "warn", str(error))
    status = str(health.get("status", "unknown"))
    bad = [
        f"{c.get('name')}: {c.get('reason')}"
        for c in health.get("components", ())
        if c.get("status") not in ("ok", None)
    ]
    return Finding("server", "ok" if status == "ok" else "warn", f"{client.url} is {status}", "; ".join(bad))


def _lock(config: Config, running: bool) -> Finding:
    from headrace.log.lock import DataDirLock

    if not config.data_dir.is_dir():
        return Finding("data directory", "ok", f"{config.data_dir} is made at the first run")
    try:
        with DataDirLock(config.data_dir):
            return Finding("data directory", "ok", f"{config.data_dir} is free")
    except DataDirInUseError as error:
        if running:
            return Finding("data directory", "ok", f"{config.data_dir} is used by the running headrace")
        return Finding("data directory", "warn", str(error))


def _port(config: Config) -> Finding:
    host, port = config.server.host, config.server.port
    if not port:
        return Finding("port", "ok", "any free one is taken")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                "port", "fail", f"{host}:{port}: {error.strerror or error}", "give another with --port"
            )
    return Finding("port", "ok", f"{host}:{port} is free")
