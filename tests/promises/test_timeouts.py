"""`timeouts=`: a run that takes too long to begin, or to end, is cancelled, whatever it does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from durable_flows import CancelOn, NonRetriableError, Step, Timeouts, cancel, flow, retry
from durable_flows.engine import deadlines, execute, leases, ring, sql
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.engine.tick import tick
from durable_flows.errors import InvalidDuration, InvalidOption
from durable_flows.models import Due, Run, Tick
from durable_flows.rules import clock
from durable_flows.testing import advance, drain, run_of, send
from tests.engine.test_two_writers import elsewhere, held_open
from tests.promises.staging import again, execute_due, forget, played

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def waiting_flow(**options: Any) -> Any:
    @flow("waits", on="go", **options)
    def waits(step: Step) -> str:
        step.wait_for_event("reply", event="replied", timeout="300 days")
        return "replied"

    return waits


def housekeeping() -> None:
    """The next tick, and nothing of what it rings for."""
    Tick.objects.all().delete()
    tick()


def test_a_run_that_does_not_begin_in_time_is_cancelled() -> None:
    waiting_flow(timeouts=Timeouts(start="1h"))
    event = send("go")
    route()
    advance("59m", play=False)
    housekeeping()
    assert run_of(event).state == "queued"
    advance("1m", play=False)
    housekeeping()
    assert (run_of(event).state, run_of(event).reason) == ("cancelled", "timeout: start")


def test_a_worker_that_comes_too_late_does_not_begin_it() -> None:
    calls: list[int] = []
    flow("late", on="go", timeouts=Timeouts(start="1h"))(lambda: calls.append(1))
    event = send("go")
    route()
    advance("2h", play=False)
    execute_due()
    assert (run_of(event).state, run_of(event).reason) == ("cancelled", "timeout: start")
    assert not calls


def test_a_run_that_began_in_time_may_take_any_time_to_end() -> None:
    waiting_flow(timeouts=Timeouts(start="1h"))
    run = played()
    advance("100 days")
    assert again(run).activity == "waiting"
    send("replied")
    drain()
    assert again(run).result == "replied"


def test_a_run_that_does_not_end_in_time_is_cancelled_while_it_waits() -> None:
    waiting_flow(timeouts=Timeouts(finish="7 days"))
    run = played()
    advance("6 days")
    assert again(run).activity == "waiting"
    advance("2 days")
    assert (again(run).state, again(run).reason) == ("cancelled", "timeout: finish")
    row = Run.objects.get()
    assert row.started_at is not None
    assert row.ended_at is not None
    assert timedelta(0) <= row.ended_at - row.started_at - timedelta(days=7) < timedelta(minutes=1)
    assert not Due.objects.exists()


def test_the_time_to_end_counts_from_the_begin_and_not_from_the_creation() -> None:
    waiting_flow(timeouts=Timeouts(start="2h", finish="1h"))
    event = send("go")
    route()
    advance("90m", play=False)
    drain()
    advance("59m")
    assert run_of(event).activity == "waiting"
    advance("2m")
    assert run_of(event).reason == "timeout: finish"


def test_a_run_that_ends_in_time_is_not_cancelled() -> None:
    waiting_flow(timeouts=Timeouts(start="1h", finish="1h"))
    run = played()
    send("replied")
    advance("5h")
    assert again(run).state == "completed"


def test_a_run_that_executes_records_the_step_in_hand_and_begins_no_other() -> None:
    calls: list[str] = []

    def take_long() -> str:
        advance("2h", play=False)
        housekeeping()
        return "done"

    @flow("long", on="go", timeouts=Timeouts(finish="1h"))
    def long(step: Step) -> None:
        step.run("first", take_long)
        step.run("second", lambda: calls.append("second"))

    run = played()
    assert (run.state, run.reason) == ("cancelled", "timeout: finish")
    assert run.step_keys == ["first"]
    assert not calls


def test_a_slice_that_begins_too_late_calls_nothing() -> None:
    calls: list[str] = []

    @flow("rests", on="go", timeouts=Timeouts(finish="1h"))
    def rests(step: Step) -> None:
        step.sleep("rest", "30m")
        calls.append("after")

    run = played()
    advance("2h", play=False)
    execute_due()
    assert (again(run).state, again(run).reason) == ("cancelled", "timeout: finish")
    assert not calls


def test_a_parked_run_is_cancelled_too() -> None:
    known = waiting_flow(timeouts=Timeouts(finish="1h"))
    run = played()
    forget(known)
    Due.objects.update(wake_at=clock.now())
    execute_due()
    assert again(run).activity == "parked"
    advance("2h", play=False)
    housekeeping()
    assert again(run).reason == "timeout: finish"


def test_a_sleeping_run_is_cancelled_too() -> None:
    @flow("sleeps", on="go", timeouts=Timeouts(finish="1h"))
    def sleeps(step: Step) -> None:
        step.sleep("rest", "30 days")

    run = played()
    advance("59m")
    assert again(run).activity == "waiting"
    advance("2m", play=False)
    housekeeping()
    assert (again(run).state, again(run).reason) == ("cancelled", "timeout: finish")
    assert not Due.objects.exists()


def test_a_parked_run_that_never_began_is_cancelled_too() -> None:
    known = waiting_flow(timeouts=Timeouts(start="1h"))
    event = send("go")
    route()
    forget(known)
    execute_due()
    assert run_of(event).activity == "parked"
    advance("2h", play=False)
    housekeeping()
    assert run_of(event).state == "cancelled"


def test_a_retry_gets_all_the_time_again() -> None:
    broken = [True]

    @flow("fails", on="go", timeouts=Timeouts(start="1h", finish="1h"))
    def fails(step: Step) -> str:
        if broken:
            raise NonRetriableError
        step.sleep("rest", "50m")
        return "done"

    run = played()
    assert run.state == "failed"
    advance("5h")
    broken.clear()
    retry(run.id)
    drain()
    assert again(run).activity == "waiting"
    advance("1h")
    assert again(run).result == "done"


def test_a_retry_must_begin_and_end_in_time_too() -> None:
    broken = [True]

    @flow("fails", on="go", timeouts=Timeouts(start="1h", finish="1h"))
    def fails(step: Step) -> None:
        if broken:
            raise NonRetriableError
        step.sleep("rest", "5h")

    run = played()
    advance("5h")
    retry(run.id)
    route()
    advance("2h", play=False)
    housekeeping()
    assert again(run).reason == "timeout: start"
    other = played()
    broken.clear()
    retry(other.id)
    drain()
    advance("2h")
    assert again(other).reason == "timeout: finish"


def test_a_worker_that_dies_before_it_noted_the_end_does_not_bring_the_begin_back() -> None:
    waiting_flow(timeouts=Timeouts(start="1h", finish="10h"))
    event = send("go")
    route()
    (taken,) = claim(ring.default_queue(), 1)
    leases.release(taken.run_id, taken.lease)  # and dies
    advance("2h", play=False)
    deadlines.serve()
    assert run_of(event).state == "started"
    drain()
    assert run_of(event).activity == "waiting"
    advance("9h")
    assert run_of(event).reason == "timeout: finish"


def test_another_limit_of_a_later_deploy_holds_from_the_next_slice_on() -> None:
    before = waiting_flow(timeouts=Timeouts(finish="1h"))
    run = played()
    forget(before)
    waiting_flow(timeouts=Timeouts(finish="10h"))
    Due.objects.update(wake_at=clock.now())
    drain()
    advance("5h")
    assert again(run).activity == "waiting"
    advance("6h")
    assert again(run).reason == "timeout: finish"


def test_whatever_cancels_it_first_is_the_reason() -> None:
    waiting_flow(timeouts=Timeouts(finish="1h"), cancel_on=CancelOn("stop"))
    first, second = played(), played()
    cancel(first.id, reason="told so")
    drain()
    send("stop")
    drain()
    advance("2h")
    assert again(first).reason == "told so"
    assert again(second).reason.startswith("event stop")


def test_any_number_of_late_runs_are_cancelled_by_one_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "AT_ONCE", 2)
    waiting_flow(timeouts=Timeouts(finish="1h"))
    for _ in range(5):
        played()
    advance("2h", play=False)
    housekeeping()
    assert set(Run.objects.values_list("state", flat=True)) == {"cancelled"}


@pytest.mark.parametrize(("timeouts", "notes"), [(None, 0), (Timeouts(finish="1h"), 1)])
def test_who_sets_no_timeouts_pays_for_none(timeouts: Timeouts | None, notes: int) -> None:
    @flow("rests", on="go", timeouts=timeouts)
    def rests(step: Step) -> None:
        step.sleep("rest", "1m")

    sent: list[str] = []
    event = send("go")
    route()
    sql.observers.append(sent.append)
    try:
        execute_due()
        clock.advance(timedelta(minutes=2))
        execute_due()
    finally:
        sql.observers.remove(sent.append)
    assert run_of(event).state == "completed"
    assert len([text for text in sent if "SET deadline_at" in text]) == notes


@pytest.mark.two_writers
@pytest.mark.django_db(transaction=True)
def test_a_run_that_somebody_has_in_hand_is_put_off_and_not_waited_for() -> None:
    waiting_flow(timeouts=Timeouts(finish="1h"))
    run = played()
    advance("2h", play=False)

    def lock() -> None:
        list(Due.objects.select_for_update())

    with held_open(lock), elsewhere() as submit:
        assert submit(deadlines.serve).result(10) == 0
    assert again(run).activity == "waiting"
    with transaction.atomic():
        assert deadlines.serve() == 1
    assert again(run).state == "cancelled"


def test_what_is_drained_by_hand_is_cancelled_too() -> None:
    waiting_flow(timeouts=Timeouts(finish="1h"))
    run = played()
    advance("2h", play=False)
    drain()
    assert again(run).state == "cancelled"
    assert execute.drain(ring.default_queue()) == 0


@pytest.mark.parametrize("wrong", [{"start": "0s"}, {"finish": "400 days"}, {"finish": "soon"}])
def test_a_limit_that_is_none_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidDuration, match=f"Timeouts.{next(iter(wrong))}"):
        Timeouts(**wrong)


def test_timeouts_without_a_limit_and_what_is_no_timeouts_are_errors() -> None:
    with pytest.raises(InvalidOption, match="start=, finish= or both"):
        Timeouts()
    with pytest.raises(InvalidOption, match=r"flow 'x': timeouts= takes Timeouts\("):
        flow("x", timeouts="1h")(lambda: None)  # type: ignore[arg-type]
