"""Threads of the operating system, also where gevent or eventlet has put greenlets in their place.

A greenlet that computes lets no other greenlet of its thread run. Whoever must not be held up by user
code, the heartbeat, therefore needs a real thread, real locks and a real sleep. Such a lock is held
for a few lines without I/O only, so that a greenlet that waits for it does not hold up its thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol


class Lock(Protocol):
    """What `lock` returns."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102
    def __enter__(self) -> bool: ...
    def __exit__(self, *error: object) -> None: ...


def lock() -> Lock:
    """A lock of the operating system."""
    made: Lock = _original("_thread", "allocate_lock")()
    return made


def start(call: Callable[[], None]) -> None:
    """Call in a thread of the operating system that ends with the process at the latest.

    Raises:
        RuntimeError: no thread can be started any more.
    """
    _original("_thread", "start_new_thread")(call, ())


def sleep(seconds: float) -> None:
    """Let this thread, and no other, rest for so many real seconds."""
    _original("time", "sleep")(seconds)


def _original(module: str, name: str) -> Any:
    """What Python has under this name where nobody has patched it; imports no greenlet library."""
    if gevent := sys.modules.get("gevent.monkey"):
        return gevent.get_original(module, name)
    if eventlet := sys.modules.get("eventlet.patcher"):
        module = "threading" if module == "_thread" else module
        name = {"allocate_lock": "_allocate_lock", "start_new_thread": "_start_new_thread"}.get(
            name, name
        )
        return getattr(eventlet.original(module), name)
    return getattr(import_module(module), name)
