"""Lets one router at a time work in this process: SQLite has no lock to hold between transactions."""

from __future__ import annotations

import os
from collections.abc import Callable

from durable_flows.engine import native


class Turns:
    """Who finds another at work leaves: that one looks once more."""

    def __init__(self) -> None:
        self._lock = native.lock()
        self._asked = False

    def take(self, work: Callable[[], None]) -> None:
        """Do it, and once more if somebody has asked for it meanwhile; or leave it to who is at it."""
        self._asked = True
        while self._asked and self._lock.acquire(blocking=False):
            try:
                self._asked = False
                work()
            finally:
                self._lock.release()


_turns = Turns()


def take(work: Callable[[], None]) -> None:
    """As `Turns.take`, in turn with whoever else does in this process."""
    _turns.take(work)


def _forget() -> None:
    global _turns
    _turns = Turns()  # a lock that was held by another thread of the parent stays so in a fork


os.register_at_fork(after_in_child=_forget)
