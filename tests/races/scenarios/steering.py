"""People who steer a run or take an event back, while everything goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from unittest.mock import patch
from uuid import UUID

from django.db import transaction

from durable_flows import (
    NonRetriableError,
    Step,
    bulk_progress,
    cancel_all,
    cancel_bulk,
    flow,
    replay,
    rerun,
    retry,
    skip,
    withdraw,
)
from durable_flows.engine import bulk, inherit, paced
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.errors import RunHasEnded
from durable_flows.models import BulkAction, Event, Run, Wait
from durable_flows.models import Step as StepRow
from durable_flows.rules import clock, events
from durable_flows.testing import drain, send
from tests.races.company import unseen
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import admitted, claimed, routing, slice_of, work

NO_NUDGE = Twin(
    without="a wake of who is running, after its wait was cut short",
    rewrite=cutting(r"nudged = \(state IN [^)]*\)+", "nudged = false"),
)


def _asks() -> None:
    @flow("asks", on="asked")
    def asks(step: Step) -> str:
        found = step.wait_for_event("reply", event="replied", timeout="1h")
        return "cut" if found is None else "event"


def _skip(run: Claim) -> None:
    skip(run.run_id, "reply")
    route()


def _as_the_wait_ended(run: Claim, _: Sequence[object]) -> str:
    wait, result = Wait.objects.get(), Run.objects.get(pk=run.run_id).result
    for refused in Event.objects.filter(name=events.SKIP).values_list("error", flat=True):
        assert bool(refused) == (wait.outcome != "cut"), f"{wait.outcome}, and {refused!r}"
    if not wait.outcome:  # it was skipped before it waited
        assert result is None
        return "too early"
    ended = "cut" if wait.outcome == "timeout" else wait.outcome
    assert result == f'"{ended}"', f"{result} is the result of {wait.outcome!r}"
    return wait.outcome


def skip_against_wait() -> Scenario:
    """It is skipped while its slice registers it, looks back, and suspends."""
    _asks()
    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("slice", slice_of), ("skipper", _skip)],
        holds=_as_the_wait_ended,
        sampled=100,
        outcomes=frozenset({"cut", "too early"}),
        twins=[NO_NUDGE],
    )


def skip_against_event() -> Scenario:
    """The event is found by a look back while somebody skips the wait."""
    _asks()

    def stage() -> Claim:
        with transaction.atomic():
            run = claimed("asked")
            send("replied")
        route()
        return run

    return Scenario(
        stage=stage,
        actors=[("slice", slice_of), ("skipper", _skip)],
        holds=_as_the_wait_ended,
        sampled=100,
        refuses=(RunHasEnded,),
        outcomes=frozenset({"cut", "event"}),
        twins=[
            Twin(
                without="one conditional UPDATE that cuts a wait short",
                rewrite=cutting(" AND settled_at IS NULL", of="outcome = 'cut'"),
            ),
        ],
    )


def skip_against_timeout() -> Scenario:
    """Its time is over, and a worker is about to say so."""
    _asks()

    def stage() -> Claim:
        run = claimed("asked")
        slice_of(run)
        clock.advance(timedelta(hours=2))
        return run

    return Scenario(
        stage=stage,
        actors=[("slice", work), ("skipper", _skip)],
        holds=_as_the_wait_ended,
        sampled=100,
        refuses=(RunHasEnded,),
        outcomes=frozenset({"cut", "timeout"}),
        twins=[
            Twin(
                without="one conditional UPDATE that ends a wait",
                rewrite=cutting(
                    r" AND durable_flows_wait\.settled_at IS NULL", of="SET settled_at"
                ),
            ),
        ],
    )


def skip_against_sleep() -> Scenario:
    @flow("sleeps", on="asked")
    def sleeps(step: Step) -> str:
        step.sleep("reply", "1h")
        return "awake"

    def holds(run: Claim, _: Sequence[object]) -> str:
        sleep, result = StepRow.objects.get(), Run.objects.get(pk=run.run_id).result
        refused = Event.objects.get(name=events.SKIP).error
        assert bool(refused) == (sleep.state == "done"), f"{sleep.state}, and {refused!r}"
        assert (result is None) == (sleep.state == "done"), f"{result} of a sleep {sleep.state}"
        return sleep.state

    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("slice", slice_of), ("skipper", _skip)],
        holds=holds,
        sampled=100,
        outcomes=frozenset({"skipped", "done"}),
        twins=[NO_NUDGE],
    )


def withdraw_against_router() -> Scenario:
    """The withdrawal is committed when the event's time has come."""
    flow("quick", on="a/b")(lambda: None)

    def take_back(event_id: str) -> None:
        with transaction.atomic():
            with unseen():
                withdraw(event_id)
            clock.advance(timedelta(hours=2))
        route()

    def holds(event_id: str, _: Sequence[object]) -> str:
        event, started = Event.objects.get(pk=event_id), Run.objects.count()
        refused = Event.objects.get(name=events.WITHDRAW).error
        assert started == (not event.withdrawn), f"{started} runs, withdrawn: {event.withdrawn}"
        assert bool(refused) != event.withdrawn, f"withdrawn: {event.withdrawn}, and {refused!r}"
        return "withdrawn" if event.withdrawn else "delivered"

    return Scenario(
        stage=lambda: send("a/b", ts=clock.now() + timedelta(hours=1)),
        actors=[("withdrawer", take_back), ("router", routing)],
        holds=holds,
        sampled=100,
        outcomes=frozenset({"withdrawn", "delivered"}),
        twins=[
            Twin(
                without="the condition that nobody has taken it in hand",
                rewrite=cutting(r" AND durable_flows_event\.routed IS NULL", of="withdrawn = true"),
            ),
        ],
    )


def rerun_from_a_step_against_retry() -> Scenario:
    """The step that failed is forgotten and executed anew, in the old run, while a new one begins there."""
    calls: list[str] = []

    @flow("fails", on="a/b")
    def fails(step: Step) -> None:
        def fail_once() -> None:
            calls.append("second")
            if len(calls) == 2:
                raise NonRetriableError("once")

        step.run("first", lambda: calls.append("first"))
        step.run("second", fail_once)

    def stage() -> UUID:
        calls.clear()
        event_id = admitted("a/b")
        drain()
        run: UUID = Run.objects.get(event_id=event_id).pk
        return run

    def go_on(run: UUID) -> None:
        retry(run)
        route()
        work()

    def begin_again(run: UUID) -> None:
        with transaction.atomic(), unseen():
            rerun(run, from_step="second")
        route()

    def holds(run: UUID, _: Sequence[object]) -> str:
        assert Run.objects.get(pk=run).state == "completed"
        found = Run.objects.get(origin=run)
        taken = StepRow.objects.filter(run=found).order_by("seq").values_list("key", "lease")
        assert [(key, lease > 0) for key, lease in taken] == [("first", False), ("second", True)]
        assert calls == ["first", "second", "second", "second"]
        return "rerun"

    return Scenario(
        stage=stage,
        actors=[("retrier", go_on), ("rerunner", begin_again)],
        holds=holds,
        sampled=100,
        twins=[
            Twin(
                without="the place of the step, noted when it was asked for",
                rewrite=cutting(
                    r"seq < %\(before\)s",
                    "seq < (SELECT b.seq FROM durable_flows_step b "
                    "WHERE b.run_id = %(origin)s AND b.key = %(key)s)",
                ),
            ),
        ],
    )


def rerun_with_an_output_against_router() -> Scenario:
    """Two routers have the command in hand, and the new run ends before the second is done with it."""

    @flow("asks", on="asked")
    def asks(step: Step) -> list[bool]:
        return [
            step.wait_for_event("reply", event="replied", timeout="1h") is not None,
            step.run("second", bool),
        ]

    def stage() -> UUID:
        admitted("asked")
        drain()
        send("replied")
        drain()
        return UUID(rerun(Run.objects.get().pk, from_step="second", output=True))

    def route_and_work(_: UUID) -> None:
        route()
        work()

    def holds(run: UUID, _: Sequence[object]) -> str:
        assert Run.objects.get(pk=run).result == "[true,true]"
        taken = StepRow.objects.filter(run_id=run).order_by("seq").values_list("key", "lease")
        assert list(taken) == [("reply", 0), ("second", 0)]
        assert Wait.objects.filter(run_id=run, outcome="event").count() == 1
        return "once"

    return Scenario(
        stage=stage,
        actors=[("router", route_and_work), ("other router", routing)],
        holds=holds,
        sampled=100,
        twins=[
            Twin(
                without="the events that were used up by what is taken over",
                patch=lambda: patch.object(inherit, "_copy_waits", lambda *_: None),
            ),
        ],
    )


def tick_against_tick_on_a_bulk_action() -> Scenario:
    """Both carry on with it: each run is asked for once."""

    @flow("fails", on="a/b", retries=0)
    def fails() -> None:
        raise NonRetriableError("no")

    def stage() -> UUID:
        for _ in range(3):
            send("a/b")
        drain()
        asked = UUID(replay("fails", rate="1000/s"))
        route()
        return asked

    def carry_on(bulk_id: UUID) -> None:
        for _ in range(3):
            paced.next_batch(bulk_id)

    def holds(bulk_id: UUID, _: Sequence[object]) -> str:
        while paced.next_batch(bulk_id) is not None:
            pass
        drain()
        again = Run.objects.filter(origin__isnull=False)
        assert again.count() == again.values("origin").distinct().count() == 3
        assert bulk_progress(bulk_id).done == 3
        return "once each"

    return Scenario(
        stage=stage,
        actors=[("one", carry_on), ("other", carry_on)],
        holds=holds,
        sampled=100,
        meanwhile=lambda: patch.object(bulk, "AT_ONCE", 1),
        twins=[
            Twin(
                without="the lock on the row of the bulk action",
                rewrite=cutting("FOR UPDATE SKIP LOCKED", of="durable_flows_bulkaction"),
            ),
        ],
    )


def tick_against_tick_that_counts() -> Scenario:
    """Both count the runs of a bulk action: each run is counted once."""
    flow("any", on="a/b")(lambda: None)

    def stage() -> UUID:
        for _ in range(3):
            send("a/b")
        drain()
        asked = UUID(replay("any", state="completed", rate="1000/s"))
        route()
        return asked

    def count(bulk_id: UUID) -> None:
        while paced.count_on(bulk_id) is not None:
            pass

    def holds(bulk_id: UUID, _: Sequence[object]) -> str:
        total = bulk_progress(bulk_id).total
        assert total == 3, f"{total} of 3 runs"
        return "once each"

    return Scenario(
        stage=stage,
        actors=[("one", count), ("other", count)],
        holds=holds,
        sampled=100,
        meanwhile=lambda: patch.object(bulk, "SPAN", 1),
        twins=[
            Twin(
                without="the condition that it was counted up to here",
                rewrite=cutting(r" AND counted = %\(counted\)s", of="SET total"),
            ),
        ],
    )


def beginning_a_bulk_action_by_hand_against_router() -> Scenario:
    """Whoever is at the command line begins what the router begins too."""
    flow("any", on="a/b")(lambda: None)

    def stage() -> UUID:
        send("a/b")
        drain()
        return UUID(replay("any", state="completed"))

    def by_hand(bulk_id: UUID) -> None:
        bulk.begin(bulk_id)
        while paced.next_batch(bulk_id) is not None:
            pass

    def holds(bulk_id: UUID, _: Sequence[object]) -> str:
        drain()
        assert BulkAction.objects.get().pk == bulk_id
        again = Run.objects.filter(origin__isnull=False).count()
        assert again == 1, f"done again {again} times"
        command = Event.objects.get(pk=bulk_id)
        assert not command.error, command.error
        return bulk_progress(bulk_id).state

    return Scenario(
        stage=stage,
        actors=[("by hand", by_hand), ("router", routing)],
        holds=holds,
        sampled=100,
        twins=[
            Twin(
                without="the conflict clause of the bulk action",
                rewrite=cutting(" ON CONFLICT DO NOTHING", of="INTO durable_flows_bulkaction"),
            ),
        ],
    )


def cancelling_a_bulk_action_against_tick() -> Scenario:
    """What is cancelled goes no further, whatever a tick that has begun makes of it."""

    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "1h")

    def stage() -> UUID:
        for _ in range(2):
            send("a/b")
        drain()
        bulk_id = UUID(cancel_all("rests"))
        route()
        cancel_bulk(bulk_id)
        return bulk_id

    def carry_on(bulk_id: UUID) -> None:
        for _ in range(3):
            paced.next_batch(bulk_id)

    def holds(bulk_id: UUID, _: Sequence[object]) -> str:
        found = BulkAction.objects.get()
        refused = Event.objects.get(name=events.STOP_BULK).error
        assert (found.state == "cancelled") != bool(refused), f"{found.state}, and {refused!r}"
        assert Event.objects.filter(name=events.CANCEL).count() == found.done
        return f"{found.state} after {found.done}"

    return Scenario(
        stage=stage,
        actors=[("tick", carry_on), ("router", routing)],
        holds=holds,
        sampled=100,
        meanwhile=lambda: patch.object(bulk, "AT_ONCE", 1),
        twins=[
            Twin(
                without="the lock on the row of the bulk action",
                rewrite=cutting("FOR UPDATE SKIP LOCKED", of="durable_flows_bulkaction"),
            ),
        ],
    )


RACES = [
    tick_against_tick_on_a_bulk_action,
    tick_against_tick_that_counts,
    beginning_a_bulk_action_by_hand_against_router,
    cancelling_a_bulk_action_against_tick,
    rerun_with_an_output_against_router,
    skip_against_wait,
    skip_against_event,
    skip_against_timeout,
    skip_against_sleep,
    withdraw_against_router,
    rerun_from_a_step_against_retry,
]
