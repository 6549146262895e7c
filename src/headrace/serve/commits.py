"""Makes prepared bodies durable together: while one group is being committed, the next one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.ingest import Intake
from headrace.model import Receipt
from headrace.serve.runtime import Runtime
from headrace.serve.workers import Workers

MOST = 256
"""Bodies committed together at most."""


class Commits:
    """One thread that commits all that waits. Used from one event loop; what waits is bounded by the bytes in flight."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._workers = Workers("commit", 1, 4)
        self._waiting: list[tuple[Intake, asyncio.Future[Receipt]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, intake: Intake) -> Receipt:
        """The receipt, once it is durable. Raises what `Runtime.push` raises."""
        loop = asyncio.get_running_loop()
        receipt: asyncio.Future[Receipt] = loop.create_future()
        self._waiting.append((intake, receipt))
        if self._task is None:
            self._task = loop.create_task(self._work())
        return await receipt

    def close(self) -> None:
        self._workers.close()

    async def _work(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                results: Sequence[Receipt | BaseException]
                try:
                    results = await self._workers.run(self._runtime.commit, [intake for intake, _ in group])
                except BaseException as error:  # noqa: BLE001 - it goes to everyone who waits for it
                    results = [error] * len(group)
                for (_, receipt), result in zip(group, results, strict=True):
                    if receipt.done():  # its client has gone
                        continue
                    if isinstance(result, Receipt):
                        receipt.set_result(result)
                    else:
                        receipt.set_exception(result)
        finally:
            self._task = None
