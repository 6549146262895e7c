"""The whole HTTP surface as one ASGI app: a small dispatcher in front of the ingest route, the live streams and FastAPI."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from headrace.serve import live
from headrace.serve.data import data_routes
from headrace.serve.health import health_routes
from headrace.serve.ingest_route import IngestRoute
from headrace.serve.openapi import describe
from headrace.serve.page import page_routes
from headrace.serve.problems import (
    MEDIA_TYPE,
    ProblemError,
    Receive,
    Scope,
    Send,
    bug,
    for_status,
    from_error,
    send_problem,
)
from headrace.serve.runtime import Runtime
from headrace.serve.workers import Workers

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_SECURITY: list[tuple[bytes, bytes]] = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def create_app(runtime: Runtime) -> App:
    """The app for a runtime. Nothing is started before the server runs it."""
    return App(runtime)


class App:
    """The dispatcher. Checks the Host header first, so that no other site's name can be pointed at this server."""

    def __init__(self, runtime: Runtime) -> None:
        self._light = Workers("status", 4, 200)
        self._heavy = Workers("query", 4, 100)
        self._watch = Workers("live", 2, 2_000)
        self.ingest = IngestRoute(runtime)
        self.hub = live.Hub(runtime, self._watch)
        self._api = _fastapi(runtime, self._light, self._heavy)
        server = runtime.config.server
        self.max_connections = server.max_connections
        self._hosts = frozenset(
            name.lower() for name in (*_LOOPBACK, server.host, *server.hosts, socket.gethostname())
        )
        self._known_hosts: set[bytes] = set()

    async def close(self) -> None:
        """Send viewers away and refuse new work; requests at work are finished. May be called twice."""
        self.ingest.close()
        await self.hub.close()
        for workers in (self._light, self._heavy, self._watch):
            workers.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(receive, send)
            return
        problem = self._refused(scope)
        path: str = scope["path"]
        if problem is not None:
            await _refuse(scope, send, problem)
        elif kind == "websocket":
            if path == "/ws/dashboard":
                await live.websocket(self.hub, scope, receive, send)
            else:
                await _refuse(scope, send, ProblemError("not_found", "the WebSocket is at /ws/dashboard"))
        elif path == "/ingest" or path.startswith("/ingest/"):
            await self.ingest(scope, receive, send)
        else:
            await self._other(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def secured(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *_SECURITY]
            await send(message)

        try:
            if scope["path"] == "/api/v1/stream" and scope["method"] == "GET":
                await live.server_sent_events(self.hub, scope, receive, secured)
            else:
                await self._api(scope, receive, secured)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a problem and the log the cause
            # Starlette raises again what its handler has answered (and logged) already.
            if not started:
                await send_problem(secured, scope, bug(error, scope["path"]))

    def _refused(self, scope: Scope) -> ProblemError | None:
        host, origin = b"", None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if host not in self._known_hosts:
            name = _host_name(host)
            if name not in self._hosts and not _is_address(name):
                return ProblemError(
                    "wrong_host",
                    f"this server isn't called {name[:100]!r}; server.hosts in the configuration names more",
                )
            if len(self._known_hosts) < 100:
                self._known_hosts.add(host)
        # A browser names the page that asks. Reading by other sites is barred by having no CORS headers; this bars acting.
        if (
            origin is not None
            and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS"))
            and urlsplit(origin.decode("latin-1")).netloc.lower().encode("latin-1") != host.lower()
        ):
            return ProblemError("cross_site", f"the page at {origin.decode('latin-1')[:100]} is another site")
        return None

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.hub.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


def _host_name(host: bytes) -> str:
    """The name without the port, in lower case."""
    text = host.decode("latin-1").lower()
    head, colon, tail = text.rpartition(":")
    return (
        head
        if colon and (tail.isdigit() or not tail) and (not text.startswith("[") or head.endswith("]"))
        else text
    )


def _is_address(name: str) -> bool:
    """Whether a host is a bare IP address: no DNS answer can point one elsewhere, so any is safe."""
    family, text = (socket.AF_INET6, name[1:-1]) if name.startswith("[") else (socket.AF_INET, name)
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


async def _refuse(scope: Scope, send: Send, problem: ProblemError) -> None:
    if scope["type"] == "http":
        await send_problem(send, scope, problem, headers=[(b"connection", b"close"), *_SECURITY])
        return

    async def as_response(message: MutableMapping[str, Any]) -> None:
        await send({**message, "type": "websocket." + message["type"]})

    await send_problem(as_response, scope, problem)


# -- FastAPI ---------------------------------------------------------------------------------------


def _fastapi(runtime: Runtime, light: Workers, heavy: Workers) -> FastAPI:
    api = FastAPI(title="headrace", docs_url=None, redoc_url=None, openapi_url=None)
    api.include_router(data_routes(runtime, heavy))
    api.include_router(health_routes(runtime, light))
    api.include_router(page_routes(lambda: describe(api)))

    handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        RequestValidationError: _invalid,
        HTTPException: _http_error,
        ProblemError: _meant,
        Exception: _any_error,
    }
    for kind, handler in handlers.items():
        api.add_exception_handler(kind, handler)
    return api


def _response(request: Request, problem: ProblemError) -> Response:
    headers = {**problem.headers, "X-Request-Id": problem.request_id}
    return Response(problem.body(request.url.path), problem.status, headers, MEDIA_TYPE)


async def _meant(request: Request, error: ProblemError) -> Response:
    return _response(request, error)


async def _any_error(request: Request, error: Exception) -> Response:
    return _response(request, from_error(error) or bug(error, request.url.path))


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Starlette's own: no such route, no such method."""
    code = for_status(error.status_code)
    details = {
        "not_found": "there is no such route; /docs lists them",
        "method_not_allowed": f"{request.method} isn't offered here",
    }
    detail = details.get(code, str(error.detail))
    return _response(request, ProblemError(code, detail, headers=error.headers))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """Every parameter that isn't valid, by its place."""
    errors = [
        {"pointer": "/".join(str(part) for part in found["loc"]), "reason": str(found["msg"])[:500]}
        for found in error.errors()[:100]
    ]
    detail = "; ".join(f"{found['pointer']}: {found['reason']}" for found in errors[:3])
    return _response(request, ProblemError("invalid_request", detail, errors=errors))
