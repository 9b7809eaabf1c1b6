"""A worker that dies, at each place where it may: the run ends right, and nothing is done twice."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group

from durable_flows import (
    CancelOn,
    Event,
    Fixed,
    InvokeTimeout,
    NonRetriableError,
    Retries,
    Step,
    Timeouts,
    bulk_progress,
    cancel,
    cancel_all,
    flow,
    rerun,
    retry,
    withdraw,
)
from durable_flows.engine import failpoints, finish, purge, ring, slices
from durable_flows.engine.claim import claim
from durable_flows.engine.history import History
from durable_flows.engine.route import route
from durable_flows.engine.stop import stopping
from durable_flows.engine.tick import tick
from durable_flows.errors import InvalidSetting
from durable_flows.models import Due, Run, Wait
from durable_flows.models import Event as StoredEvent
from durable_flows.registry import registry
from durable_flows.rules import clock, events
from durable_flows.testing import Crash, advance, crash_at, drain, run_of, runs_of, send

pytestmark = pytest.mark.django_db

#: Which function of the journey may be called once more for a death at a place.
REPEATED = {"step_ran": "ask", "before_atomic_commit": "book"}
#: Places that the journey does not come to: each has a test of its own here.
ELSEWHERE = {
    *("before_hand_back", "handed_back", "between_pieces"),
    *("before_quarantine", "command_obeyed", "before_give_back", "given_back"),
    *("before_map_commit", "map_advanced"),  # with those of step.map
    *("children_cancelled", "tick_taken", "unparked"),
    *("events_withdrawn", "history_taken_over", "before_bulk_commit", "bulk_carried_on"),
    *("purge_taken", "before_purge_commit", "purged"),
}


@pytest.fixture
def calls() -> Counter[str]:
    """How often each function of the flow was called."""
    return Counter()


@pytest.fixture
def journey(calls: Counter[str]) -> Any:
    """A flow that acts, fails once, books, invokes, sends, sleeps, and waits with success and in vain."""

    def ask() -> str:
        calls["ask"] += 1
        return "asked"

    def falter() -> str:
        calls["falter"] += 1
        if calls["falter"] == 1:
            raise ConnectionError("not yet")
        return "done"

    def side(name: str) -> None:
        calls[name] += 1

    def book() -> None:
        calls["book"] += 1
        Group.objects.create(name=f"booked {calls['book']}")

    @flow("errand")
    def errand(event: Event, step: Step) -> Any:
        if event.data["trip"] == 0:
            step.sleep("idle", "1h")
        return event.data["trip"]

    @flow(
        "journey",
        on="trip/began",
        timeouts=Timeouts(start="1h", finish="30 days"),
        cancel_on=CancelOn("trip/cancelled", match="data.trip"),
        retries=Retries(2, backoff=Fixed("10s")),
    )
    def handler(event: Event, step: Step) -> list[Any]:
        first = step.run("ask", ask)
        second = step.run("falter", falter)
        step.run("book", book, atomic=True)
        called = step.invoke("call", errand, {"trip": event.data["trip"]})
        ended = step.wait_for_event(
            "ended",
            event="flows/function.finished",
            if_="async.data.function_id == 'errand'",
            timeout="3 days",
        )
        assert ended is not None
        assert ended.data["result"] == called
        with pytest.raises(InvokeTimeout):
            step.invoke("call in vain", errand, {"trip": 0}, timeout="30m")
        sent = step.send_event("tell", Event("trip/told", {"trip": event.data["trip"]}))
        told = step.wait_for_event("told", event="trip/told", match="data.trip", timeout="1h")
        step.sleep("rest", "1 day")
        nothing = step.wait_for_event("silence", event="trip/never", timeout="1h")
        assert told is not None
        step.parallel(
            step.later.run("left", side, "left"), lambda: step.run("right", side, "right")
        )
        step.race(
            step.later.wait_for_event("lost", event="trip/never", timeout="2h"),
            lambda: step.sleep("won", "1h"),
        )
        return [first, second, called, told.public_id == sent[0], nothing]

    return handler


@pytest.mark.parametrize("place", sorted(failpoints.PLACES - ELSEWHERE))
def test_a_run_survives_a_worker_that_dies(place: str, journey: Any, calls: Counter[str]) -> None:
    trip = send("trip/began", {"trip": 1})
    with crash_at(place) as crash:
        advance("2 days")
        advance("2 days")
    assert crash.happened, f"the run never came to {place}"
    run = run_of(trip)
    assert run.state == "completed", run
    assert run.result == ["asked", "done", 1, True, None]
    assert run.step_keys == [
        *("ask", "falter", "book", "call", "ended", "call in vain", "tell", "told", "rest"),
        *("silence", "left", "parallel[1]/right", "race[1]/won", "race"),
    ]
    assert Counter(Run.objects.values_list("flow", "state")) == {
        ("journey", "completed"): 1,
        ("errand", "completed"): 2,
    }
    assert StoredEvent.objects.filter(name="trip/told").count() == 1
    assert StoredEvent.objects.filter(name="flows/function.finished").count() == 3
    assert Group.objects.count() == 1  # the writes of an atomic step, however often it was called
    expected = Counter({"ask": 1, "falter": 2, "book": 1, "left": 1, "right": 1})
    if again := REPEATED.get(place):
        expected[again] += 1
    assert calls == expected
    assert not Due.objects.exists()
    assert not Wait.objects.pending().exists()


@pytest.mark.parametrize("place", ["purge_taken", "before_purge_commit", "purged"])
def test_a_purge_survives_a_worker_that_dies(place: str) -> None:
    flow("done", on="go")(lambda: None)
    flow("rests", on="go")(lambda step: step.sleep("rest", "300 days"))
    lonely = send("lonely")
    events = [send("go") for _ in range(3)]
    drain()
    advance("31 days", play=False)
    for _ in range(2):  # in the stage of the runs, and in that of the events
        with crash_at(place) as crash, suppress(Crash):
            purge.take_turn()
        assert crash.happened or not StoredEvent.objects.filter(pk=lonely).exists()
        for run in Run.objects.filter(flow="done"):
            assert run.event.name == "go", "a run without its trigger"
        advance("2m", play=False)  # it is thought dead
    purge.take_turn()
    assert Counter(Run.objects.values_list("flow", flat=True)) == {"rests": 3}
    assert {str(event.pk) for event in StoredEvent.objects.all()} == set(events)


def test_the_engine_has_exactly_the_places_that_are_listed() -> None:
    source = "".join(path.read_text() for path in Path(failpoints.__file__).parent.rglob("*.py"))
    assert set(re.findall(r'failpoints\.reach\(\s*"(\w+)"', source)) == failpoints.PLACES
    assert len(failpoints.PLACES) >= 20


@pytest.mark.parametrize(
    "text", ["step_run:1", "step_ran", "step_ran:", "step_ran:0", "step_ran:-1", "step_ran:x", ":1"]
)
def test_a_failpoint_that_cannot_be_read_is_an_error_that_says_how(text: str) -> None:
    with pytest.raises(InvalidSetting) as said:
        failpoints.from_environment(text)
    assert f"{failpoints.VARIABLE}={text!r}" in str(said.value)
    assert "step_ran" in str(said.value)


def test_without_the_variable_nothing_is_trapped() -> None:
    assert failpoints.from_environment("") is None


@pytest.mark.parametrize("command", [events.RETRY, events.CANCEL])
def test_a_command_survives_a_router_that_dies_while_it_carries_it_out(command: str) -> None:
    broken = [True]

    def work() -> str:
        if broken:
            raise NonRetriableError("not like this")
        return "done"

    @flow("stops", on="a/b")
    def stops(step: Step) -> str:
        step.run("work", work)
        return "through"

    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "1 day")

    event = send("a/b")
    drain()
    broken.clear()
    retry(run_of(event, "stops").id)
    cancel(run_of(event, "rests").id, reason="enough")
    with crash_at("command_obeyed", command, times=2) as crash:
        advance("1h")
    assert crash.count == 2
    stopped, rested = run_of(event, "stops"), run_of(event, "rests")
    assert (stopped.state, stopped.result, Run.objects.get(pk=stopped.id).generation) == (
        "completed",
        "through",
        1,
    )
    assert (rested.state, rested.reason) == ("cancelled", "enough")
    assert not Due.objects.exists()


@pytest.mark.parametrize("place", ["events_withdrawn", "history_taken_over"])
def test_a_router_that_dies_while_it_admits_leaves_nothing_half_done(place: str) -> None:
    @flow("acts", on="a/b")
    def acts(step: Step) -> list[int]:
        return [step.run("one", lambda: 1), step.run("two", lambda: 2)]

    event = send("a/b")
    drain()
    late = send("a/b", ts=clock.now() + timedelta(hours=1))
    withdraw(late)
    second = rerun(run_of(event).id, from_step="two", output="given")
    with crash_at(place) as crash:
        advance("2h")
    assert crash.happened
    assert run_of(second).result == [1, "given"]
    assert run_of(second).step_keys == ["one", "two"]
    assert runs_of(late) == []
    assert StoredEvent.objects.get(pk=late).withdrawn
    assert Run.objects.count() == 2


@pytest.mark.parametrize("place", ["command_obeyed", "before_bulk_commit", "bulk_carried_on"])
def test_a_bulk_action_survives_whoever_carries_it_out(place: str) -> None:
    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "1 day")

    for _ in range(3):
        send("a/b")
    drain()
    asked = cancel_all("rests", rate="1/s")
    with crash_at(place) as crash:
        advance("1 minute")
    assert crash.happened
    assert bulk_progress(asked).done == 3
    assert StoredEvent.objects.filter(name=events.CANCEL).count() == 3
    assert set(Run.objects.values_list("state", flat=True)) == {"cancelled"}


def test_the_children_of_a_cancelled_run_are_cancelled_though_the_router_dies_meanwhile() -> None:
    @flow("child")
    def child(step: Step) -> None:
        step.sleep("rest", "1 day")

    @flow("parent", on="a/b", cancel_on=CancelOn("a/c"))
    def parent(step: Step) -> None:
        step.invoke("call", child)

    event = send("a/b")
    drain()
    send("a/c")
    with crash_at("children_cancelled") as crash:
        drain()
    assert crash.happened
    assert run_of(event).state == "started"
    drain()
    assert set(Run.objects.values_list("flow", "state")) == {
        ("parent", "cancelled"),
        ("child", "cancelled"),
    }
    assert StoredEvent.objects.filter(name=events.CANCEL).count() == 1


@pytest.mark.parametrize("place", ["before_give_back", "given_back"])
def test_claimed_runs_survive_a_worker_that_dies_while_it_gives_them_back(place: str) -> None:
    calls: list[int] = []

    @flow("any", on="a/b")
    def any_(event: Event) -> None:
        calls.append(event.data["n"])
        if len(calls) == 1:
            stopping.set()

    runs = [send("a/b", {"n": n}) for n in range(3)]
    try:
        with crash_at(place) as crash:
            drain()
    finally:
        stopping.clear()
    assert crash.happened
    drain()
    assert calls == [0, 1, 2]
    assert [run_of(run).state for run in runs] == ["completed"] * 3
    assert not Due.objects.exists()


@pytest.mark.parametrize("place", ["before_hand_back", "handed_back"])
def test_a_run_survives_a_worker_that_is_told_to_stop_and_dies_over_it(place: str) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        stopping.set()

    @flow("stops", on="a/b")
    def stops(step: Step) -> str:
        step.run("first", first)
        step.run("second", lambda: calls.append("second"))
        return "done"

    event = send("a/b")
    try:
        with crash_at(place) as crash:
            drain()
    finally:
        stopping.clear()
    assert crash.happened
    drain()
    assert calls == ["first", "second"]
    assert run_of(event).result == "done"


@pytest.mark.parametrize("place", ["tick_taken", "unparked"])
def test_a_run_whose_flow_was_unknown_survives_a_tick_that_dies(place: str) -> None:
    with registry.isolated():
        late = flow("late", on="a/b")(lambda: "at last")
        event = send("a/b")
        route()
    drain()
    assert run_of(event).activity == "parked"
    registry.add(late)
    with crash_at(place) as crash, pytest.raises(Crash):
        tick()
    assert crash.happened
    advance("1h", play=False)
    assert tick()  # the next interval is somebody else's
    drain()
    assert run_of(event).result == "at last"


def test_a_router_that_dies_between_its_transactions_leaves_no_run_doubled_and_no_wait_missed() -> (
    None
):
    @flow("waits", on="a/began")
    def waits(step: Step) -> str:
        found = step.wait_for_event("reply", event="a/replied", timeout="1h")
        return "heard" if found else "missed"

    began = send("a/began")
    drain()
    send("a/replied")
    other = send("a/began")
    with crash_at("between_routing_transactions"):
        drain()
    assert [run_of(began).activity, runs_of(other)[0].activity] == ["waiting", "queued"]
    drain()
    assert run_of(began).result == "heard"
    assert run_of(other).activity == "waiting"  # what came before its trigger is not its reply
    assert Run.objects.count() == 2


def test_a_slice_that_lost_its_lease_writes_nothing_more() -> None:
    seen: list[int] = []

    def takes_long() -> int:
        seen.append(len(seen))
        if len(seen) == 1:  # this worker is thought dead; another one takes the run over
            Due.objects.update(wake_at=StoredEvent.objects.get().received_at)
            drain()
        return seen[-1]

    @flow("slow", on="a/b")
    def slow(step: Step) -> list[Any]:
        return [step.run("long", takes_long), step.run("after", lambda: len(seen))]

    event = send("a/b")
    drain()
    run = run_of(event)
    assert seen == [0, 1]
    assert run.result == [1, 2]
    assert [step.output for step in run.steps] == [1, 2]
    assert Run.objects.get().lease == 2


def test_an_event_that_comes_while_its_waiter_is_about_to_suspend_wakes_it_at_once() -> None:
    @flow("waits", on="a/began")
    def waits(step: Step) -> str:
        step.wait_for_event("reply", event="a/replied", timeout="1h")
        return "heard"

    def reply(place: str, detail: str) -> None:
        if place == "before_suspend":
            failpoints.trap = None
            send("a/replied")
            route()
            assert Due.objects.get().nudged

    began = send("a/began")
    failpoints.trap = reply
    drain()
    assert run_of(began).result == "heard"


def test_an_end_that_is_written_again_does_not_end_the_retry_that_came_between() -> None:
    @flow("fails", on="a/b")
    def fails() -> None:
        raise NonRetriableError("no")

    event = send("a/b")
    route()
    (claimed,) = claim(ring.default_queue(), 1)
    ending = slices.execute(claimed, History())
    assert isinstance(ending, finish.Ending)
    assert finish.end([ending])  # and suppose that its answer was lost
    retry(run_of(event).id)
    route()
    assert finish.end([ending]) == []
    assert run_of(event).state == "queued"
    drain()
    assert run_of(event).state == "failed"
