"""An event, a timeout and a cancellation want to end the same wait."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from unittest.mock import patch

from django.db import transaction

from durable_flows import Step, cancel, flow
from durable_flows.engine import settle
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.models import Run, Wait
from durable_flows.rules import clock
from durable_flows.testing import drain, send
from tests.races.company import unseen
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import admitted, claimed, routing, slice_of, work


def _asks() -> None:
    @flow("asks", on="asked")
    def asks(step: Step) -> str:
        found = step.wait_for_event("reply", event="replied", timeout="1h")
        return "timeout" if found is None else "event"


def _the_event_was_seen(run: Claim, _: Sequence[object]) -> str:
    assert Run.objects.get(pk=run.run_id).result == '"event"', "the event is lost"
    assert Wait.objects.get().outcome == "event"
    return "event"


NO_LOOK_BACK = Twin(
    without="the look back after the wait's commit",
    patch=lambda: patch.object(settle, "look_back", lambda _, wait: wait),
)


def wait_against_event() -> Scenario:
    _asks()

    def stage() -> Claim:
        run = claimed("asked")
        send("replied")
        return run

    return Scenario(
        stage=stage,
        actors=[("slice", slice_of), ("router", routing)],
        holds=_the_event_was_seen,
        twins=[
            NO_LOOK_BACK,
            Twin(
                without="a wake of who is running, after its wait was ended",
                rewrite=cutting(r"nudged = \(state IN [^)]*\)+", "nudged = false"),
            ),
        ],
    )


def wait_against_event_sent_late() -> Scenario:
    """It is sent in a transaction that may commit after the wait's registration."""
    _asks()

    def reply(_: Claim) -> None:
        with transaction.atomic():
            send("replied")
        route()

    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("sender", reply), ("slice", slice_of)],
        holds=_the_event_was_seen,
        twins=[
            NO_LOOK_BACK,
            Twin(
                without="a place by when an event is routed, and not by when it was sent",
                rewrite=cutting(r"SET routed = t\.routed", "SET routed = durable_flows_event.mark"),
            ),
        ],
    )


def event_against_timeout_against_cancel() -> Scenario:
    """The event was sent in time, by a transaction that commits when the time is over."""
    _asks()

    def stage() -> str:
        event_id = admitted("asked")
        drain()
        return str(Run.objects.get(event_id=event_id).pk)

    def reply(_: str) -> None:
        with transaction.atomic():
            with unseen():
                send("replied")
            clock.advance(timedelta(hours=2))
        route()

    def stop(run_id: str) -> None:
        cancel(run_id)
        route()

    def holds(run_id: str, _: Sequence[object]) -> str:
        run, wait = Run.objects.get(pk=run_id), Wait.objects.get()
        if run.state == "cancelled":
            assert run.result is None
            return "cancel"
        assert run.result == f'"{wait.outcome}"', f"{run.result} is the result of {wait.outcome!r}"
        return wait.outcome

    return Scenario(
        stage=stage,
        actors=[("sender", reply), ("slice", work), ("canceller", stop)],
        holds=holds,
        outcomes=frozenset({"event", "timeout", "cancel"}),
        sampled=1_500,
        twins=[
            Twin(
                without="one conditional UPDATE that ends a wait",
                rewrite=cutting(
                    r" AND durable_flows_wait\.settled_at IS NULL", of="SET settled_at"
                ),
            ),
        ],
    )


def event_in_pieces_against_timeouts() -> Scenario:
    """Two wait for the same event, which came in time and is settled one wait at a time."""
    _asks()

    def stage() -> None:
        send("asked")
        send("asked")
        drain()
        send("replied")
        clock.advance(timedelta(hours=2))

    def holds(_: None, __: Sequence[object]) -> str:
        results = set(Run.objects.values_list("result", flat=True))
        assert results == {'"event"'}, "an event that came in time lost to a timeout"
        return "events"

    return Scenario(
        stage=stage,
        actors=[("router", routing), ("slices", work)],
        holds=holds,
        sampled=300,
        meanwhile=lambda: patch.object(settle, "PIECE", 1),
        twins=[
            Twin(
                without="a look at what is not routed yet, before a timeout",
                patch=lambda: patch.object(settle, "_unrouted_in_time", lambda _: False),
            ),
        ],
    )


RACES = [
    wait_against_event,
    wait_against_event_sent_late,
    event_against_timeout_against_cancel,
    event_in_pieces_against_timeouts,
]
