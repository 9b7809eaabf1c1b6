"""Drives the tools of a handler that is written with ``async def``: its branches are tasks.

The event loop runs in a thread of its own; the slice's own thread sits at the desk. A tool that suspends
never resolves, until its time has come or the slice ends: an exception would make a `TaskGroup` cancel
its neighbours in the middle of a step. Once no step is in flight and the loop has come to rest, the slice
ends, and whatever still waits is cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from asgiref.sync import async_to_sync, sync_to_async

from durable_flows.engine import failpoints, lines, notes, scopes
from durable_flows.engine.calls import Calls
from durable_flows.engine.desk import LOOK, Desk, Note
from durable_flows.engine.flight import AWAITS, Flight, Loop, cancel_all
from durable_flows.engine.journal import Journal
from durable_flows.engine.lines import Line, Lines
from durable_flows.engine.scopes import (
    ENDS_OF_A_SLICE,
    Call,
    End,
    Ends,
    Place,
    Scope,
    Together,
    Tool,
    Write,
)
from durable_flows.errors import Suspend
from durable_flows.rules import clock


@dataclass(eq=False, slots=True)
class _Asked:
    """What a tool asks of the slice's own thread.

    Attributes:
        answer: resolves in the loop once it has come to something.
        scope: the branch that waits for it.
        until: when its tool is to be tried again, once it has suspended; None: not in this slice.
        is_woken: whether it has been told to be.
    """

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    scope: Scope | None
    until: datetime | None = None
    is_woken: bool = False


class _Again(Exception):  # noqa: N818 (a signal)
    """The time of a suspended tool has come: it is driven anew, as it would be in the next slice."""


class Tasks:
    """Drives tools in the tasks that await them.

    Args:
        journal: of the slice.
        main: the handler's main line.
        alone: everything but coroutines happens in the slice's own thread: no other thread sees the
            rows of an open transaction.
    """

    def __init__(self, journal: Journal, main: Scope, *, alone: bool) -> None:
        self._journal = journal
        self._main = main
        self._alone = alone
        self._desk = Desk()
        self._nudges = journal.nudges
        self._parked: set[_Asked] = set()
        self._groups: set[asyncio.Event] = set()
        self._lines = Lines(self._stir)
        self._flight = Flight(self._lines)
        self._calls = Calls(self._flight, alone=alone)
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop

    # -- in the slice's own thread -------------------------------------------------------------

    def play(self, handler: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Execute the handler.

        Raises:
            Suspend: nothing goes on before then.
            BaseException: another signal that ends the slice, or what the handler raised.
        """
        try:
            result = self._play(handler, arguments)
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            self._warn_of_those_left_behind()
            raise self._end() from None
        finally:
            self._desk.close()
            # What is to be undone must have come to its end before.
            self._calls.close(wait=self._journal.is_in_doubt)
            if self._is_over:
                self._main.stopped = self._end()
        return result

    def _end(self) -> Suspend:
        """What ends a slice in which nothing goes on any more. Raises another signal, if one came."""
        self._journal.check()
        times = [asked.until for asked in list(self._parked) if asked.until is not None]
        return Suspend(min(times, default=clock.now()))

    def _warn_of_those_left_behind(self) -> None:
        if self._flight.leaves_behind and not self._journal.recalls:
            self._journal.warn(
                notes.LEFT_BEHIND,
                f"a branch awaits, between its steps, what has not come in {AWAITS:g} s, and the others "
                "rest: this slice has ended without it, and calls it anew when the run goes on; await "
                "it inside a step's function, and close connections before the run rests",
            )

    def _play(self, handler: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        if self._alone:
            return async_to_sync(self._execute)(handler, arguments)
        done: Future[Any] = Future()

        def work() -> None:
            try:
                with asyncio.Runner(loop_factory=lambda: Loop(self._flight)) as runner:
                    done.set_result(runner.run(self._execute(handler, arguments)))
            except BaseException as error:
                done.set_exception(error)
            self._desk.put(Note(lambda: None))

        loop = threading.Thread(
            target=copy_context().run, args=(work,), name="durable-flows-loop", daemon=True
        )
        loop.start()
        while not done.done():
            self._desk.sit(self._seconds())
            if not (done.done() or self._is_over):
                self._wake()
        loop.join()
        return done.result()

    def _seconds(self) -> float:
        """How long nobody needs to be woken."""
        until = min((asked.until for asked in self._waiting()), default=None)
        return LOOK if until is None else max(0.0, min(LOOK, clock.real_seconds_until(until)))

    def _waiting(self) -> list[Any]:
        parked = list(self._parked)
        return [asked for asked in parked if asked.until is not None and not asked.is_woken]

    def _wake(self) -> None:
        """Try again what has suspended, if its time has come; all of it if the run was woken."""
        waiting = self._waiting()
        if not waiting or self._journal.stopped is not None:
            return
        nudges = self._journal.look_for_nudges()
        was_woken, self._nudges = nudges != self._nudges, nudges
        now = clock.now()
        for asked in waiting:
            if was_woken or asked.until <= now:
                asked.is_woken = True  # once
                self._in_loop(partial(self._resume, asked))

    def _try(self, asked: _Asked) -> Callable[[], None]:
        """Do what a tool asks for. Returns what is to be done in the loop: a signal parks it."""
        try:
            found = asked.work()
        except Suspend as signal:
            return partial(self._park, asked, signal.until)
        except ENDS_OF_A_SLICE as signal:
            self._journal.stopped = self._journal.stopped or signal
            return partial(self._park, asked, None)
        except BaseException as error:
            return partial(self._answer, asked, None, error)
        return partial(self._answer, asked, found, None)

    def _in_loop(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the handler has ended, and nobody waits for it
            self._loop.call_soon_threadsafe(call)

    # -- in the event loop: what tools want --------------------------------------------------------

    @property
    def scope(self) -> Scope:
        """The line of the handler that the calling code is in."""
        return scopes.here() or self._main

    def check(self) -> None:
        """Nothing to raise here: once the slice has ended, tools are cancelled when they are awaited."""

    def drive(self, place: Place, make: Callable[[], Tool]) -> Coroutine[Any, Any, Any]:
        """Do what a tool asks for, and return its result."""
        return self._drive(make)

    async def _drive(self, make: Callable[[], Tool]) -> Any:
        with lines.in_a_tool():
            while True:
                try:
                    return await self._drive_once(make())
                except _Again:
                    continue
                except failpoints.Killed as end:  # nor does a task group go on about that
                    await self._ask(partial(_raise, end))

    async def _drive_once(self, tool: Tool) -> Any:
        try:
            wanted = next(tool)
            while True:
                try:
                    found = await self._take(wanted)
                except (asyncio.CancelledError, _Again):
                    tool.close()
                    raise
                except BaseException as error:
                    wanted = tool.throw(error)
                else:
                    wanted = tool.send(found)
        except StopIteration as end:
            return end.value

    async def _take(self, wanted: Write | Call | Together) -> Any:
        if isinstance(wanted, Write):
            return await self._ask(wanted.work)
        if isinstance(wanted, Call):
            return await self._calls.call(wanted)
        with lines.in_a_group():
            return await self._together(wanted)

    async def _ask(self, work: Callable[[], Any]) -> Any:
        if self._is_over:
            raise asyncio.CancelledError
        asked = _Asked(work, self._loop.create_future(), scopes.here())
        self._flight.departs()
        if self._alone:
            await self._try_alone(asked)
        else:
            self._desk.put(Note(lambda: self._in_loop(self._try(asked))))
        return await asked.answer

    async def _try_alone(self, asked: _Asked) -> None:
        try:
            then = await sync_to_async(self._try)(asked)
        except asyncio.CancelledError:
            self._flight.lands()
            raise
        then()

    def _answer(self, asked: _Asked, found: Any, error: BaseException | None) -> None:
        if asked.answer.done():
            pass
        elif error is None:
            asked.answer.set_result(found)
        else:
            asked.answer.set_exception(error)
        self._flight.lands()

    def _park(self, asked: _Asked, until: datetime | None) -> None:
        """Let it rest; it is none of the run's waits any more if whoever awaits it is cancelled."""
        if not asked.answer.cancelled():
            asked.until = until
            self._parked.add(asked)
            asked.answer.add_done_callback(lambda _: self._forget(asked))
        self._stir()
        self._flight.lands()

    def _stir(self) -> None:
        """There may be room in a group for one more branch."""
        for group in self._groups:
            group.set()

    def _resume(self, asked: _Asked) -> None:
        """Once the slice is over it stays parked, and its time is that of the next."""
        if not self._is_over and not asked.answer.done():
            asked.answer.set_exception(_Again())

    def _forget(self, asked: _Asked) -> None:
        if not self._is_over:
            self._parked.discard(asked)

    async def _together(self, wanted: Together) -> Ends:
        waiting = deque(range(len(wanted.branches)))
        going: dict[Line, int] = {}
        ends: Ends = {}
        room = asyncio.Event()
        self._groups.add(room)
        try:
            while not wanted.is_enough(ends) or (wanted.recalls and waiting):
                while waiting and self._has_room(going, wanted.most):
                    number = waiting.popleft()
                    going[self._start(wanted, number)] = number
                room.clear()
                await _first_of(going, room)
                for task in [task for task in going if task.done()]:
                    ends[going.pop(task)] = task.result()
            return ends
        finally:
            self._groups.discard(room)
            if not wanted.recalls:  # else they go on until nothing does
                for task in going:
                    task.cancel()

    def _has_room(self, going: Mapping[Line, int], most: int) -> bool:
        """Whether one more branch may begin: those in which everything has suspended do not count."""
        if len(going) < most:
            return True
        parked = {asked.scope for asked in self._parked}
        return self._lines.awake(going, parked) < most

    def _start(self, wanted: Together, number: int) -> Line:
        branch = wanted.branches[number]
        scope = branch.scope()

        async def work() -> End:
            try:
                value = branch.work()
                return End(scope, await value if hasattr(value, "__await__") else value)
            except Exception as error:
                return End(scope, error=error)

        context = copy_context()
        scopes.enter(scope, context)
        # Not by the factory: this branch has a scope.
        return self._lines.begin(work(), scope, loop=self._loop, context=context)

    # -- in the event loop: the handler as a whole -----------------------------------------------

    async def _execute(self, handler: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """The handler, until it ends or nothing goes on any more."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(self._begin)  # type: ignore[arg-type]
        self._lines.hold_cancels = self._journal.recalls
        with scopes.main_line():
            work = self._calls.with_orm(handler(**arguments))
            main = self._lines.begin(work, self._main, loop=self._loop)
            watch = asyncio.Task(self._until_nothing_goes_on(), loop=self._loop)
        await asyncio.wait({main, watch}, return_when=asyncio.FIRST_COMPLETED)
        if self._journal.recalls:
            await self._until_all_are_at_rest()
        self._is_over = not main.done()
        self._lines.hold_cancels = False
        await cancel_all()
        return await main

    async def _until_nothing_goes_on(self) -> None:
        """Come to an end once nothing is in flight, something is parked, and the loop is at rest."""
        while True:
            await self._flight.landed()
            if await self._is_at_rest() and self._parked:
                return

    async def _until_all_are_at_rest(self) -> None:
        """Let branches for which nobody waits go as far as they are recorded."""
        while not await self._is_at_rest():
            await self._flight.landed()

    async def _is_at_rest(self) -> bool:
        """Whether nothing goes on, also once what was to be cancelled is."""
        while await self._flight.is_at_rest():
            if not self._lines.let_cancels_go():
                return True
        return False

    def _begin(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        /,
        *,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        """A task that the handler's code begins is a branch; one of a step's function is none."""
        context = copy_context() if context is None else context
        parent = context.run(scopes.here) or self._main
        if context.run(scopes.inside):
            return asyncio.Task(coroutine, loop=loop, context=context, **options)
        scope, began = parent.task(), parent.looking.latest
        scopes.enter(scope, context)
        task = self._lines.begin(coroutine, scope, loop=loop, context=context, **options)
        task.add_done_callback(lambda _: parent.looking.joined(scope.looking, began))
        return task


async def _first_of(going: Mapping[Line, int], room: asyncio.Event) -> None:
    """Wait until a branch has ended, or there may be room for one more."""
    until_room = asyncio.Task(room.wait())
    try:
        await asyncio.wait({*going, until_room}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        until_room.cancel()


def _raise(error: BaseException) -> NoReturn:
    raise error
