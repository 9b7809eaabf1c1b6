"""A run that takes its worker with it, each time: it fails, and it fails alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.test import override_settings

from durable_flows import Event, NonRetriableError, Step, cancel, flow, retry
from durable_flows.engine import execute, failpoints, ring, solitude
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.models import Due, Run
from durable_flows.rules import clock
from durable_flows.testing import Crash, advance, crash_at, drain, run_of, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def calls() -> Counter[int]:
    """How often the step of each run was called."""
    return Counter()


@pytest.fixture
def work(calls: Counter[int]) -> Counter[int]:
    @flow("works", on="a/b")
    def works(event: Event, step: Step) -> str:
        n = event.data["n"]
        step.run(f"work-{n}", lambda: calls.update([n]))
        return "done"

    return calls


def fall_due_again() -> None:
    """All leases end: their workers are dead."""
    Due.objects.update(wake_at=clock.now())


def test_a_run_that_kills_its_worker_fails_alone_and_its_neighbours_complete(
    work: Counter[int],
) -> None:
    runs = [send("a/b", {"n": n}) for n in range(10)]
    with crash_at("step_ran", "work-4", times=100) as crash:
        advance("1h")
    assert [run_of(run).state for n, run in enumerate(runs) if n != 4] == ["completed"] * 9
    poison = run_of(runs[4])
    assert poison.state == "failed"
    assert poison.error["name"] == "PoisonRun"
    assert "died 3 times in a row" in poison.reason
    assert crash.count == 4  # once among others, which is no proof
    assert work == {n: 4 if n == 4 else 1 for n in range(10)}


def test_a_poisonous_run_is_retried_by_hand(work: Counter[int]) -> None:
    run = send("a/b", {"n": 1})
    with crash_at("step_ran", "work-1", times=100):
        advance("1h")
    assert run_of(run).state == "failed"
    retry(run_of(run).id)
    drain()
    assert run_of(run).result == "done"


def test_its_error_says_how_far_it_came() -> None:
    @flow("far", on="a/b")
    def far(step: Step) -> None:
        step.run("first", lambda: None)
        step.run("second", lambda: None)

    run = send("a/b")
    with crash_at("step_ran", "second", times=100):
        advance("1h")
    assert "after step 'first'" in run_of(run).reason


def test_a_run_that_gets_on_may_lose_any_number_of_workers() -> None:
    @flow("long", on="a/b")
    def long(step: Step) -> str:
        for n in range(6):
            step.run(f"step-{n}", lambda: None)
        return "done"

    run = send("a/b")
    with dying_twice_at_each_step() as deaths:
        advance("1h")
    assert deaths.total() == 12
    assert run_of(run).result == "done"


@contextmanager
def dying_twice_at_each_step() -> Iterator[Counter[str]]:
    deaths: Counter[str] = Counter()

    def trap(place: str, key: str) -> None:
        if place == "step_ran" and deaths[key] < 2:
            deaths[key] += 1
            raise Crash

    failpoints.trap = trap
    yield deaths
    failpoints.trap = None


def test_a_slice_that_ends_well_clears_the_run_of_suspicion() -> None:
    @flow("rests", on="a/b")
    def rests(step: Step) -> str:
        step.sleep("rest", "1h")
        return "done"

    run = send("a/b")
    with crash_at("before_suspend", times=2):
        drain()
        drain()
    drain()
    assert run_of(run).activity == "waiting"
    assert Due.objects.get().claims == 0


@pytest.mark.parametrize("most", [1, 2])
def test_how_many_deaths_are_too_many_is_a_setting(most: int, work: Counter[int]) -> None:
    run = send("a/b", {"n": 1})
    with (
        override_settings(DURABLE_FLOWS={"RING": "off", "POISON_CLAIMS": most}),
        crash_at("step_ran", times=100) as crash,
    ):
        advance("1h")
    assert run_of(run).state == "failed"
    assert crash.count == most + 1


def test_runs_whose_worker_died_are_claimed_one_by_one(work: Counter[int]) -> None:
    for n in range(10):
        send("a/b", {"n": n})
    route()
    assert len(claim(ring.default_queue(), 10)) == 10
    fall_due_again()
    assert [len(claim(ring.default_queue(), 10)) for _ in range(11)] == [1] * 10 + [0]


def test_a_suspect_is_not_claimed_with_others_wherever_it_stands(work: Counter[int]) -> None:
    for n in range(5):
        send("a/b", {"n": n})
    route()
    second = Due.objects.order_by("wake_at")[1]
    Due.objects.filter(pk=second.pk).update(claims=1)
    sizes = [[c.is_suspect for c in claim(ring.default_queue(), 10)] for _ in range(3)]
    assert sizes == [[False] * 4, [True], []]


def test_a_drain_goes_on_from_one_suspect_to_the_next(work: Counter[int]) -> None:
    for n in range(10):
        send("a/b", {"n": n})
    route()
    claim(ring.default_queue(), 10)
    fall_due_again()
    assert execute.drain(ring.default_queue()) == 10
    assert Run.objects.filter(state="completed").count() == 10


def test_a_process_executes_one_suspect_at_a_time_and_others_meanwhile(work: Counter[int]) -> None:
    suspect, other = send("a/b", {"n": 1}), send("a/b", {"n": 2})
    route()
    Due.objects.filter(run__event_id=suspect).update(claims=1)
    room = solitude.take()  # another thread executes one
    execute.drain(ring.default_queue())
    assert (run_of(suspect).state, run_of(other).state) == ("queued", "completed")
    solitude.leave(room)
    execute.drain(ring.default_queue())
    assert run_of(suspect).state == "completed"


def test_a_suspect_that_executes_for_long_keeps_the_others_away_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = solitude.take()
    assert solitude.take() is None
    monkeypatch.setattr(solitude, "LONGEST", -1.0)
    second = solitude.take()
    assert second is not None
    monkeypatch.undo()
    solitude.leave(first)  # has no say any more
    assert solitude.take() is None
    solitude.leave(second)
    third = solitude.take()
    assert third is not None
    solitude.leave(third)


# -- with something to undo --------------------------------------------------------------------


@pytest.fixture
def deadly() -> set[str]:
    """What ends the process: a step, the code between steps, the undo."""
    return set()


@pytest.fixture
def trip(deadly: set[str]) -> Counter[str]:
    calls: Counter[str] = Counter()

    def die_in(place: str) -> None:
        calls.update([place])
        if place in deadly:
            raise Crash(place)

    @flow("trip", on="a/b")
    def trip(step: Step) -> None:
        step.saga().run("book", lambda: None, undo=lambda result: die_in("undo"))
        die_in("code")
        step.run("deadly", die_in, "step")

    return calls


def test_what_it_has_done_is_undone_before_it_fails(deadly: set[str], trip: Counter[str]) -> None:
    deadly.add("step")
    run = send("a/b")
    advance("1h")
    assert (run_of(run).state, run_of(run).error["name"]) == ("failed", "PoisonRun")
    assert (trip["step"], trip["undo"]) == (4, 1)
    assert run_of(run).warnings == {}


@pytest.mark.parametrize(
    ("places", "tried"), [({"code"}, {"code": 5}), ({"step", "undo"}, {"step": 4, "undo": 4})]
)
def test_what_its_workers_die_of_undoing_is_said(
    places: set[str], tried: dict[str, int], deadly: set[str], trip: Counter[str]
) -> None:
    """Of the undo itself, or of the handler's code that is replayed before it."""
    deadly.update(places)
    run = send("a/b")
    advance("1h")
    failed = run_of(run)
    assert {place: trip[place] for place in places} == tried
    assert (failed.state, failed.error["name"]) == ("failed", "UndoFailed")
    assert "'book' (each worker that tried to undo it died)" in failed.reason
    assert "PoisonRun" in failed.reason
    assert "not undone" in failed.warnings["book#undo"]


def test_a_cancelled_run_of_which_workers_die_stays_cancelled(
    deadly: set[str], trip: Counter[str]
) -> None:
    deadly.add("undo")
    run = send("a/b")
    with crash_at("step_ran", "deadly"):
        drain()
    cancel(run_of(run).id)
    advance("1h")
    assert run_of(run).state == "cancelled"
    assert "not undone" in run_of(run).warnings["book#undo"]


def test_its_handler_is_called_no_more_if_there_is_nothing_to_undo() -> None:
    calls: list[str] = []

    @flow("deadly", on="a/b")
    def deadly() -> None:
        calls.append("code")
        raise Crash("code")

    run = send("a/b")
    advance("1h")
    assert (run_of(run).error["name"], run_of(run).step_keys) == ("PoisonRun", [])
    assert len(calls) == 4


def test_a_run_that_has_failed_says_why_though_its_workers_die_of_undoing() -> None:
    def die(_: None) -> None:
        raise Crash("undo")

    def fail() -> None:
        raise NonRetriableError("sold out")

    @flow("trip", on="a/b")
    def trip(step: Step) -> None:
        step.saga().run("book", lambda: None, undo=die)
        step.run("pay", fail)

    run = send("a/b")
    advance("1h")
    assert (run_of(run).state, run_of(run).error["name"]) == ("failed", "UndoFailed")
    assert "sold out" in run_of(run).reason
    assert "PoisonRun" not in run_of(run).reason


def test_what_was_undone_before_its_workers_died_is_not_said_to_be_left() -> None:
    def die(_: None) -> None:
        raise Crash("undo")

    @flow("trip", on="a/b")
    def trip(step: Step) -> None:
        step.saga().run("flight", lambda: None, undo=die)
        step.saga().run("hotel", lambda: None, undo=lambda _: None)
        step.sleep("rest", "1 day")

    run = send("a/b")
    drain()
    cancel(run_of(run).id)
    advance("1h")
    assert run_of(run).state == "cancelled"
    assert set(run_of(run).warnings) == {"flight#undo"}
