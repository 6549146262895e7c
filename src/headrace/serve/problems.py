"""One shape for every error: `application/problem+json` (RFC 9457), from one table of codes.

`type` is a path on this very server that explains the code. A 500 carries a request id to look up in the log, and
never what went wrong inside.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import structlog

from headrace.errors import HeadraceError, OverloadedError, QueryError, RetryableError, StorageFullError
from headrace.serve.json_text import encode_json

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope: TypeAlias = MutableMapping[str, Any]
Headers: TypeAlias = list[tuple[bytes, bytes]]

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    status: int
    title: str
    advice: str


KINDS: Mapping[str, Kind] = {
    "bad_request": Kind(400, "The request can't be understood", "Correct the request; sending it again won't help."),
    "empty_body": Kind(400, "The body is empty", "Send at least one event."),
    "malformed_body": Kind(400, "The body can't be read", "Nothing was stored. Correct the body and send it again."),
    "query_refused": Kind(400, "The query is refused", "Correct the query, or ask for less."),
    "cross_site": Kind(403, "Requests from other sites are refused", "Call the API from its own origin, or without a browser."),
    "not_found": Kind(404, "There is nothing here", "The routes are listed under /docs."),
    "unknown_topic": Kind(404, "There is no such topic", "GET /api/v1/topics lists them. Nothing was stored."),
    "unknown_source": Kind(404, "There is no such source", "GET /api/stream/status lists them."),
    "method_not_allowed": Kind(405, "This route has no such method", "The Allow header lists the methods."),
    "slow_body": Kind(408, "The body came too slowly", "Nothing was stored. Send it again, perhaps in smaller parts."),
    "body_too_large": Kind(413, "The body is too large", "Nothing was stored. Send it in several parts."),
    "unsupported_media_type": Kind(415, "This kind of body isn't accepted", "JSON, NDJSON, CSV and Arrow streams are, plain or as gzip or zstd."),
    "wrong_host": Kind(421, "This server isn't called by that name", "Add the name to server.hosts in the configuration."),
    "invalid_request": Kind(422, "Some parameters aren't valid", "`errors` names each one."),
    "key_reused": Kind(422, "The Idempotency-Key was used before with another body", "Nothing was stored. Make a new key for a new body."),
    "all_rejected": Kind(422, "Not one row could be accepted", "`errors` gives the reason of each row; all are kept in the dead letters."),
    "overloaded": Kind(429, "Too much at once", "Nothing was stored. Wait for Retry-After seconds, then send it again."),
    "internal": Kind(500, "Something went wrong in headrace", "Look for the request id in headrace's own log."),
    "unavailable": Kind(503, "Not available just now", "Nothing was stored. Wait for Retry-After seconds, then try again."),
    "storage_full": Kind(507, "The disk is full", "Nothing was stored. Free some space; headrace goes on by itself."),
}  # fmt: skip
"""Code -> HTTP status, title, and what to do about it. Codes are stable: programs may rely on them."""

_log = structlog.get_logger("headrace.serve")

_BY_STATUS = {
    400: "bad_request",
    403: "cross_site",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_body",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "overloaded",
    503: "unavailable",
    507: "storage_full",
}


class ProblemError(Exception):
    """An answer that is an error. Raise it anywhere below a route."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors
        self.members = dict(members or {})
        self.request_id = secrets.token_hex(
            8
        )  # random, so that it tells nothing about the number of requests
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    @property
    def status(self) -> int:
        return KINDS[self.code].status

    def body(self, instance: str) -> bytes:
        """The JSON text."""
        kind = KINDS[self.code]
        content: dict[str, Any] = {
            "type": f"/docs/problems#{self.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "errors": list(self.errors),
            "request_id": self.request_id,
            **self.members,
        }
        return encode_json(content)


def from_error(error: Exception) -> ProblemError | None:
    """The answer to an error raised on purpose; None for a bug."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, StorageFullError):
        return ProblemError("storage_full", str(error), retry_after=error.after or 10)
    if isinstance(error, OverloadedError):
        return ProblemError("overloaded", str(error), retry_after=error.after or 1)
    if isinstance(error, RetryableError):
        return ProblemError("unavailable", str(error), retry_after=error.after or 1)
    if isinstance(error, QueryError):
        return ProblemError("query_refused", str(error))
    status = getattr(error, "status", None)
    if isinstance(error, (HeadraceError, ValueError)) and isinstance(status, int):
        code = "malformed_body" if status in (400, 422) else _BY_STATUS.get(status, "bad_request")
        return ProblemError(code, str(error))
    return None


def for_status(status: int) -> str:
    """The code of a bare HTTP status."""
    return _BY_STATUS.get(status, "bad_request" if status < 500 else "internal")


async def send_problem(
    send: Send, scope: Scope, problem: ProblemError, *, headers: Headers | None = None
) -> None:
    """Answer outside of FastAPI. The caller has not started a response yet."""
    start, body = encode_problem(scope, problem, headers or [])
    await send(start)
    await send({"type": "http.response.body", "body": body})


def bug(error: Exception, path: str) -> ProblemError:
    """The answer to an error that nobody meant: logged with the id that the answer carries."""
    problem = ProblemError("internal", "headrace failed to answer; its log tells why, under this request id")
    _log.error("request_failed", path=path, request_id=problem.request_id, exc_info=error)
    return problem


def encode_problem(scope: Scope, problem: ProblemError, headers: Headers) -> tuple[dict[str, Any], bytes]:
    """The start message and the body of an answer."""
    body = problem.body(scope["path"])
    fields: Headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", problem.request_id.encode()),
        *(
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in problem.headers.items()
        ),
        *headers,
    ]
    return {"type": "http.response.start", "status": problem.status, "headers": fields}, body


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "orders"?`, or nothing when no name is close."""
    import difflib

    close = difflib.get_close_matches(name[:200], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
