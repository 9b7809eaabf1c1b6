"""Room for one suspect: a run whose last claim did not end is executed beside no other such run.

Should the process die meanwhile, it is known of what. In a pool of threads the others must wait for
that; not for long, since a run that is to kill its worker mostly does so at once.
"""

from __future__ import annotations

import os
import time

from durable_flows.engine import native

LONGEST = 10.0  # real seconds for which a suspect keeps the others away

_lock = native.lock()
_taken_at: float | None = None


def take() -> float | None:
    """Take the room for one suspect. Returns what `leave` asks for, or None: it is taken."""
    global _taken_at
    now = time.monotonic()
    with _lock:
        if _taken_at is not None and now - _taken_at < LONGEST:
            return None
        _taken_at = now
    return now


def leave(taken_at: float | None) -> None:
    """Make room for the next suspect, unless somebody else has the room by now."""
    global _taken_at
    with _lock:
        if taken_at is not None and _taken_at == taken_at:
            _taken_at = None


def _forget() -> None:
    global _lock, _taken_at
    _lock, _taken_at = native.lock(), None


os.register_at_fork(after_in_child=_forget)
