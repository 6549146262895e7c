"""Senders for tests of the real process: threads that push numbered events and know what was acknowledged."""

from __future__ import annotations

import http.client
import json
import threading
import time
from types import TracebackType
from typing import Self


class Sender(threading.Thread):
    """Sends numbered events of one key until it is stopped; each body again and again until it is acknowledged.

    `acknowledged` is the number of events that are in, `statuses` counts the answers.
    """

    def __init__(self, key: str, port: int, *, rows: int = 50, pause: float = 0.01, padding: int = 0) -> None:
        super().__init__(daemon=True)
        self.key = key
        self.acknowledged = 0
        self.statuses: dict[int, int] = {}
        self.retry_after: set[str] = set()
        self._port, self._rows, self._pause, self._padding = port, rows, pause, "x" * padding
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Returns after the body in flight was acknowledged or refused."""
        self._ended.set()
        self.join(30)
        assert not self.is_alive()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._ended.is_set():
            first = self.acknowledged
            payload = {"padding": self._padding} if self._padding else {}
            body = "\n".join(
                json.dumps({"sourceId": self.key, "payload": {"seq": seq, **payload}})
                for seq in range(first, first + self._rows)
            )
            headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": f"{self.key}/{first}"}
            try:
                connection.request("POST", "/ingest", body, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.05)
                continue
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            if answer.status == 200:
                self.acknowledged += self._rows
            elif answer.headers.get("Retry-After"):
                self.retry_after.add(answer.headers["Retry-After"])
            time.sleep(self._pause)
        connection.close()
