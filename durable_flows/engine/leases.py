"""The leases that this process holds, and the thread that renews them.

A worker that dies renews nothing: its runs fall due again at the end of their leases.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from django.db import DatabaseError

from durable_flows import conf
from durable_flows.engine import native, sql
from durable_flows.models import Due
from durable_flows.rules import clock
from durable_flows.rules.states import HELD

logger = logging.getLogger(__name__)

LOOK = 0.5  # real seconds between two looks at what this process holds


@dataclass(frozen=True, slots=True)
class _Hold:
    lease: int
    since: float  # reading of time.monotonic() when it was claimed or renewed


_lock = native.lock()
_held: dict[uuid.UUID, _Hold] = {}
_look_after: Callable[[], None] | None = None
_beating = False


def hold(leases: Mapping[uuid.UUID, int]) -> None:
    """These runs were claimed by this process."""
    since = time.monotonic()
    with _lock:
        _held.update({run_id: _Hold(lease, since) for run_id, lease in leases.items()})
        _start_beating()


def release(run_id: uuid.UUID, lease: int) -> None:
    """This run has suspended, ended, or was lost; another thread may hold it anew by now."""
    with _lock:
        hold = _held.get(run_id)
        if hold is not None and hold.lease == lease:
            del _held[run_id]


def held() -> dict[uuid.UUID, int]:
    """Run → lease, of everything this process holds."""
    with _lock:
        return {run_id: hold.lease for run_id, hold in _held.items()}


def left(run_id: uuid.UUID, lease: int) -> float:
    """Real seconds for which this lease still holds; 0 or less if it is over, or not held here."""
    with _lock:
        hold = _held.get(run_id)
    if hold is None or hold.lease != lease:
        return 0.0
    return hold.since + conf.settings().LEASE_SECONDS - time.monotonic()


def renew() -> None:
    """Push the ends of all leases of this process forward, by one statement."""
    leases = held()
    if not leases:
        return
    since = time.monotonic()
    until = clock.now() + clock.real(conf.settings().LEASE_SECONDS)
    mine, columns = sql.table(Due, "mine", {"run_id": list(leases), "lease": list(leases.values())})
    # Sorted, as everybody locks due rows; one that somebody has in hand is renewed the next time.
    renewed = sql.execute(
        "WITH renewed AS MATERIALIZED (SELECT d.run_id FROM durable_flows_due d "
        f"JOIN {mine} ON mine.run_id = d.run_id AND mine.lease = d.lease "
        f"WHERE d.state IN {_in(HELD)} ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED) "
        "UPDATE durable_flows_due SET wake_at = %(until)s "
        "WHERE run_id IN (SELECT run_id FROM renewed) RETURNING run_id",
        {"until": until, **columns},
    )
    with _lock:
        for (run_id,) in renewed:
            hold = _held.get(sql.uid(run_id))
            if hold is not None and hold.lease == leases[sql.uid(run_id)]:
                _held[sql.uid(run_id)] = _Hold(hold.lease, since)


def move(by: timedelta) -> None:
    """Move live leases along with a clock that is about to be moved."""
    leases = held()
    rows = Due.objects.using(conf.settings().DATABASE).filter(state__in=HELD, run_id__in=leases)
    for run in rows:
        assert run.wake_at is not None
        rows.filter(pk=run.pk, lease=leases[run.pk]).update(wake_at=run.wake_at + by)


def watch(look_after: Callable[[], None] | None) -> None:
    """From now on, let a thread of this process renew its leases while it holds any.

    The thread has a connection of its own, which it opens when a lease is as old as
    ``HEARTBEAT_SECONDS``, or when ``look_after`` needs one.

    Args:
        look_after: called by that thread every half second while leases are held. None: no longer.
    """
    global _look_after
    with _lock:
        _look_after = look_after


def is_watched() -> bool:
    """Whether that thread is at work."""
    return _beating


def _start_beating() -> None:
    """The caller holds the lock."""
    global _beating
    if _look_after is None or _beating:
        return
    try:
        native.start(_beat)
        _beating = True
    except RuntimeError as error:
        logger.warning("no thread can be started to renew leases (%s)", error)


def _beat() -> None:
    while (look_after := _look_after_or_end()) is not None:
        native.sleep(min(LOOK, conf.settings().HEARTBEAT_SECONDS))
        try:
            if _age() >= conf.settings().HEARTBEAT_SECONDS:
                renew()
            look_after()
        except Exception as error:  # whatever it was, the leases must be renewed the next time
            unknown = None if isinstance(error, DatabaseError) else error
            logger.warning(
                "the heartbeat missed a beat (%s); trying again", error, exc_info=unknown
            )
            sql.connection().close()


def _look_after_or_end() -> Callable[[], None] | None:
    global _beating
    with _lock:
        if _held and _look_after is not None:
            return _look_after
    sql.connection().close()
    with _lock:
        _beating = bool(_held) and _look_after is not None  # what was claimed meanwhile
        return _look_after if _beating else None


def _age() -> float:
    """Real seconds since the oldest lease was claimed or renewed."""
    with _lock:
        oldest = min((hold.since for hold in _held.values()), default=None)
    return 0.0 if oldest is None else time.monotonic() - oldest


def _in(states: tuple[str, ...]) -> str:
    return "(" + ", ".join(f"'{state}'" for state in states) + ")"


def _forget() -> None:
    global _beating, _lock
    _beating, _lock = False, native.lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
