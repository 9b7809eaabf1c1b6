"""Keeps watch over a process that executes runs, from threads that no user code holds up.

The heartbeat thread renews leases and looks after batches whose run is slow. Where all slots sit in
long user code nobody would take the bell for an event: then it also sees to it that it is routed.
"""

from __future__ import annotations

import logging
import os
import time

from durable_flows.engine import leases, native, ring, sql, stored
from durable_flows.engine.batch import look_after_all, slowest
from durable_flows.engine.route import route
from durable_flows.rules import clock

logger = logging.getLogger(__name__)

OLD = 1.0  # real seconds: an event that is unrouted for so long has found no free slot

_lock = native.lock()
_looked_at = 0.0
_routing = False


def keep_watch() -> None:
    """See to it that a thread of this process renews leases and looks after slow batches."""
    leases.watch(_look_after)


def _look_after() -> None:
    look_after_all()
    if (
        slowest() > OLD
        and _is_time_to_look()
        and stored.any_unrouted(clock.now() - clock.real(OLD))
    ):
        _start_routing()


def _is_time_to_look() -> bool:
    global _looked_at
    if time.monotonic() - _looked_at < OLD:
        return False
    _looked_at = time.monotonic()
    return True


def _start_routing() -> None:
    """In a thread of its own: conditions are user code, and the heartbeat waits for none."""
    global _routing
    with _lock:
        if _routing:
            return
        _routing = True
    native.start(_route)


def _route() -> None:
    global _routing
    try:
        for queue in route().queues:  # this process has no slot to drain them: others may
            ring.drain(queue)
    except Exception:
        logger.warning("events could not be routed beside busy slots; trying again", exc_info=True)
    finally:
        sql.connection().close()
        with _lock:
            _routing = False


def _forget() -> None:
    global _lock, _routing
    _lock, _routing = native.lock(), False


os.register_at_fork(after_in_child=_forget)
