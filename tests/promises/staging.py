"""What the tests of promises stage: an event played through, a moment of the engine, a wave of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from durable_flows import Event, models
from durable_flows.declare import flow
from durable_flows.engine import execute, failpoints, ring
from durable_flows.flows import Flow
from durable_flows.registry import registry
from durable_flows.rules import clock
from durable_flows.testing import RunView, drain, run_of, send


def played(name: str | Event[Any] = "go", data: Any = None, **fields: Any) -> RunView:
    """Send an event, do what is due, and look at the run that it started."""
    event_id = send(name, data, **fields)
    drain()
    return run_of(event_id)


def again(run: RunView) -> RunView:
    """The same run as it stands now."""
    return run_of(run.id)


def listener(name: str, *, flow_id: str = "listener") -> list[str]:
    """Declare a flow on an event; the list grows by the id of each event that starts it."""
    started: list[str] = []

    @flow(flow_id, on=name)
    def listen(event):
        started.append(event.public_id)

    return started


def stored() -> list[str]:
    """The names of the events that are stored, in the order of their arrival."""
    return list(models.Event.objects.order_by("arrival").values_list("name", flat=True))


def row(event_id: str) -> models.Event:
    """The stored event."""
    return models.Event.objects.get(pk=UUID(event_id))


def execute_due() -> int:
    """Execute what is due, and route nothing: a worker whose router is slow."""
    return execute.drain(ring.default_queue())


def milliseconds(moment: datetime) -> int:
    """As `ts` counts them."""
    return int(moment.timestamp() * 1000)


def now() -> datetime:
    """By the one clock."""
    return clock.now()


def forget(known: Flow) -> None:
    """A deploy without this flow."""
    registry.remove(known)


class _Undone(Exception):
    """Rolls a transaction back."""


@contextmanager
def rolled_back() -> Iterator[None]:
    """A transaction (inside another one: a savepoint) that is not committed."""
    with suppress(_Undone), transaction.atomic():
        yield
        raise _Undone


@contextmanager
def once_at(place: str, call: Callable[[], object], detail: str | None = None) -> Iterator[None]:
    """Do something in the very moment in which the engine reaches a place for the first time."""
    left = 1
    before = failpoints.trap

    def trap(reached: str, about: str) -> None:
        nonlocal left
        if left and reached == place and detail in (None, about):
            left -= 1
            call()
        elif before is not None:
            before(reached, about)

    failpoints.trap = trap
    try:
        yield
    finally:
        failpoints.trap = before
    assert not left, f"the engine never came to {place} {detail or ''}"
