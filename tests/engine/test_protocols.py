"""The protocols that close races, each driven through the one order of things that it is there for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.test import override_settings

from durable_flows import CancelOn, Event, Fixed, Retries, Step, StepError, cancel, flow, retry
from durable_flows import Run as RunInfo
from durable_flows.engine import batch, execute, failpoints, ingest, leases, lookback, ring, sql
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.engine.stop import stopping
from durable_flows.models import Due, Run, Wait
from durable_flows.models import Event as Stored
from durable_flows.rules import clock
from durable_flows.testing import advance, crash_at, drain, run_of, send, sent

pytestmark = pytest.mark.django_db


def at(place: str, call: Callable[[], object]) -> None:
    """Do something else, once, while the engine stands at a named place."""

    def trap(reached: str, detail: str) -> None:
        if reached == place:
            failpoints.trap = None
            call()

    failpoints.trap = trap


def be_taken_over() -> None:
    """Another worker claims what this one holds, thinking it dead."""
    Due.objects.update(wake_at=clock.now() - timedelta(seconds=1))
    assert claim(ring.default_queue(), 10)


def execute_due() -> None:
    execute.drain(ring.default_queue())


def test_a_step_of_a_slice_that_was_taken_over_is_not_recorded() -> None:
    flow("slow", on="a/b")(lambda step: step.run("long", be_taken_over))
    event = send("a/b")
    route()
    execute_due()
    assert run_of(event).steps == ()
    assert Due.objects.get().lease == 2


def test_the_end_of_a_slice_that_was_taken_over_is_not_written() -> None:
    flow("slow", on="a/b")(lambda: be_taken_over())
    event = send("a/b")
    route()
    execute_due()
    assert run_of(event).state == "started"


def test_a_failed_attempt_of_a_slice_that_was_taken_over_is_not_recorded() -> None:
    def fail() -> None:
        be_taken_over()
        raise ConnectionError

    flow("slow", on="a/b")(lambda step: step.run("long", fail))
    event = send("a/b")
    route()
    execute_due()
    assert run_of(event).attempts == {}


def test_a_slice_that_was_taken_over_does_not_suspend_the_run_of_another() -> None:
    flow("slow", on="a/b")(lambda step: step.sleep("rest", "1h"))
    event = send("a/b")
    route()
    at("before_suspend", be_taken_over)
    execute_due()
    assert run_of(event).activity == "running"


def test_events_that_a_slice_sends_after_it_was_taken_over_do_not_exist() -> None:
    @flow("teller", on="a/b")
    def teller(step: Step) -> None:
        be_taken_over()
        step.send_event("tell", Event("a/told"))

    send("a/b")
    route()
    execute_due()
    assert not Stored.objects.filter(name="a/told").exists()


def test_a_reply_routed_before_its_wait_is_found_though_the_slice_died_before_it_looked() -> None:
    def ask() -> None:
        send("a/replied")
        route()

    @flow("asks", on="a/began")
    def asks(step: Step) -> bool:
        step.run("ask", ask)
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    event = send("a/began")
    with crash_at("wait_registered"):
        drain()
    assert Wait.objects.pending().count() == 1
    drain()
    assert run_of(event).result is True


def test_a_reply_during_the_step_that_asked_is_found_though_that_step_was_killed_and_repeated() -> (
    None
):
    asked = []

    def ask() -> None:
        asked.append(1)
        if len(asked) == 1:  # only the first asking is answered
            send("a/replied")
            route()

    @flow("asks", on="a/began")
    def asks(step: Step) -> bool:
        step.run("before", lambda: None)
        step.run("ask", ask)
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    event = send("a/began")
    with crash_at("step_ran", "ask"):
        drain()
    drain()
    assert len(asked) == 2
    assert run_of(event).result is True


def test_a_run_that_ended_between_the_routers_transactions_is_not_made_due_again() -> None:
    calls = []
    flow("quick", on="a/b")(lambda: calls.append("called"))
    event = send("a/b")
    with crash_at("before_routed_commit"):
        crash = failpoints.trap
        at("between_routing_transactions", lambda: execute_due_and_set(crash))
        drain()
    assert run_of(event).state == "completed"
    drain()
    assert calls == ["called"]
    assert not Due.objects.exists()


def execute_due_and_set(trap: Callable[[str, str], None] | None) -> None:
    execute_due()
    failpoints.trap = trap


def test_a_wait_registered_between_the_routers_transactions_takes_nothing_older_than_its_trigger() -> (
    None
):
    @flow("waits", on="a/began")
    def waits(step: Step) -> bool:
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    send("a/replied")
    event = send("a/began")
    at("between_routing_transactions", execute_due)
    route()
    execute_due()
    assert run_of(event).activity == "waiting"


def test_a_wait_registered_between_the_routers_transactions_takes_what_came_after_its_trigger() -> (
    None
):
    @flow("waits", on="a/began")
    def waits(step: Step) -> bool:
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    event = send("a/began")
    send("a/replied")
    at("between_routing_transactions", execute_due)
    route()
    execute_due()
    assert run_of(event).result is True


def test_an_attempt_is_not_made_before_its_time_whatever_wakes_the_run() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError

    flow("fails", on="a/b", retries=Retries(3, backoff=Fixed("1h")))(
        lambda step: step.run("x", fail)
    )
    flow("fails-between", on="a/b", retries=Retries(3, backoff=Fixed("1h")))(lambda: fail())
    send("a/b")
    drain()
    Due.objects.update(wake_at=clock.now())
    drain()
    assert len(calls) == 2
    advance("1h")
    assert len(calls) == 4


def test_an_event_that_came_in_time_wins_though_its_waiter_looks_before_it_is_routed() -> None:
    @flow("waits", on="a/began")
    def waits(step: Step) -> bool:
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    event = send("a/began")
    drain()
    advance("30m")
    send("a/replied")
    advance("2h", play=False)
    execute_due()  # the timeout is over, and the event not yet routed
    assert run_of(event).state == "started"
    drain()
    assert run_of(event).result is True


def test_an_event_that_came_too_late_does_not_win_though_its_waiter_never_looked() -> None:
    @flow("waits", on="a/began")
    def waits(step: Step) -> bool:
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    event = send("a/began")
    drain()
    advance("2h", play=False)
    send("a/replied")
    drain()
    assert run_of(event).result is False


def test_a_trigger_that_was_long_in_coming_is_cancelled_by_what_was_routed_before_it() -> None:
    """A transaction held open: the older event becomes visible after the newer one was routed."""

    @flow("newest", on="a/b", cancel_on=CancelOn("a/b", match="data.x"))
    def newest(step: Step) -> None:
        step.sleep("rest", "1h")

    late = send("a/b", {"x": 1})
    Stored.objects.filter(pk=late).update(deliver_at=clock.now() + timedelta(days=1))  # invisible
    newer = send("a/b", {"x": 1})
    drain()
    assert run_of(newer).activity == "waiting"
    Stored.objects.filter(pk=late).update(deliver_at=Stored.objects.get(pk=late).received_at)
    drain()
    assert run_of(late).state == "cancelled"
    assert run_of(newer).activity == "waiting"


def test_a_slow_run_holds_up_neither_the_ends_before_it_nor_the_runs_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "SLOW", 0.0)
    seen: dict[str, str] = {}

    def take_long() -> None:
        batch.look_after_all()  # what the heartbeat thread does twice a second
        seen.update(Run.objects.values_list("flow", "state"))
        seen["behind it"] = run_of(last).activity

    flow("fast", on="a/1")(lambda: None)
    flow("slow", on="a/2")(lambda step: step.run("long", take_long))
    flow("behind", on="a/3")(lambda: None)
    send("a/1")
    send("a/2")
    last = send("a/3")
    drain()
    assert seen == {
        "fast": "completed",
        "slow": "started",
        "behind": "started",
        "behind it": "queued",
    }
    assert run_of(last).state == "completed"
    assert Run.objects.get(flow="behind").lease == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE durable_flows_run SET state = 'started'",
        "SELECT s.run_id, s.key, s.kind",
        "UPDATE durable_flows_due SET state = CASE WHEN state = 'cancelling' THEN state WHEN nudged",
        "DELETE FROM durable_flows_due",
        "UPDATE durable_flows_run SET lease = given.lease",
    ],
)
@pytest.mark.django_db(transaction=True)
@override_settings(DURABLE_FLOWS={"RING": "off", "LEASE_SECONDS": 0.2})
def test_a_run_that_could_not_be_written_is_not_held_for_ever(statement: str) -> None:
    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "1h")

    event = send("a/b")
    with failing(statement) as failures, pytest.raises(OperationalError):
        advance("2h")
    assert failures
    assert leases.held() == {}
    advance("3h", play=False)
    advance("1h")
    assert run_of(event).state == "completed"


@contextmanager
def failing(statement: str) -> Iterator[list[str]]:
    """The database gives no answer to a statement, however often it is sent."""
    failures: list[str] = []

    def fail(text: str) -> None:
        if statement in text:
            failures.append(text)
            raise OperationalError("gone")

    sql.observers.append(fail)
    try:
        yield failures
    finally:
        sql.observers.remove(fail)


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_cannot_be_looked_at_again_is_not_held_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "STALE", -1.0)
    flow("any", on="a/b")(lambda: None)
    event = send("a/b")
    with failing("SELECT state FROM durable_flows_due"), pytest.raises(OperationalError):
        drain()
    assert leases.held() == {}
    advance("1m")
    assert run_of(event).state == "completed"


# -- what a worker or a router that dies, or an answer that never comes, must not change -----------


def test_a_matched_wait_found_again_by_another_worker_still_finds_its_reply() -> None:
    """The first of its kind: no router had noted what such a wait compares."""

    def ask() -> None:
        send("a/replied", {"k": 1})
        route()

    @flow("asks", on="a/began")
    def asks(step: Step) -> bool:
        step.run("ask", ask)
        found = step.wait_for_event("reply", event="a/replied", match="data.k", timeout="1h")
        return found is not None

    event = send("a/began", {"k": 1})
    with crash_at("wait_registered") as crash:
        drain()
    assert crash.happened
    drain()
    assert run_of(event).result is True


def test_a_first_wait_of_its_kind_finds_its_reply_behind_any_number_of_others() -> None:
    others = 2 * lookback.AT_ONCE + 1

    def ask() -> None:
        ingest.send([Event("a/replied", {"k": 0})] * others + [Event("a/replied", {"k": 1})])
        route()

    @flow("asks", on="a/began")
    def asks(step: Step) -> bool:
        step.run("ask", ask)
        found = step.wait_for_event("reply", event="a/replied", match="data.k", timeout="1h")
        return found is not None

    event = send("a/began", {"k": 1})
    drain()
    assert run_of(event).result is True


def test_a_steps_wait_may_be_called_whatever_a_cancel_rule_is_called() -> None:
    @flow("waits", on="a/began", cancel_on=CancelOn("a/stop"))
    def waits(step: Step) -> bool:
        return step.wait_for_event("cancel:0", event="a/replied", timeout="1h") is not None

    event = send("a/began")
    drain()
    assert Due.objects.get().lease == 1
    send("a/replied")
    drain()
    assert run_of(event).result is True


@pytest.mark.parametrize("exit_", [SystemExit, asyncio.CancelledError])
def test_code_that_exits_has_failed_and_its_worker_goes_on(exit_: type[BaseException]) -> None:
    calls = []

    def leave() -> None:
        calls.append(1)
        raise exit_

    flow("leaves", on="a/b")(lambda step: step.run("leave", leave))
    flow("leaves-between", on="a/b")(leave)
    flow("stays", on="a/b")(lambda: "here")
    event = send("a/b")
    drain()
    assert [run_of(event, name).state for name in ("leaves", "leaves-between", "stays")] == [
        "failed",
        "failed",
        "completed",
    ]
    assert run_of(event, "leaves").error["step"] == "leave"
    assert len(calls) == 2


def test_the_reason_of_a_cancellation_stands_whatever_the_handler_came_to() -> None:
    @flow("fails", on="a/b", retries=0)
    def fails(run: RunInfo) -> None:
        cancel(run.id, reason="told so")
        route()
        raise ValueError

    event = send("a/b")
    drain()
    assert (run_of(event).state, run_of(event).reason) == ("cancelled", "told so")


def test_a_retry_goes_on_from_the_failed_step_though_the_handler_gave_its_failure_another_name() -> (
    None
):
    mended: list[bool] = []

    def charge() -> str:
        if not mended:
            raise ValueError
        return "charged"

    @flow("wraps", on="a/b", retries=0)
    def wraps(step: Step) -> str:
        try:
            return step.run("charge", charge)
        except StepError as error:
            raise RuntimeError("payment failed") from error

    event = send("a/b")
    drain()
    assert run_of(event).error["step"] == "charge"
    mended.append(True)
    retry(run_of(event).id)
    drain()
    assert run_of(event).result == "charged"


def test_a_slice_that_lost_its_run_while_it_looked_back_calls_nothing_more() -> None:
    calls: list[int] = []

    @flow("waits", on="a/began")
    def waits(step: Step) -> None:
        try:
            step.wait_for_event("reply", event="a/replied", timeout="1h")
        finally:
            step.run("clean", lambda: calls.append(1))

    send("a/began")
    route()
    send("a/replied")
    route()
    at("wait_registered", be_taken_over)
    execute_due()
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_events_whose_commit_got_no_answer_are_not_taken_for_sent() -> None:
    left = [1]

    def lose(text: str) -> None:
        if "INSERT INTO durable_flows_event " in text and left:
            left.pop()
            raise OperationalError("the connection is lost")

    @flow("tells", on="a/b")
    def tells(step: Step) -> None:
        try:
            step.send_event("tell", Event("a/told"))
        except Exception:
            pytest.fail("the handler was told of what is not its business")
        step.run("next", lambda: None)

    event = send("a/b")
    sql.observers.append(lose)
    try:
        advance("5m")
    finally:
        sql.observers.remove(lose)
    assert not left
    assert run_of(event).step_keys == ["tell", "next"]
    assert len(sent("a/told")) == 1


def test_a_lease_is_released_by_its_number_alone() -> None:
    flow("any", on="a/b")(lambda: None)
    send("a/b")
    route()
    (first,) = claim(ring.default_queue(), 1)
    Due.objects.update(wake_at=clock.now() - timedelta(seconds=1))
    (second,) = claim(ring.default_queue(), 1)
    leases.release(first.run_id, first.lease)
    assert leases.held() == {second.run_id: second.lease}


def test_a_worker_that_is_told_to_stop_begins_no_further_run_and_gives_the_others_back() -> None:
    calls = []

    @flow("stops", on="a/b")
    def stops() -> None:
        calls.append(1)
        stopping.set()

    for _ in range(3):
        send("a/b")
    route()
    try:
        execute_due()
    finally:
        stopping.clear()
    assert len(calls) == 1
    assert Due.objects.filter(state="queued", claims=0).count() == 2
    assert leases.held() == {}


def test_a_router_with_a_stream_of_events_rings_after_each_batch() -> None:
    rung: list[int] = []
    batches = [0]

    def stream(place: str, detail: str) -> None:
        if place == "before_routed_commit":
            batches[0] += 1
            if batches[0] < 5:
                send("a/b")

    flow("any", on="a/b")(lambda: None)
    failpoints.trap = stream
    send("a/b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "drain", lambda queue: rung.append(batches[0]))
        route()
    assert rung == [1, 2, 3, 4, 5]
