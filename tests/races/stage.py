"""The stage: cleared before each schedule, and how everything goes on when the race is over."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

from django.apps import apps
from django.db import connection
from django.db.models import Exists, OuterRef

from durable_flows import conf
from durable_flows.engine import audience, batch, clocksync, execute, leases, ring, sql
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.models import Due, Event, Run, Wait
from durable_flows.rules import clock
from durable_flows.rules.states import HELD, TERMINAL
from durable_flows.testing import drain, send


def clear() -> None:
    """Empty all tables of the app, and let go of what the last schedule held."""
    with connection.cursor() as cursor:
        emptied = [f"DELETE FROM {table}" for table in _tables()]
        cursor.execute("; ".join(["SET synchronous_commit = off", *emptied]))
    clock.reset()
    clocksync.synchronise()
    for run_id, lease in leases.held().items():
        leases.release(run_id, lease)


def _tables() -> list[str]:
    return [model._meta.db_table for model in apps.get_app_config("durable_flows").get_models()]


@contextmanager
def patience() -> Iterator[None]:
    """Inside, nothing that the engine does depends on how long a step takes: schedules can be repeated."""
    with (
        patch.object(sql, "_BOUNDED", "set_config('lock_timeout', '10min', true)"),
        patch.multiple(batch, FLUSH=600.0, SLOW=600.0),
        patch.object(execute, "STALE", 600.0),
        patch.multiple(audience, LOOK=0.0, LONGEST=600.0),
        patch.object(random, "shuffle", lambda _: None),
        ring.silence(),
    ):
        logging.disable()  # what is refused or fails in a race is as it should be
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def play_on() -> None:
    """Let the engine go on until nothing is left to do, and check that nothing is left behind."""
    drain()
    if _take_over_what_nobody_executes():
        drain()
    nothing_is_left_behind()


def _take_over_what_nobody_executes() -> int:
    """Whoever raced is gone: what they still hold falls due at the end of its lease."""
    for run_id, lease in leases.held().items():
        leases.release(run_id, lease)
    return Due.objects.filter(state__in=HELD).update(wake_at=clock.now())


def nothing_is_left_behind() -> None:
    """What must be so whenever the engine has come to rest."""
    now = clock.now()
    unrouted = Event.objects.filter(routed_at__isnull=True, deliver_at__lte=now)
    assert not unrouted.exists(), f"never routed: {list(unrouted)}"
    due = Due.objects.filter(wake_at__lte=now)
    assert not due.exists(), f"due, and never executed: {list(due)}"
    ended = Due.objects.filter(run__state__in=TERMINAL)
    assert not ended.exists(), f"ended, and still scheduled: {list(ended)}"
    orphans = Due.objects.filter(~Exists(Run.objects.filter(pk=OuterRef("pk"))))
    assert not orphans.exists(), f"scheduled without a run: {list(orphans)}"
    stranded = Run.objects.exclude(state__in=TERMINAL).filter(due__isnull=True)
    assert not stranded.exists(), f"unfinished, and never scheduled: {list(stranded)}"
    open_ = Wait.objects.filter(run__state__in=TERMINAL, settled_at__isnull=True)
    assert not open_.exists(), f"still waiting after its run's end: {list(open_)}"


# -- what scenarios begin with ---------------------------------------------------------------


def admitted(name: str, data: dict[str, object] | None = None) -> str:
    """Send an event and route it; what it starts is due."""
    event_id = send(name, data)
    route()
    return event_id


def claimed(name: str, data: dict[str, object] | None = None) -> Claim:
    """A run that somebody has just claimed."""
    admitted(name, data)
    (one,) = claim(ring.default_queue(), 1)
    return one


def lapse(run: Claim) -> None:
    """The worker that holds a run is thought to be dead: its lease has ended."""
    leases.release(run.run_id, run.lease)
    Due.objects.filter(pk=run.run_id).update(wake_at=clock.now() - timedelta(seconds=1))


# -- what actors do ----------------------------------------------------------------------------


def slice_of(run: Claim) -> None:
    """Execute a claimed run until it suspends or ends."""
    execute._execute_batch([run])


def work(_: object = None) -> list[Claim]:
    """Claim what is due, and execute it."""
    claims = claim(ring.default_queue(), conf.settings().CLAIM_BATCH)
    for run in claims:
        slice_of(run)
    return claims


def routing(_: object = None) -> None:
    """Route what there is."""
    route()
