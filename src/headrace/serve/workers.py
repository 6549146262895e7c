"""A bounded crew of threads for blocking work, so that the event loop never blocks and nothing piles up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from headrace.errors import OverloadedError, RetryableError

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """`threads` at work, and at most `waiting` calls behind them; more are refused at once.

    Used from one event loop.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"serve-{name}")
        self._room = threads + waiting
        self._closed = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. Raises OverloadedError when there is no room, RetryableError after `close`."""
        if self._closed:
            raise RetryableError("headrace is shutting down", after=5)
        if self._room <= 0:
            raise OverloadedError(f"all {self.name} workers are busy, and as many calls wait as may", after=1)
        self._room -= 1
        work = asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))
        # The place is free when the thread is, which may be long after a caller was cancelled.
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Future[T]) -> None:
        self._room += 1
        if not work.cancelled():
            work.exception()  # seen, also when the caller has gone

    def close(self) -> None:
        """Take no more work; what runs is finished in its thread."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
