"""Live updates: one producer computes each frame once, and fans it out over WebSocket and server-sent events.

A frame is `{"event", "seq", "at", "data"}`. `seq` grows by one from frame to frame, so a client that comes back with
`?since=SEQ` gets what it missed, as far as the ring reaches. While nobody watches, the producer only notes one point a
second of the history that the next viewer is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import structlog

from headrace.serve.json_text import encode_json
from headrace.serve.observe import Observer
from headrace.serve.problems import Receive, Scope, Send
from headrace.serve.runtime import Runtime
from headrace.serve.workers import Workers

TICK = 0.25
"""Seconds between two looks at the log: 4 updates a second at most."""
IDLE_TICK = 1.0
RING_FRAMES = 600
RING_BYTES = 8 * 2**20
CLIENT_FRAMES = 64
"""Frames that wait for a client, not counting what the socket holds."""
DRAIN_SECONDS = 10.0
MAX_CLIENTS = 1_000
RESUME_SECONDS = 60.0
"""How long the producer goes on after the last client left, so that a client may come back without a gap."""
STATE_SECONDS = 1.0
TOO_SLOW = 1013
GOING_AWAY = 1001

_REASONS = {
    TOO_SLOW: "too slow, or too many viewers; come back with ?since=",
    GOING_AWAY: "headrace is shutting down",
}

_log = structlog.get_logger("headrace.serve")


@dataclass(frozen=True, slots=True)
class Frame:
    """One event, encoded once for all clients."""

    seq: int
    event: str
    text: str


Wrap: TypeAlias = Callable[[Frame], dict[str, Any]]


class Client:
    """Frames on their way to one viewer. Bounded: a newer `data_update` replaces a waiting one, others are kept."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._news = asyncio.Event()
        self.end: int | None = None
        self.ended = asyncio.Event()

    def offer(self, frame: Frame) -> None:
        if self.end is not None:
            return
        if len(self._frames) >= CLIENT_FRAMES // 2 and frame.event in ("data_update", "metrics_update"):
            # Behind: of these only the newest says anything, so the oldest of its kind makes room.
            oldest = next((waiting for waiting in self._frames if waiting.event == frame.event), None)
            if oldest is not None:
                self._frames.remove(oldest)
        if len(self._frames) >= CLIENT_FRAMES:
            self.close(TOO_SLOW)
            return
        self._frames.append(frame)
        self._news.set()

    def close(self, code: int) -> None:
        """End the stream with a close code; what waits is dropped."""
        self.end = code
        self._frames.clear()
        self._news.set()
        self.ended.set()

    def waiting(self) -> Sequence[Frame]:
        """What hasn't been sent yet, oldest first."""
        return tuple(self._frames)

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames as they come, until closed."""
        while self.end is None:
            await self._news.wait()
            self._news.clear()
            while self._frames:
                yield self._frames.popleft()


class Hub:
    """The producer and its clients. Lives in the server's event loop."""

    def __init__(self, runtime: Runtime, workers: Workers) -> None:
        self._runtime = runtime
        self._workers = workers
        self._observer = Observer(runtime)
        self._clients: set[Client] = set()
        self._ring: deque[Frame] = deque()
        self._ring_bytes = 0
        # Starting at the time makes numbers of an earlier run smaller than all of this one.
        self._seq = runtime.clock.now_us() // 1_000
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._asking = asyncio.Lock()
        self._state: tuple[float, int, dict[str, Any]] | None = None

    def start(self) -> None:
        """Begin to produce; called in the event loop, once."""
        self._task = asyncio.get_running_loop().create_task(self._produce())

    # -- clients -----------------------------------------------------------------------------------

    async def join(self, since: int | None) -> tuple[Client, Sequence[Frame]]:
        """A new client, and what it gets first: `hello` with the present state, then what it missed since `since`."""
        seq, state = await self._present()
        # From here to the end nothing is awaited: no frame falls between the state and the live stream.
        resumed = since is not None and (
            since == self._seq or (bool(self._ring) and self._ring[0].seq - 1 <= since < self._seq)
        )
        missed = [
            frame for frame in self._ring if frame.seq > (since if resumed and since is not None else seq)
        ]
        hello = self._frame("hello", {"resumed": resumed, "tick": TICK, **state}, seq)
        client = Client()
        if self._closed:
            client.close(GOING_AWAY)
        elif len(self._clients) >= MAX_CLIENTS:
            client.close(TOO_SLOW)
        else:
            self._clients.add(client)
        return client, [hello, *missed]

    async def _present(self) -> tuple[int, dict[str, Any]]:
        """The state as of a frame's number: computed once for all who come within a second."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._state is None or now - self._state[0] > STATE_SECONDS:
                seq = self._seq  # before the look: a frame sent meanwhile is sent once more rather than never
                self._state = (now, seq, await self._workers.run(self._observer.state))
            return self._state[1:]

    def viewers(self) -> int:
        """How many watch."""
        return len(self._clients)

    def leave(self, client: Client) -> None:
        self._clients.discard(client)

    async def close(self) -> None:
        """Send every client away and stop producing."""
        self._closed = True
        for client in list(self._clients):
            client.close(GOING_AWAY)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- producer ----------------------------------------------------------------------------------

    async def _produce(self) -> None:
        loop = asyncio.get_running_loop()
        watched, due = -RESUME_SECONDS, loop.time()
        while True:
            if self._clients:
                watched = loop.time()
            busy = loop.time() - watched < RESUME_SECONDS
            try:
                if busy:
                    for event, data in await self._workers.run(self._observer.tick):
                        self._publish(event, data)
                else:
                    await self._workers.run(self._observer.rest)
            except Exception as error:  # noqa: BLE001 - the page must survive any failure below it; it shows a gap
                _log.warning("live_update_failed", error=str(error), exc_info=error)
            # A late tick doesn't make the next ones hurry, and a wait that was cut short is forgotten.
            now = loop.time()
            due = max(min(due, now) + (TICK if busy else IDLE_TICK), now + TICK / 5)
            await self._until(due)

    async def _until(self, due: float) -> None:
        """Wait, but not beyond the arrival of a first viewer."""
        loop = asyncio.get_running_loop()
        while (left := due - loop.time()) > 0:
            await asyncio.sleep(min(left, TICK))
            if self._clients and left > TICK:
                return

    def _publish(self, event: str, data: Any) -> None:
        self._seq += 1
        frame = self._frame(event, data, self._seq)
        self._ring.append(frame)
        self._ring_bytes += len(frame.text)
        while len(self._ring) > RING_FRAMES or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft().text)
        for client in self._clients:
            client.offer(frame)

    def _frame(self, event: str, data: Any, seq: int) -> Frame:
        at = self._runtime.clock.now_us() // 1_000
        return Frame(seq, event, encode_json({"event": event, "seq": seq, "at": at, "data": data}).decode())


# -- the two wires ---------------------------------------------------------------------------------


async def websocket(hub: Hub, scope: Scope, receive: Receive, send: Send) -> None:
    """`/ws/dashboard`. The caller has checked Host and Origin."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    client, first = await hub.join(_since(scope))
    try:
        if await _stream(client, first, receive, send, _message):
            # Somebody who doesn't read gets the close frame behind what he hasn't read.
            code = client.end or TOO_SLOW
            async with asyncio.timeout(1):
                await send({"type": "websocket.close", "code": code, "reason": _REASONS[code]})
    except (OSError, TimeoutError):
        pass  # left in between
    finally:
        hub.leave(client)


async def server_sent_events(hub: Hub, scope: Scope, receive: Receive, send: Send) -> None:
    """`/api/v1/stream`: the same frames for `curl -N` and EventSource; `Last-Event-ID` resumes."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    client, first = await hub.join(_since(scope))
    try:
        if await _stream(client, first, receive, send, _sse):
            async with asyncio.timeout(1):
                await send({"type": "http.response.body", "body": b""})
    except (OSError, TimeoutError):
        pass
    finally:
        hub.leave(client)


async def _stream(client: Client, first: Sequence[Frame], receive: Receive, send: Send, wrap: Wrap) -> bool:
    """Send until either side ends it; False when the client left."""
    gone = asyncio.create_task(_until_gone(receive))
    pump = asyncio.create_task(_pump(client, first, send, wrap))
    ended = asyncio.create_task(client.ended.wait())
    try:
        await asyncio.wait({gone, pump, ended}, return_when=asyncio.FIRST_COMPLETED)
        return not gone.done()
    finally:
        for task in (gone, pump, ended):
            task.cancel()
        await asyncio.gather(gone, pump, ended, return_exceptions=True)


async def _pump(client: Client, first: Sequence[Frame], send: Send, wrap: Wrap) -> None:
    async def one(frame: Frame) -> None:
        async with asyncio.timeout(DRAIN_SECONDS):
            await send(wrap(frame))

    try:
        for frame in first:
            await one(frame)
        async for frame in client.frames():
            await one(frame)
    except TimeoutError:
        client.close(TOO_SLOW)


def _message(frame: Frame) -> dict[str, Any]:
    return {"type": "websocket.send", "text": frame.text}


def _sse(frame: Frame) -> dict[str, Any]:
    body = f"id: {frame.seq}\nevent: {frame.event}\ndata: {frame.text}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _until_gone(receive: Receive) -> None:
    """Read and ignore what the client says, until it leaves."""
    while (await receive())["type"] not in ("websocket.disconnect", "http.disconnect"):
        pass


def _since(scope: Scope) -> int | None:
    given = parse_qs(scope["query_string"].decode("latin-1")).get("since", [""])[0]
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            given = value.decode("latin-1")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 18 else None
