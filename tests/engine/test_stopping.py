"""A worker that is told to stop: what it has in hand is recorded, and others go on at once."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app, signals

from durable_flows import Run, Step, cancel, flow
from durable_flows.engine import deployments, execute, failpoints, leases, ring
from durable_flows.engine.route import route
from durable_flows.engine.stop import stopping
from durable_flows.models import Due
from durable_flows.rules import clock
from durable_flows.testing import advance, drain, run_of, send
from durable_flows.worker import Heart

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def going_on() -> Iterator[None]:
    yield
    stopping.clear()


@pytest.fixture
def calls() -> list[str]:
    """Which steps were called."""
    return []


@pytest.fixture
def three_steps(calls: list[str]) -> str:
    """The event of a flow of three steps; the worker is told to stop in the second one."""

    def second() -> str:
        calls.append("second")
        stopping.set()
        return "2"

    @flow("three", on="a/b")
    def three(step: Step) -> str:
        step.run("first", lambda: calls.append("first"))
        found = step.run("second", second)
        step.run("third", lambda: calls.append("third"))
        return found

    return send("a/b")


def test_the_step_in_hand_is_recorded_and_no_further_one_begins(
    three_steps: str, calls: list[str]
) -> None:
    drain()
    assert calls == ["first", "second"]
    assert run_of(three_steps).step_keys == ["first", "second"]


def test_the_run_is_due_at_once_for_another_worker_which_goes_on(
    three_steps: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[str] = []
    route()
    monkeypatch.setattr(ring, "drain", rung.append)
    execute.drain(ring.default_queue())
    due = Due.objects.get()
    assert (due.state, due.claims, due.lease, leases.held()) == ("queued", 0, 1, {})
    assert due.wake_at is not None
    assert due.wake_at <= clock.now()
    assert rung == [ring.default_queue()]
    stopping.clear()  # that other worker
    drain()
    assert calls == ["first", "second", "third"]
    assert run_of(three_steps).result == "2"


def test_a_run_whose_last_step_was_in_hand_ends() -> None:
    flow("one", on="a/b")(lambda step: step.run("only", stopping.set))
    event = send("a/b")
    drain()
    assert run_of(event).state == "completed"


def test_a_run_that_suspends_anyway_does_so() -> None:
    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "1h")

    event = send("a/b")
    route()

    def stop_before_suspending(place: str, detail: str) -> None:
        if place == "step_recorded":
            stopping.set()

    failpoints.trap = stop_before_suspending
    drain()
    assert run_of(event).activity == "waiting"


def test_a_replay_is_broken_off_too(calls: list[str]) -> None:
    told: list[str] = []

    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        if told:
            stopping.set()
        step.run("first", lambda: None)
        calls.append("past the first")
        step.sleep("rest", "1h")

    event = send("a/b")
    drain()
    told.append("now")
    advance("1h")
    assert calls == ["past the first"]
    assert run_of(event).activity == "queued"


def test_what_a_worker_that_is_told_to_stop_has_claimed_is_not_begun(
    three_steps: str, calls: list[str]
) -> None:
    failpoints.trap = lambda place, detail: stopping.set() if place == "histories_read" else None
    drain()
    assert calls == []
    assert Due.objects.get().state == "queued"


def test_a_cancellation_that_was_asked_for_wins() -> None:
    @flow("stops", on="a/b")
    def stops(step: Step, run: Run) -> None:
        stopping.set()
        cancel(run.id, reason="told so")
        route()
        step.run("x", lambda: None)

    event = send("a/b")
    drain()
    assert (run_of(event).state, run_of(event).reason) == ("cancelled", "told so")


@pytest.mark.parametrize("after", ["returns", "raises"])
def test_a_handler_that_swallows_the_signal_is_handed_back_all_the_same(after: str) -> None:
    told = ["now"]

    @flow("swallows", on="a/b")
    def swallows(step: Step) -> str:
        if told:
            told.clear()
            stopping.set()
        try:
            step.run("x", lambda: None)
        except BaseException:
            if after == "raises":
                raise ValueError("of its own") from None
            return "went on"
        return "done"

    event = send("a/b")
    drain()
    assert (run_of(event).activity, run_of(event).attempts) == ("queued", {})
    stopping.clear()
    drain()
    assert run_of(event).result == "done"


@pytest.mark.parametrize("after", ["returns", "raises"])
def test_a_handler_that_swallows_it_when_its_steps_are_to_be_undone_is_called_again(
    after: str,
) -> None:
    undone: list[str] = []
    told: list[str] = []

    @flow("swallows", on="a/b")
    def swallows(step: Step) -> None:
        if told:
            told.clear()
            stopping.set()
        try:
            step.run("check", lambda: None)
        except BaseException:
            if after == "raises":
                raise ValueError("of its own") from None
            return
        step.saga().run("book", lambda: "b1", undo=undone.append)
        step.sleep("rest", "1h")

    event = send("a/b")
    drain()
    cancel(run_of(event).id)
    route()
    told.append("now")
    drain()
    assert undone == []
    stopping.clear()
    drain()
    assert (run_of(event).state, run_of(event).warnings) == ("cancelled", {})
    assert undone == ["b1"]


@pytest.mark.parametrize("method", ["stop", "terminate"])
def test_a_celery_worker_that_stops_in_either_way_says_so_to_the_engine(method: str) -> None:
    worker: Any = SimpleNamespace(app=current_app)
    heart = Heart(worker)
    ring.serve(())
    deployments.leave()
    assert not stopping.is_set()
    getattr(heart, method)(worker)
    assert stopping.is_set()


def test_a_solo_worker_that_gets_the_signal_in_a_step_does_not_wait_for_the_end_of_its_task() -> (
    None
):
    signals.worker_shutting_down.send(sender="worker", sig="SIGTERM", how="Warm", exitcode=0)
    assert stopping.is_set()
