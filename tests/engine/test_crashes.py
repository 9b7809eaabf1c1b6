"""A worker that dies, at each place where it may: the run ends right, and nothing is done twice."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durable_flows import CancelOn, Event, Fixed, Retries, Step, flow
from durable_flows.engine import failpoints
from durable_flows.engine.route import route
from durable_flows.models import Due, Run, Wait
from durable_flows.models import Event as StoredEvent
from durable_flows.testing import advance, crash_at, drain, run_of, runs_of, send

pytestmark = pytest.mark.django_db

#: Where a worker may die, and which function may be called once more for it.
PLACES = {
    "runs_admitted": None,
    "between_routing_transactions": None,
    "before_routed_commit": None,
    "claimed": None,
    "step_ran": "ask",
    "step_recorded": None,
    "attempt_recorded": None,
    "wait_registered": None,
    "before_timeout": None,
    "before_suspend": None,
    "before_end": None,
    "before_end_commit": None,
}


@pytest.fixture
def calls() -> Counter[str]:
    """How often each function of the flow was called."""
    return Counter()


@pytest.fixture
def journey(calls: Counter[str]) -> Any:
    """A flow that acts, fails once, sends, sleeps, waits for a reply and waits in vain."""

    def ask() -> str:
        calls["ask"] += 1
        return "asked"

    def falter() -> str:
        calls["falter"] += 1
        if calls["falter"] == 1:
            raise ConnectionError("not yet")
        return "done"

    @flow(
        "journey",
        on="trip/began",
        cancel_on=CancelOn("trip/cancelled", match="data.trip"),
        retries=Retries(2, backoff=Fixed("10s")),
    )
    def handler(event: Event, step: Step) -> list[Any]:
        first = step.run("ask", ask)
        second = step.run("falter", falter)
        sent = step.send_event("tell", Event("trip/told", {"trip": event.data["trip"]}))
        told = step.wait_for_event("told", event="trip/told", match="data.trip", timeout="1h")
        step.sleep("rest", "1 day")
        nothing = step.wait_for_event("silence", event="trip/never", timeout="1h")
        assert told is not None
        return [first, second, told.public_id == sent[0], nothing]

    return handler


@pytest.mark.parametrize("place", PLACES)
def test_a_run_survives_a_worker_that_dies(place: str, journey: Any, calls: Counter[str]) -> None:
    trip = send("trip/began", {"trip": 1})
    with crash_at(place) as crash:
        advance("2 days")
        advance("2 days")
    assert crash.happened, f"the run never came to {place}"
    run = run_of(trip)
    assert run.state == "completed", run
    assert run.result == ["asked", "done", True, None]
    assert run.step_keys == ["ask", "falter", "tell", "told", "rest", "silence"]
    assert StoredEvent.objects.filter(name="trip/told").count() == 1
    expected = Counter({"ask": 1, "falter": 2})
    if again := PLACES[place]:
        expected[again] += 1
    assert calls == expected
    assert not Due.objects.exists()
    assert not Wait.objects.pending().exists()


def test_every_failpoint_of_the_engine_is_tried() -> None:
    source = "".join(path.read_text() for path in Path(failpoints.__file__).parent.glob("*.py"))
    assert set(re.findall(r'failpoints\.reach\("(\w+)"', source)) == PLACES.keys()


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
