"""Knows when an event loop has come to rest: nothing is in flight, and no task goes on by itself."""

from __future__ import annotations

import asyncio
from typing import Any

ROUNDS = 200  # of the loop, without a step, after which nothing goes on any more
CANCELS = 10  # of tasks that do not end when they are cancelled


class Flight:
    """What is in flight for an event loop. Used in the loop only."""

    def __init__(self) -> None:
        self._count = 0
        self._rests = asyncio.Event()

    def departs(self) -> None:
        """Something is in flight: the slice does not end before it lands."""
        self._count += 1

    def lands(self) -> None:
        """Something that was in flight is so no more."""
        self._count -= 1
        if not self._count:
            self._rests.set()

    async def landed(self) -> None:
        """Wait until all that was in flight has landed, since this was asked last."""
        await self._rests.wait()
        self._rests.clear()

    async def is_at_rest(self) -> bool:
        """Whether the handler does nothing more by itself; from one step to the next is some rounds."""
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            if self._count:
                return False
        return True


class Loop(asyncio.SelectorEventLoop):
    """Counts as in flight what is done for it in threads: the ORM between two steps."""

    def __init__(self, flight: Flight) -> None:
        super().__init__()
        self._flight = flight

    def run_in_executor(  # type: ignore[override]  # noqa: D102 (as of its base)
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        self._flight.departs()
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._flight.lands())
        return future


async def cancel_all() -> None:
    """Cancel whatever is left; who catches that, more than once."""
    for _ in range(CANCELS):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1.0)
