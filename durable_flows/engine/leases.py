"""The leases that this process holds, and the thread that renews them.

A worker that dies renews nothing: its runs fall due again at the end of their leases.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta

from django.db import Error as DatabaseError

from durable_flows import conf
from durable_flows.engine import sql
from durable_flows.models import Due
from durable_flows.rules import clock
from durable_flows.rules.states import HELD

logger = logging.getLogger(__name__)

LOOK = 0.5  # real seconds between two looks at what this process holds

_lock = threading.Lock()
_held: dict[uuid.UUID, int] = {}  # run → lease
_watcher: threading.Thread | None = None
_wake = threading.Event()


def hold(leases: Mapping[uuid.UUID, int]) -> None:
    """These runs were claimed by this process."""
    with _lock:
        _held.update(leases)
    _wake.set()


def release(run_id: uuid.UUID, lease: int) -> None:
    """This run has suspended, ended, or was lost; another thread may hold it anew by now."""
    with _lock:
        if _held.get(run_id) == lease:
            del _held[run_id]


def held() -> dict[uuid.UUID, int]:
    """Run → lease, of everything this process holds."""
    with _lock:
        return dict(_held)


def renew() -> None:
    """Push the ends of all leases of this process forward, by one statement."""
    _move("wake_at = %(until)s", {"until": clock.now() + clock.real(conf.settings().LEASE_SECONDS)})


def move(by: timedelta) -> None:
    """Move live leases along with a clock that is about to be moved."""
    leases = held()
    rows = Due.objects.using(conf.settings().DATABASE).filter(state__in=HELD, run_id__in=leases)
    for run in rows:
        assert run.wake_at is not None
        rows.filter(pk=run.pk, lease=leases[run.pk]).update(wake_at=run.wake_at + by)


def watch(look_after: Callable[[], None]) -> None:
    """See to it that this process has a thread that renews its leases.

    Args:
        look_after: called by that thread every half second while leases are held.
    """
    global _watcher
    with _lock:
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(
                target=_renew_forever,
                args=[look_after],
                name="durable-flows-heartbeat",
                daemon=True,
            )
            _watcher.start()


def _renew_forever(look_after: Callable[[], None]) -> None:
    renewed = time.monotonic()
    while True:
        if not held():
            sql.connection().close()
            _wake.wait()
            renewed = time.monotonic()
        _wake.clear()
        time.sleep(min(LOOK, conf.settings().HEARTBEAT_SECONDS))
        try:
            if time.monotonic() - renewed >= conf.settings().HEARTBEAT_SECONDS:
                renew()
                renewed = time.monotonic()
            look_after()
        except DatabaseError:
            logger.warning("leases could not be renewed; trying again", exc_info=True)
            sql.connection().close()


def _move(assignment: str, params: dict[str, object]) -> None:
    leases = held()
    if not leases:
        return
    mine, columns = sql.table(Due, "mine", {"run_id": list(leases), "lease": list(leases.values())})
    # Sorted, as everybody locks due rows; one that somebody has in hand is renewed the next time.
    sql.execute(
        "WITH renewed AS MATERIALIZED (SELECT d.run_id FROM durable_flows_due d "
        f"JOIN {mine} ON mine.run_id = d.run_id AND mine.lease = d.lease "
        f"WHERE d.state IN {_in(HELD)} ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED) "
        f"UPDATE durable_flows_due SET {assignment} "
        "WHERE run_id IN (SELECT run_id FROM renewed)",
        {**params, **columns},
    )


def _in(states: tuple[str, ...]) -> str:
    return "(" + ", ".join(f"'{state}'" for state in states) + ")"


def _forget() -> None:
    global _watcher, _lock, _wake
    _watcher, _lock, _wake = None, threading.Lock(), threading.Event()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
