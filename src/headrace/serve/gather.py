"""Puts small bodies that arrive together into one: a thousand senders of single events cost little more than one sender.

Nobody waits for company. While one push is being stored, what arrives gathers, and goes next, together.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

from headrace.errors import OverloadedError
from headrace.formats.faults import FormatFaultError
from headrace.model import Receipt, Reject

Store = Callable[[str, bytes, str, str, str], Awaitable[Receipt]]
"""Stores a body: topic, body, media type, encoding, client."""

LARGEST = 16 * 2**10
"""Bytes of a body that may be put together with others."""
MOST_ROWS = 1_000
AT_WORK = 2
"""Pushes of one topic at the same time: one is being stored while the next is decoded."""
MAX_WAITING = 20_000
_TYPES = frozenset(
    (
        "",
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=utf-8",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",  # what curl says when it wasn't told
    )
)


def is_one_row(body: bytes, media_type: str) -> bool:
    """Whether a body is one line of JSON, so that lines of several senders can be read as one body.

    Only looks: a line that turns out to be malformed is rejected alone, as each line of NDJSON is.
    """
    return (
        len(body) <= LARGEST
        and body[:1] == b"{"
        and body[-1:] == b"}"
        and b"\n" not in body
        and b"\r" not in body
        and media_type.lower() in _TYPES
    )


class Gather:
    """Pushes single rows. Lives in one event loop."""

    def __init__(self, store: Store) -> None:
        self._push = store
        self._waiting: defaultdict[str, deque[tuple[bytes, str, asyncio.Future[Receipt]]]] = defaultdict(
            deque
        )
        self._at_work: defaultdict[str, int] = defaultdict(int)
        self._tasks: set[asyncio.Task[None]] = set()

    async def push(self, topic: str, body: bytes, client: str) -> Receipt:
        """The verdict on one row, when it is durable. Raises what `Runtime.push` raises."""
        waiting = self._waiting[topic]
        if len(waiting) >= MAX_WAITING:
            raise OverloadedError(f"{len(waiting)} events wait for the topic {topic} already", after=1)
        loop = asyncio.get_running_loop()
        verdict: asyncio.Future[Receipt] = loop.create_future()
        waiting.append((body, client, verdict))
        if self._at_work[topic] < AT_WORK:
            self._at_work[topic] += 1
            task = loop.create_task(self._work(topic))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await verdict

    async def _work(self, topic: str) -> None:
        waiting = self._waiting[topic]
        try:
            while waiting:
                await self._next(topic, [waiting.popleft() for _ in range(min(MOST_ROWS, len(waiting)))])
        finally:
            self._at_work[topic] -= 1
            if not self._at_work[topic]:
                # Topic names come from outside: nothing is kept of those that don't exist.
                del self._at_work[topic], self._waiting[topic]

    async def _next(self, topic: str, batch: list[tuple[bytes, str, asyncio.Future[Receipt]]]) -> None:
        bodies = [body for body, _, _ in batch]
        clients = {client for _, client, _ in batch}
        try:
            receipt = await self._store(topic, b"\n".join(bodies), clients.pop() if len(clients) == 1 else "")
            verdicts: list[Receipt | BaseException] = list(_apart(receipt, len(batch)))
        except FormatFaultError as error:
            # One of them can't be read at all; on its own each gets its own answer.
            verdicts = (
                [error]
                if len(batch) == 1
                else [await self._alone(topic, body, who) for body, who, _ in batch]
            )
        except BaseException as error:  # noqa: BLE001 - it goes to everyone who waits for it
            verdicts = [error] * len(batch)
        for (_, _, future), verdict in zip(batch, verdicts, strict=True):
            if future.done():  # its client has gone
                continue
            if isinstance(verdict, Receipt):
                future.set_result(verdict)
            else:
                future.set_exception(verdict)

    async def _alone(self, topic: str, body: bytes, client: str) -> Receipt | BaseException:
        try:
            return await self._store(topic, body, client)
        except Exception as error:  # noqa: BLE001 - it is the answer
            return error

    async def _store(self, topic: str, body: bytes, client: str) -> Receipt:
        return await self._push(topic, body, "application/x-ndjson", "", client)


def _apart(receipt: Receipt, count: int) -> list[Receipt]:
    """The verdict on each row of a body of `count` rows."""
    if receipt.accepted + receipt.rejected != count or len(receipt.rejects) != receipt.rejected:
        raise AssertionError(
            f"{count} rows were pushed, and {receipt.accepted} + {receipt.rejected} came back"
        )
    rejects = sorted(receipt.rejects, key=lambda reject: reject.row)
    alone = [Receipt(0, 1, (Reject(r.raw, r.code, r.reason, r.source_id),)) for r in rejects]
    if not receipt.accepted:
        return alone
    verdicts = [_ACCEPTED] * count
    for reject, verdict in zip(rejects, alone, strict=True):
        verdicts[reject.row] = verdict
    return verdicts


_ACCEPTED = Receipt(1)
