"""Calls what steps of ``async def`` handlers are to do: functions in threads, coroutines in the loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections

from durable_flows.engine import scopes
from durable_flows.engine.flight import Flight
from durable_flows.engine.scopes import Call

THREADS = 32  # of one slice, for the plain functions of its steps


class Calls:
    """The calls of one slice.

    Args:
        flight: counts them.
        alone: everything but coroutines happens in the slice's own thread.
    """

    def __init__(self, flight: Flight, *, alone: bool) -> None:
        self._flight = flight
        self._alone = alone
        self._threads = ThreadPoolExecutor(THREADS, "durable-flows-step")

    async def call(self, wanted: Call) -> Any:
        """Call it, inside its step."""
        self._flight.departs()
        try:
            with scopes.within(wanted.key):
                if inspect.iscoroutinefunction(wanted.work):
                    return await self._apart(wanted.work)
                result = await self._in_a_thread(wanted.work)
                if hasattr(result, "__await__"):
                    return await self._apart(lambda: result)
                return result
        finally:
            self._flight.lands()

    async def _in_a_thread(self, work: Callable[[], Any]) -> Any:
        if self._alone:
            return await sync_to_async(work)()
        context = copy_context()

        def call() -> Any:
            try:
                return context.run(work)
            finally:
                connections.close_all()

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _apart(self, work: Callable[[], Any]) -> Any:
        """Await a step's coroutine; what it asks of the ORM has a thread of its own."""
        async with ThreadSensitiveContext():
            return await self.with_orm(work())

    async def with_orm(self, coroutine: Awaitable[Any]) -> Any:
        """Await it, and close the connections of the thread that has worked for it."""
        try:
            return await coroutine
        finally:
            if not self._alone:
                await sync_to_async(connections.close_all)()

    def close(self, *, wait: bool) -> None:
        """Nothing more is called.

        Args:
            wait: for what is being called.
        """
        self._threads.shutdown(wait=wait)
