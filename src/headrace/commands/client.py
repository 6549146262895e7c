"""Plain HTTP to a running headrace."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import click

from headrace.errors import HeadraceError

url_option = click.option(
    "--url", metavar="URL", help="Address of the server. Default: HEADRACE_URL, else HEADRACE_HOST and HEADRACE_PORT, else http://127.0.0.1:8080."
)  # fmt: skip

_RETRY = (429, 503, 507)
_PATIENCE = 30.0  # seconds for which a busy server is asked again


class UnreachableError(HeadraceError):
    """Nobody answers at the server's address."""

    exit_code = 3


class RefusedError(HeadraceError):
    """The server answered with an error. `problem` is its problem+json."""

    def __init__(self, message: str, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


def server_url(url: str | None) -> str:
    """The address to talk to, without a slash at the end. Raises click.UsageError for one that is none."""
    host = os.environ.get("HEADRACE_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - not bound here
    port = os.environ.get("HEADRACE_PORT") or "8080"
    found = url or os.environ.get("HEADRACE_URL") or f"http://{host}:{port}"
    parts = urllib.parse.urlsplit(found if "://" in found else f"http://{found}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.UsageError(f"{found!r} is not an address such as http://127.0.0.1:8080")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


class Client:
    """Requests to one server. A busy server is asked again for a while; every request must bear that."""

    def __init__(self, url: str | None = None) -> None:
        self.url = server_url(url)
        host = urllib.parse.urlsplit(self.url).hostname or ""
        # A proxy can't reach this machine's own loopback.
        direct = (
            [urllib.request.ProxyHandler({})]
            if host in ("localhost", "::1") or host.startswith("127.")
            else []
        )
        self._opener = urllib.request.build_opener(*direct)

    def get(self, path: str, *, timeout: float = 10) -> Any:
        return self._json(urllib.request.Request(self.url + path), timeout)  # noqa: S310 - http(s) only, checked above

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout: float = 60) -> Any:
        """The decoded answer. Raises RefusedError, or UnreachableError."""
        request = urllib.request.Request(self.url + path, data=body, headers=dict(headers), method="POST")  # noqa: S310
        return self._json(request, timeout)

    def _json(self, request: urllib.request.Request, timeout: float) -> Any:
        token = os.environ.get("HEADRACE_TOKEN")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with self._opener.open(request, timeout=timeout) as response:
                    content = response.read()
                return json.loads(content) if content else {}
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in _RETRY and (pause := _pause(error)) + time.monotonic() < deadline:
                        time.sleep(pause)
                        continue
                    raise _refused(error) from None
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = getattr(error, "reason", error)
                raise UnreachableError(
                    f"no headrace answers at {self.url} ({reason}); start it with `headrace run`, or give --url"
                ) from None
            except ValueError:
                raise HeadraceError(
                    f"{self.url} answers, but not as headrace does; is the address right?"
                ) from None


def _pause(error: urllib.error.HTTPError) -> float:
    try:
        return min(max(float(error.headers.get("Retry-After", "1")), 0.1), 10.0)
    except ValueError:
        return 1.0


def _refused(error: urllib.error.HTTPError) -> RefusedError:
    try:
        problem = json.loads(error.read())
        text = ": ".join(str(problem[k]) for k in ("title", "detail") if problem.get(k))
    except (ValueError, AttributeError, TypeError, OSError):
        problem, text = {}, error.reason
    return RefusedError(f"the server refused ({error.code}): {text or error.reason}", error.code, problem)
