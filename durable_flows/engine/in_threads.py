"""Drives the tools of a handler that is written with ``def``: its branches are threads.

A branch that suspends is unwound, as a handler is, and called again when its time has come while others
still go on. When none goes on any more, the slice ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connections

from durable_flows.engine import scopes
from durable_flows.engine.desk import LOOK, Desk, Note
from durable_flows.engine.journal import Journal
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
from durable_flows.errors import LeaseLost, Suspend, SuspendSwallowed
from durable_flows.rules import clock


class Threads:
    """Drives tools in the threads that call them.

    Args:
        journal: of the slice.
        main: the handler's main line.
        alone: everything happens in one thread, one branch after the other: no other thread sees the
            rows of an open transaction.
    """

    def __init__(self, journal: Journal, main: Scope, *, alone: bool) -> None:
        self._journal = journal
        self._main = main
        self._alone = alone
        self._desk = Desk()
        self._threads: list[threading.Thread] = []

    def play(self, handler: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call the handler."""
        try:
            with scopes.main_line():
                return handler(**arguments)
        finally:
            self._desk.close()
            if self._journal.is_in_doubt:  # what is to be undone must have come to its end before
                for thread in self._threads:
                    thread.join()

    @property
    def scope(self) -> Scope:
        """The line of the handler that the calling code is in."""
        return scopes.here() or self._main

    def check(self) -> None:
        """Raise the signal that has ended this line, if one has."""
        self._journal.check()
        stopped = self.scope.stopped
        if stopped is not None:
            raise stopped

    def drive(self, place: Place, make: Callable[[], Tool]) -> Any:
        """Do what a tool asks for, and return its result."""
        tool = make()
        is_mine = self._desk.is_mine
        try:
            wanted = next(tool)
            while True:
                try:
                    if isinstance(wanted, Write) and is_mine:  # noqa: SIM108 (as a rule)
                        found = wanted.work()
                    else:
                        found = self._take(wanted)
                except BaseException as error:
                    wanted = tool.throw(error)
                else:
                    wanted = tool.send(found)
        except StopIteration as end:
            return end.value
        except Suspend as signal:
            self.scope.stopped = signal
            raise

    def _take(self, wanted: Write | Call | Together) -> Any:
        if isinstance(wanted, Write):
            return self._desk.do(partial(self._do, self.scope, wanted.work))
        if isinstance(wanted, Call):
            token = scopes.go_in(wanted.key)
            try:
                return _awaited(wanted.work())
            finally:
                scopes.go_out(token)
        return _Group(wanted, self._journal, self._desk, self._threads, alone=self._alone).run()

    def _do(self, scope: Scope, work: Callable[[], Any]) -> Any:
        """At the desk: a branch that has lost meanwhile is told so."""
        if scope.is_closed:
            raise LeaseLost("the group of this branch has come to its end without it")
        return work()


def _awaited(result: Any) -> Any:
    """What a function has returned; that of a coroutine function is executed here."""
    if not hasattr(result, "__await__"):
        return result

    async def wait() -> Any:
        return await result

    return async_to_sync(wait)()


class _Group:
    """Branches that go on beside each other, and the thread that waits for them."""

    def __init__(
        self,
        wanted: Together,
        journal: Journal,
        desk: Desk,
        threads: list[threading.Thread],
        *,
        alone: bool,
    ) -> None:
        self._wanted = wanted
        self._threads = threads
        self._journal = journal
        self._desk = desk
        self._alone = alone
        self._notes: SimpleQueue[Note] = SimpleQueue()
        self._at_desk = desk.is_mine
        self._waiting = deque(range(len(wanted.branches)))
        self._going: set[int] = set()
        self._asleep: dict[int, datetime] = {}
        self._scopes: dict[int, Scope] = {}
        self._ends: Ends = {}
        self._signal: BaseException | None = None
        self._nudges = journal.nudges

    def run(self) -> Ends:
        """Execute them until it is enough.

        Raises:
            Suspend: some are suspended, and no other goes on.
            BaseException: another signal that ends the slice; none goes on any more.
        """
        try:
            return self._run()
        finally:
            for number in self._going:
                self._scopes[number].close()

    def _run(self) -> Ends:
        while not self._is_enough():
            if self._waiting and len(self._going) < self._wanted.most and self._signal is None:
                self._start(self._waiting.popleft())
            elif self._going:
                self._listen()
                self._wake()
            else:
                raise self._signal or Suspend(min(self._asleep.values()))
        return self._ends

    def _is_enough(self) -> bool:
        if self._wanted.recalls and (self._waiting or self._going):
            return False
        return self._wanted.is_enough(self._ends)

    def _start(self, number: int) -> None:
        """Let a branch begin, or go on."""
        self._asleep.pop(number, None)
        self._going.add(number)
        self._scopes[number] = self._wanted.branches[number].scope()
        context = copy_context()
        if self._alone:
            context.run(self._execute, number)
            return
        thread = threading.Thread(
            target=context.run,
            args=(self._in_a_thread, number),
            name=f"durable-flows-branch-{number}",
            daemon=True,  # the loser of a race holds up nobody's exit
        )
        self._threads.append(thread)
        thread.start()

    def _in_a_thread(self, number: int) -> None:
        self._desk.admit()
        try:
            self._execute(number)
        finally:
            self._desk.dismiss()
            connections.close_all()

    def _execute(self, number: int) -> None:
        """One stretch of a branch; whoever waits for it is told what came of it."""
        branch, scope = self._wanted.branches[number], self._scopes[number]
        scopes.enter(scope)
        try:
            end = End(scope, branch.work())
            if scope.stopped is not None:
                end = End(scope, error=_swallowed(scope))
        except Suspend as signal:
            self._tell(partial(self._sleeps, number, signal.until))
        except ENDS_OF_A_SLICE as signal:
            self._tell(partial(self._is_stopped, number, signal))
        except BaseException as error:
            end = End(scope, error=error if scope.stopped is None else _swallowed(scope))
            self._tell(partial(self._has_ended, number, end))
        else:
            self._tell(partial(self._has_ended, number, end))

    def _tell(self, news: Callable[[], None]) -> None:
        if self._alone:
            news()
        elif self._at_desk:
            self._desk.put(Note(news))
        else:
            self._notes.put(Note(news))

    def _has_ended(self, number: int, end: End) -> None:
        self._going.discard(number)
        self._ends[number] = end

    def _sleeps(self, number: int, until: datetime) -> None:
        self._going.discard(number)
        self._asleep[number] = until

    def _is_stopped(self, number: int, signal: BaseException) -> None:
        """The others come to their next step, and end as well."""
        self._going.discard(number)
        self._signal = self._signal or signal

    def _listen(self) -> None:
        """Wait until something happens, or somebody has slept long enough."""
        until = min(self._asleep.values(), default=None)
        seconds = LOOK if until is None else min(LOOK, clock.real_seconds_until(until))
        if self._at_desk:
            self._desk.sit(max(0.0, seconds))
            return
        with suppress(Empty):
            self._notes.get(timeout=max(0.0, seconds)).serve()

    def _wake(self) -> None:
        """Let those go on whose time has come; all of them if the run was woken."""
        if not self._asleep:
            return
        nudges = self._desk.do(self._journal.look_for_nudges)
        was_woken, self._nudges = nudges != self._nudges, nudges
        now = clock.now()
        for number, until in list(self._asleep.items()):
            if was_woken or until <= now:
                del self._asleep[number]
                self._waiting.append(number)


def _swallowed(scope: Scope) -> SuspendSwallowed:
    return SuspendSwallowed(
        f"a branch ({scope.path.rstrip('/')}) caught the signal that suspends it and went on; it is a "
        "BaseException: write `except Exception:`, not `except:` or `except BaseException:`, around steps"
    )
