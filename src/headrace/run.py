"""`headrace run`: the process around a Runtime. Signals, the HTTP server, the changed configuration, the log lines."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from headrace.config import Config
from headrace.errors import HeadraceError
from headrace.runtime import Runtime

logger = structlog.get_logger("headrace")


def configure_logging(*, json: bool) -> None:
    """One structured line for each change of state, on stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer()
            if json
            else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def main(
    config: Config, *, reload: Callable[[], Config] | None = None, announce: Callable[[str], None] = print
) -> int:
    """Run until SIGINT or SIGTERM; SIGHUP or a changed file loads the configuration anew. Gives the exit code."""
    from headrace.serve.app import create_app
    from headrace.serve.server import Server

    configure_logging(json=not sys.stderr.isatty())
    sys.setswitchinterval(0.0002)  # epochs and requests share the interpreter; long slices show as latency
    stop, changed = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        stop.set()
        changed.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: changed.set())
    runtime = Runtime(config)
    server = Server(create_app(runtime), config.server.host, config.server.port)
    try:
        server.start()
        runtime.start_all()
        _settle_memory()
        announce(f"http://{_shown(config.server.host)}:{server.port}/")
        _watch(runtime, reload, stop, changed)
        logger.info("stopping; what was accepted is in the log")
    finally:
        server.stop()
        runtime.close()
    return 0


def _settle_memory() -> None:
    """What is loaded by now stays for good: the garbage collector needn't look at it again, and batches of rows are
    freed by counting references, so it needn't look often either."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _watch(
    runtime: Runtime, reload: Callable[[], Config] | None, stop: threading.Event, changed: threading.Event
) -> None:
    """Until `stop`: take over a changed configuration, on SIGHUP or when the file has changed."""
    seen = _mtime(runtime.config.file)
    while not stop.is_set():
        if changed.wait(1.0):
            changed.clear()
        elif _mtime(runtime.config.file) == seen:
            continue
        seen = _mtime(runtime.config.file)
        if reload is not None and not stop.is_set():
            try:
                runtime.reload(reload())
            except HeadraceError as error:
                logger.error(
                    "the changed configuration is not used; the one before goes on", error=str(error)
                )


def _shown(host: str) -> str:
    return "localhost" if host in ("127.0.0.1", "::1") else host


def _mtime(file: str) -> float:
    try:
        return Path(file).stat().st_mtime if file else 0.0
    except OSError:
        return 0.0
