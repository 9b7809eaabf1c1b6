"""Knows when an event loop has come to rest: nothing is in flight, and no task goes on by itself."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from contextvars import Context
from typing import Any

from durable_flows.engine import lines
from durable_flows.engine.lines import Lines

ROUNDS = 200  # of the loop, without a step, after which nothing goes on any more
#: Real seconds that branches which rest wait for what another awaits between its steps.
AWAITS = 10.0
PAUSE = 0.02  # real seconds between two looks at whether that has come
CANCELS = 10  # of tasks that do not end when they are cancelled


class Flight:
    """What is in flight for an event loop. Used in the loop only.

    Args:
        lines: of the handler.

    Attributes:
        leaves_behind: whether it has come to rest though a line awaits what takes longer than `AWAITS`.
    """

    def __init__(self, lines: Lines) -> None:
        self.leaves_behind = False
        self._lines = lines
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
        """Whether the handler does nothing more by itself."""
        loop = asyncio.get_running_loop()
        until = loop.time() + AWAITS
        self.leaves_behind = False
        while await self._is_quiet():
            due = loop.due() if isinstance(loop, Loop) and self._lines.may_go_on else None
            self.leaves_behind = due is not None and due > until
            if due is None or self.leaves_behind:
                return True
            await asyncio.sleep(PAUSE)
        return False

    async def _is_quiet(self) -> bool:
        """Whether nothing takes off; from one step to the next is some rounds."""
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            if self._count:
                return False
        return True


class Loop(asyncio.SelectorEventLoop):
    """Knows what its lines await of it, and counts as in flight what is done for it in threads: the ORM.

    Args:
        flight: counts.
    """

    def __init__(self, flight: Flight) -> None:
        self._sockets = selectors.DefaultSelector()
        self._timers: set[asyncio.TimerHandle] = set()
        super().__init__(self._sockets)
        self._own_sockets = len(self._sockets.get_map())  # what wakes it
        self._flight = flight

    def due(self) -> float | None:
        """When what its lines await may come, by its time; None if they await nothing of it.

        Of a socket nobody knows when it has something, nor whether anybody reads it: at any time.
        """
        now = self.time()
        if len(self._sockets.get_map()) > self._own_sockets:
            return now
        self._timers = {one for one in self._timers if not one.cancelled() and one.when() > now}
        return min((one.when() for one in self._timers), default=None)

    def call_at(  # type: ignore[override]  # noqa: D102 (as of its base)
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        line = lines.current()
        if line is not None and not line.is_in_a_tool:
            self._timers.add(handle)
        return handle

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
