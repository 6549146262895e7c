"""Runs the app: sockets first, so that a taken port is a clear error; then uvicorn, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from headrace.errors import ConfigError
from headrace.serve.app import App

MAX_HEAD = 64 * 2**10
HEAD_SECONDS = 15.0
ABORT_SECONDS = 5.0


class Server:
    """The app on its sockets, in a thread of its own."""

    def __init__(self, app: App, host: str, port: int) -> None:
        self._app = app
        self._host = host
        self.port = port
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen, and come back once requests are answered. `port` is the real one then. Raises ConfigError."""
        sockets = listen(self._host, self.port)
        self.port = sockets[0].getsockname()[1]
        started = threading.Event()
        self._thread = threading.Thread(
            target=serve,
            args=(self._app, sockets, self._stop),
            kwargs={"started": started.set},
            name="serve",
            daemon=True,
        )
        self._thread.start()
        if not started.wait(30):
            raise RuntimeError("the HTTP server did not start; its log tells why")

    def stop(self) -> None:
        """Finish requests at work, send viewers away, and close: within about a second. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`; port 0 takes a free one. Raises ConfigError with what to do."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"server.host: {host!r} is no address of this machine ({error.strerror})"
        ) from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            taken = sockets[0].getsockname()[1] if sockets else port
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], taken, *address[2:]))
            sock.listen(2048)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(_why(host, port, error)) from error
    return sockets


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"server.port: {port} on {host} is in use by another program; choose another with --port or HEADRACE_PORT"
    if error.errno == errno.EACCES:
        return f"server.port: this user may not listen on port {port}; choose one above 1023"
    return f"server.host: can't listen on {host}:{port}: {error.strerror or error}"


def serve(
    app: App,
    sockets: Sequence[socket.socket],
    stop: threading.Event,
    *,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve until `stop` is set, then finish requests at work within a second. Closes the sockets.

    Runs in any thread and leaves signals alone. `started` is called once requests are answered.
    """
    server = _Server(
        uvicorn.Config(
            app,
            loop="auto",
            http=_Http,
            ws=_WebSocket,
            ws_max_size=64 * 2**10,
            ws_ping_interval=15,
            ws_ping_timeout=15,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=app.max_connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
    )

    async def run() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch() -> None:
            stop.wait()
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(stopping.set)

        threading.Thread(target=watch, name="serve-stop", daemon=True).start()
        serving = asyncio.create_task(server.serve(list(sockets)))
        asked = asyncio.create_task(stopping.wait())
        while not server.started and not serving.done() and not asked.done():
            await asyncio.sleep(0.005)
        if server.started:
            started()
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        await app.close()
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(run())


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Signals belong to whoever runs this."""
        yield


class _Http(HttpToolsProtocol):
    """uvicorn's protocol with two bounds that it lacks: on the size of a request's head, and on how long one may take."""

    _in_head = True
    _head = 0
    _timer: asyncio.TimerHandle | None = None
    _answering: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        # uvicorn tells only the last request parsed; with pipelining, the one being answered is another.
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_head = self._in_head
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head = self._head + len(data) if was_head else 0
        if self._head > MAX_HEAD:
            self.send_400_response("The head of the request is too large.")
        elif self._timer is None:
            self._watch()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head = 0
        self._unwatch()
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _watch(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's protocol, able to send away a client that doesn't read."""

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and not self.writable.is_set():
            # The close frame goes behind what is unread; after a while the connection is cut.
            self.writable.set()
            self.loop.call_later(ABORT_SECONDS, self.transport.abort)
        await super().send(message)
