"""The Celery tasks: one engine verb each. They carry nothing; the rows say what is to be done."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from durable_flows.engine import execute, ring, sql, watch
from durable_flows.engine import purge as retention
from durable_flows.engine import tick as housekeeping
from durable_flows.engine.route import route as route_events

#: A lost doorbell is found by the tick: nothing is redelivered, nothing stored, nothing timed out.
_OPTIONS: dict[str, Any] = {"ignore_result": True, "acks_late": False, "serializer": "json"}


@shared_task(name=ring.ROUTE, **_OPTIONS)
def route() -> None:
    """Route events, then execute what they started or woke on this worker's own queues."""
    sql.tend()
    first, *others = sorted(route_events().queues & ring.served()) or [""]
    for queue in others:  # for another of this worker's slots: a long step must not hold it up
        ring.drain(queue)
    if first:
        _drain(first)


@shared_task(name=ring.DRAIN, **_OPTIONS)
def drain(queue: str) -> None:
    """Execute the due runs of a queue."""
    sql.tend()
    _drain(queue)


@shared_task(name=ring.TICK, **_OPTIONS)
def tick() -> None:
    """Find what lost doorbells left behind."""
    sql.tend()
    housekeeping.tick()


@shared_task(name=ring.PURGE, **_OPTIONS)
def purge() -> None:
    """Remove rows whose time is over, for a moment: the next tick rings for more."""
    sql.tend()
    retention.take_turn()


def _drain(queue: str) -> None:
    watch.keep_watch()
    execute.drain(queue)
