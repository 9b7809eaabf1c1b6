"""Keeps watch over a process that executes runs, from threads that no user code holds up.

The heartbeat thread renews leases and sees to it that batches whose run is slow are looked after. Where all
slots sit in long user code nobody would take the bell for an event: then it has it routed, too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from durable_flows.engine import leases, native, ring, sql, stored
from durable_flows.engine.batch import any_held_up, look_after_all, slowest
from durable_flows.engine.route import route
from durable_flows.rules import clock

logger = logging.getLogger(__name__)

OLD = 1.0  # real seconds: an event that is unrouted for so long has found no free slot

_looked_at = 0.0


class _Beside:
    """What the heartbeat has done in a thread of its own, one at a time: it waits for nobody.

    Conditions are user code, and a row that is written may be in somebody's hand for long; meanwhile
    leases must be renewed.
    """

    def __init__(self, call: Callable[[], None], failure: str) -> None:
        self._call = call
        self._failure = failure
        self._lock = native.lock()
        self._is_busy = False

    def start(self) -> None:
        """Begin, unless it is being done.

        Raises:
            RuntimeError: no thread can be started any more.
        """
        with self._lock:
            if self._is_busy:
                return
            native.start(self._work)
            self._is_busy = True

    def _work(self) -> None:
        try:
            self._call()
        except Exception:
            logger.warning("%s; trying again", self._failure, exc_info=True)
        finally:
            sql.connection().close()
            with self._lock:
                self._is_busy = False


def _route() -> None:
    for queue in route().queues:  # this process has no slot to drain them: others may
        ring.drain(queue)


def _helpers() -> tuple[_Beside, _Beside]:
    return (
        _Beside(look_after_all, "slow runs hold up their neighbours, which could not be helped"),
        _Beside(_route, "events could not be routed beside busy slots"),
    )


_helping, _routing = _helpers()


def keep_watch() -> None:
    """See to it that a thread of this process renews leases and looks after slow batches."""
    leases.watch(_look_after)


def _look_after() -> None:
    if any_held_up():
        _helping.start()
    if (
        slowest() > OLD
        and _is_time_to_look()
        and stored.any_unrouted(clock.now() - clock.real(OLD))
    ):
        _routing.start()


def _is_time_to_look() -> bool:
    global _looked_at
    if time.monotonic() - _looked_at < OLD:
        return False
    _looked_at = time.monotonic()
    return True


def _forget() -> None:
    global _helping, _routing
    _helping, _routing = _helpers()


os.register_at_fork(after_in_child=_forget)
