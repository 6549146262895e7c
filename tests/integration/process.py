"""A real `headrace run` process for tests: on a free port, ended by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Headrace:
    """Started by making one. Use `terminate` or `kill`; as a context manager it is terminated at the end."""

    def __init__(self, config: Path | None, data_dir: Path, port: int | None = None, *options: str) -> None:
        self.port = port or free_port()
        self.data_dir = data_dir
        command = [sys.executable, "-m", "headrace.cli", "run", *([str(config)] if config else [])]
        command += ["--data-dir", str(data_dir), "--port", str(self.port), *options]
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log_file = data_dir.parent / f"{data_dir.name}.log"
        source = str(Path(__file__).resolve().parents[2] / "src")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": source, "PYTHONUNBUFFERED": "1"},
            )

    def __enter__(self) -> Headrace:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def wait_ready(self, seconds: float = 30) -> Headrace:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log_file.read_text()[-3000:]
            with contextlib.suppress(OSError, urllib.error.HTTPError):
                if self.get("/ready") is not None:
                    return self
            time.sleep(0.03)
        raise AssertionError("not ready: " + self.log_file.read_text()[-3000:])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def terminate(self, seconds: float = 20) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError("did not stop: " + self.log_file.read_text()[-3000:]) from None
        return self.process.returncode

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers (lower case), whatever the status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, headers=dict(headers or {}), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}

    def get(self, path: str) -> Any:
        status, body, _ = self.request("GET", path)
        if status >= 300:
            return None
        return json.loads(body)

    def post(self, events: Sequence[Mapping[str, Any]], path: str = "/ingest") -> Any:
        body = json.dumps(list(events)).encode()
        status, answer, _ = self.request("POST", path, body, {"Content-Type": "application/json"})
        assert status < 300, (status, answer)
        return json.loads(answer)

    def query(self, sql: str, max_rows: int = 100_000) -> list[dict[str, Any]]:
        body = json.dumps({"sql": sql, "max_rows": max_rows}).encode()
        status, answer, _ = self.request("POST", "/api/v1/query", body, {"Content-Type": "application/json"})
        assert status == 200, (status, answer[:500])
        rows: list[dict[str, Any]] = json.loads(answer)["data"]
        return rows
