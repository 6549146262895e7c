"""A headrace process for a bench: started on a free port with its own data directory, ended by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    data_dir: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def wait_ready(self, seconds: float = 30) -> float:
        """Seconds until /ready answered 200."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.process.poll() is not None:
                raise RuntimeError(f"headrace ended with {self.process.returncode}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5).close()
                return time.monotonic() - began
            time.sleep(0.02)
        raise RuntimeError("headrace did not get ready")

    def rss_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(config: Path, data_dir: Path, port: int | None = None) -> Server:
    port = port or free_port()
    command = [
        sys.executable,
        "-m",
        "headrace.cli",
        "run",
        str(config),
        "--data-dir",
        str(data_dir),
        "--port",
        str(port),
    ]
    log = (data_dir.parent / f"{data_dir.name}.log").open("ab")
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    return Server(process, port, data_dir)


@contextlib.contextmanager
def running(config: Path, data_dir: Path) -> Iterator[Server]:
    """A ready server; stopped by SIGTERM at the end."""
    server = start(config, data_dir)
    try:
        server.wait_ready()
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        try:
            server.process.wait(20)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
