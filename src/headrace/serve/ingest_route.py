"""`POST /ingest` and `/ingest/{topic}` as bare ASGI: the one route where microseconds count.

A body is read only as far as it may go on, with bounds on its size, on the bytes of all bodies in memory together, and
on how slowly it may come. The answer is sent after the rows are durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace.errors import OverloadedError
from headrace.formats.faults import FormatFaultError
from headrace.model import Receipt, Reject
from headrace.push import IdempotencyError
from headrace.serve.commits import Commits
from headrace.serve.gather import Gather, is_one_row
from headrace.serve.json_text import encode_json
from headrace.serve.problems import (
    Headers,
    ProblemError,
    Receive,
    Scope,
    Send,
    bug,
    did_you_mean,
    encode_problem,
    from_error,
)
from headrace.serve.runtime import Runtime
from headrace.serve.workers import Workers

DEFAULT_TOPIC = "events"
MAX_LISTED = 100
"""Rejected rows named in an answer; all of them are in the dead letters."""
THREADS = 1
"""Decoding holds the interpreter, so a second thread would only take turns with the first, and slow both down."""
WAITING = 4_000
"""Bodies that may wait for a thread; their bytes are bounded by `server.max_in_flight` besides."""
PATIENCE = 15.0
"""Seconds that a body may take, plus one for each `SLOWEST` bytes of it."""
SLOWEST = 16_384
LINGER_BYTES = 4 * 2**20
"""What is read and thrown away after a refusal, so that the sender gets to see the answer."""
LINGER_SECONDS = 1.0

_JSON: Headers = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
_NOSNIFF: Headers = [(b"x-content-type-options", b"nosniff")]


class IngestRoute:
    """The handler. `in_flight` is the number of bytes of bodies in memory."""

    def __init__(self, runtime: Runtime) -> None:
        server = runtime.config.server
        self._runtime = runtime
        self._max_body = server.max_body.bytes
        self._max_in_flight = max(server.max_in_flight.bytes, self._max_body)
        self._workers = Workers("ingest", THREADS, WAITING)
        self._commits = Commits(runtime)
        self._gather = Gather(self._store)
        self.in_flight = 0

    def close(self) -> None:
        """Refuse what comes from now on; what is prepared is still made durable."""
        self._workers.close()
        self._commits.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self)
        try:
            start, content = await self._answer(scope, receive, body)
        except _GoneError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets a problem and the log the cause
            problem = from_error(error) or bug(error, scope["path"])
            if not body.whole:
                body.release()
                await _refuse(send, receive, scope, problem)
                return
            start, content = encode_problem(scope, problem, _NOSNIFF)
        finally:
            body.release()
        await send(start)
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive, body: _Body) -> tuple[dict[str, Any], bytes]:
        path: str = scope["path"]
        topic = path[8:].rstrip("/") or DEFAULT_TOPIC
        if "/" in topic:
            raise ProblemError("not_found", "the route is /ingest/TOPIC, with one topic")
        if scope["method"] != "POST":
            raise ProblemError(
                "method_not_allowed",
                f"{scope['method']} isn't offered here; POST the events",
                headers={"Allow": "POST"},
            )
        headers = _Headers(scope["headers"])
        if headers.length > self._max_body:
            raise _too_large(f"the body has {headers.length} bytes", self._max_body)
        await body.read(receive, self._max_body, self._max_in_flight)
        if not body.size:
            raise ProblemError("empty_body", "the body is empty; send a JSON object, for instance")
        try:
            receipt = await self._push(topic, body.take(), headers, (scope.get("client") or ("",))[0])
        except LookupError as error:
            known = [name for name in self._runtime.log.topics() if not name.startswith("_")]
            detail = f"there is no topic {topic[:100]!r}{did_you_mean(topic, known)}"
            raise ProblemError("unknown_topic", detail) from error
        except IdempotencyError as error:
            raise ProblemError("key_reused", str(error)) from error
        except FormatFaultError as error:
            raise _fault(error) from error
        return _verdict(receipt, scope)

    async def _push(self, topic: str, body: bytes, headers: _Headers, client: str) -> Receipt:
        if headers.key is not None:
            return await self._workers.run(
                self._runtime.push,
                topic,
                body,
                media_type=headers.media_type,
                encoding=headers.encoding,
                idempotency_key=headers.key,
                client=client,
            )
        if not headers.encoding and is_one_row(body, headers.media_type):
            return await self._gather.push(topic, body, client)
        return await self._store(topic, body, headers.media_type, headers.encoding, client)

    async def _store(
        self, topic: str, body: bytes, media_type: str, encoding: str = "", client: str = ""
    ) -> Receipt:
        """Decode in one thread, then commit with whatever else is decoded by then."""
        intake = await self._workers.run(
            self._runtime.prepare, topic, body, media_type=media_type, encoding=encoding, client=client
        )
        return await self._commits.put(intake)


class _GoneError(Exception):
    """The client has gone; there is nobody to answer."""


class _Body:
    """A body as it comes, counted against the bytes in flight."""

    def __init__(self, route: IngestRoute) -> None:
        self._route = route
        self._parts: list[bytes] = []
        self.size = 0
        self.whole = False

    async def read(self, receive: Receive, max_body: int, max_in_flight: int) -> None:
        """Read to the end. Raises ProblemError as soon as a bound is passed, _GoneError when the client leaves."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(started + PATIENCE + self.size / SLOWEST):
                    message = await receive()
            except TimeoutError:
                raise ProblemError(
                    "slow_body", f"only {self.size} bytes came in {loop.time() - started:.0f} s"
                ) from None
            if message["type"] != "http.request":
                raise _GoneError
            part: bytes = message.get("body", b"")
            size = self.size + len(part)
            if size > max_body:
                raise _too_large(f"more than {size} bytes came", max_body)
            if self._route.in_flight + len(part) > max_in_flight:
                raise OverloadedError(
                    f"{self._route.in_flight} bytes of events are being stored already", after=1
                )
            self._route.in_flight += len(part)
            self.size = size
            self._parts.append(part)
            if not message.get("more_body"):
                self.whole = True
                return

    def release(self) -> None:
        """Count it no more. May be called twice."""
        self._route.in_flight -= self.size
        self.size = 0
        self._parts = []

    def take(self) -> bytes:
        """All of it; the parts are let go."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Headers:
    """The request headers that matter here, checked."""

    __slots__ = ("encoding", "key", "length", "media_type")

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.length = 0
        self.media_type = ""
        self.encoding = ""
        self.key: str | None = None
        for name, value in fields:
            if name == b"content-length":
                self.length = int(value)  # the HTTP parser lets only digits through
            elif name == b"content-type":
                self.media_type = value.decode("latin-1")
            elif name == b"content-encoding":
                self.encoding = value.decode("latin-1").strip().lower()
            elif name == b"idempotency-key":
                self.key = value.decode("latin-1").strip().strip('"')
        if self.key is not None and not 1 <= len(self.key) <= 255:
            raise ProblemError("bad_request", "Idempotency-Key needs 1 to 255 characters")


def _verdict(receipt: Receipt, scope: Scope) -> tuple[dict[str, Any], bytes]:
    """200 when all rows were accepted, 207 when some were, 422 when none."""
    content: dict[str, Any] = {"accepted": receipt.accepted, "rejected": receipt.rejected}
    if receipt.duplicate:
        content["duplicate"] = True
    if not receipt.rejected:
        return _answer(200, content)
    content["total"] = receipt.total
    errors = [_listed(reject) for reject in receipt.rejects[:MAX_LISTED]]
    if not receipt.accepted:
        raise ProblemError(
            "all_rejected", f"none of {receipt.total} rows was accepted", errors=errors, members=content
        )
    content["errors"] = errors
    return _answer(207, content)


def _listed(reject: Reject) -> dict[str, Any]:
    return {"row": reject.row, "code": reject.code, "reason": reject.reason[:500]}


def _answer(status: int, content: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    body = encode_json(content)
    headers = [*_JSON, (b"content-length", b"%d" % len(body))]
    return {"type": "http.response.start", "status": status, "headers": headers}, body


def _too_large(found: str, limit: int) -> ProblemError:
    return ProblemError("body_too_large", f"{found}, and {limit} are allowed (server.max_body)")


def _fault(error: FormatFaultError) -> ProblemError:
    return from_error(error) or ProblemError("malformed_body", str(error))


async def _refuse(send: Send, receive: Receive, scope: Scope, problem: ProblemError) -> None:
    """Answer before the body was read to its end, and close.

    Closing with unread bytes would reset the connection, and many a client would lose the answer over it; so a bounded
    part of the rest is read and thrown away first.
    """
    start, content = encode_problem(scope, problem, [*_NOSNIFF, (b"connection", b"close")])
    await send(start)
    await send({"type": "http.response.body", "body": content, "more_body": True})
    left = LINGER_BYTES
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})
