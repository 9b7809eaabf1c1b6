"""``flows tick``: routes and executes by hand, where no broker and no worker does."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError

from durable_flows import conf
from durable_flows.engine import deployments, leases, purge, ring, sql, watch
from durable_flows.engine import tick as housekeeping
from durable_flows.engine.stop import stopping
from durable_flows.models import Due, Event
from durable_flows.rules import clock

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.25  # real seconds after the first failure of the database; doubled each time
LONGEST_PAUSE = 10.0
SHORTEST_REST = 0.05  # real seconds: what is due may be in another process's hand


def turn_once() -> int:
    """Route and execute what is due now.

    Returns:
        The number of events routed and slices executed.
    """
    deployments.take_part()
    deployments.publish()
    with ring.silence():
        watch.keep_watch()
        count = housekeeping.turn_by_hand()
        purge.take_turn()
        return count


def turn_until_told(interval: float) -> None:
    """Route and execute everything as it falls due, until SIGINT or SIGTERM, or `stopping`.

    A database that goes away is waited for.

    Args:
        interval: real seconds after which it looks again at the latest; before that when a timer
            that it knows of falls due.
    """
    failures = 0
    purging = _Purging()
    with ring.silence(), _told_by_signals(), deployments.published():
        watch.keep_watch()
        while not stopping.is_set():
            try:
                purging.now_and_then()
                if not housekeeping.turn_by_hand():
                    stopping.wait(_rest(interval))
                failures = 0
            except (OperationalError, InterfaceError) as error:
                failures += 1
                _wait_for_database(error, failures)


class _Purging:
    """Does what ticks ring for elsewhere, as often."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def now_and_then(self) -> None:
        """Purge for a moment, if it is time to."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + conf.settings().TICK_SECONDS
            purge.take_turn()


def _rest(interval: float) -> float:
    """Real seconds until something falls due, at most ``interval``."""
    moments = [
        moment for moment in (_next_event(), _next_deadline(), *_next_runs()) if moment is not None
    ]
    seconds = [clock.real_seconds_until(moment) for moment in moments]
    return max(SHORTEST_REST, min([interval, *seconds]))


def _next_event() -> Any:
    unrouted = Event.objects.using(conf.settings().DATABASE).filter(routed_at__isnull=True)
    return unrouted.order_by("deliver_at").values_list("deliver_at", flat=True).first()


def _next_deadline() -> Any:
    due = Due.objects.using(conf.settings().DATABASE).filter(deadline_at__isnull=False)
    return due.order_by("deadline_at").values_list("deadline_at", flat=True).first()


def _next_runs() -> Iterator[Any]:
    for queue in housekeeping.queues():
        due = Due.objects.using(conf.settings().DATABASE).filter(queue=queue)
        moments = due.filter(wake_at__isnull=False).order_by("wake_at")
        yield moments.values_list("wake_at", flat=True).first()


def _wait_for_database(error: Exception, failures: int) -> None:
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10))
    logger.warning("the database failed (%s); trying again in %.3g s", _line(error), pause)
    for run_id, lease in leases.held().items():  # nothing executes here: they fall due again
        leases.release(run_id, lease)
    with suppress(DatabaseError):
        sql.connection().close()
    stopping.wait(pause)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _told_by_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM ask for an end at the next boundary, the second end at once."""
    stopping.clear()
    before: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        _restore(before)
        # Not here: the main thread may be inside wait(), holding the event's own lock.
        threading.Thread(target=stopping.set, daemon=True).start()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        _restore(before)
        stopping.clear()


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
