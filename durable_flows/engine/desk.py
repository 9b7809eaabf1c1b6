"""The desk of a slice: where its own thread does what branches in other threads ask it to.

The slice's own thread alone writes the journal, on one connection and one thing after the other. While
it waits for branches it sits at the desk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from durable_flows.errors import LeaseLost, StepInThread

T = TypeVar("T")

LOOK = 1.0  # real seconds between two looks at whether a suspended branch was woken


class Ask:
    """Something to be done at the desk, and its answer.

    Args:
        work: what is to be done.
        answer: is given what comes of it.
    """

    def __init__(self, work: Callable[[], Any], answer: Future[Any]) -> None:
        self._work = work
        self._answer = answer

    def serve(self) -> None:
        """Do it."""
        try:
            self._answer.set_result(self._work())
        except BaseException as error:
            self._answer.set_exception(error)

    def refuse(self) -> None:
        """The slice is over: who asks must end, too."""
        self._answer.set_exception(LeaseLost("the slice of this branch is over"))


class Note:
    """Something that the desk is told."""

    def __init__(self, news: Callable[[], None]) -> None:
        self._news = news

    def serve(self) -> None:
        """Take notice."""
        self._news()

    def refuse(self) -> None:
        """The slice is over: it matters no more."""


class Desk:
    """Made by the thread that sits at it."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._inbox: SimpleQueue[Ask | Note] = SimpleQueue()
        self._lock = threading.Lock()
        self._branches: set[int] = set()
        self._is_closed = False

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is the one that sits here."""
        return threading.get_ident() == self._owner

    def do(self, work: Callable[[], T]) -> T:
        """Have this done, and return what came of it.

        Raises:
            StepInThread: the calling thread is none of the slice's.
            LeaseLost: the slice is over.
        """
        if self.is_mine:
            return work()
        if threading.get_ident() not in self._branches:
            raise StepInThread(
                "a step is called in a thread that the handler, or a step's function, has started: its "
                "place among the run's steps would depend on timing; use step.parallel()"
            )
        answer: Future[T] = Future()
        self.put(Ask(work, answer))
        return answer.result()

    def put(self, ask: Ask | Note) -> None:
        """Have this done, and do not wait."""
        with self._lock:
            if not self._is_closed:
                self._inbox.put(ask)
                return
        ask.refuse()

    def sit(self, seconds: float) -> None:
        """Do the next thing, if one is asked for within so many real seconds."""
        with suppress(Empty):
            self._inbox.get(timeout=seconds).serve()

    def admit(self) -> None:
        """The calling thread carries a branch from now on."""
        self._branches.add(threading.get_ident())

    def dismiss(self) -> None:
        """The calling thread carries no branch any more."""
        self._branches.discard(threading.get_ident())

    def close(self) -> None:
        """The slice is over: whoever still asks is refused."""
        with self._lock:
            self._is_closed = True
        while not self._inbox.empty():
            self._inbox.get().refuse()
