"""skip: a sleep, a wait or a delay is over when somebody says so."""

from __future__ import annotations

import threading
import uuid

import pytest
from django.db import transaction

from durable_flows import InvokeTimeout, cancel, flow, skip
from durable_flows.engine import fence, ring, route
from durable_flows.errors import InvalidEvent, InvalidOption, RunHasEnded, UnknownRun
from durable_flows.models import Event as StoredEvent
from durable_flows.models import Run, Step, Wait
from durable_flows.rules import events
from durable_flows.testing import advance, crash_at, drain, run_of, send
from tests.promises.staging import again, execute_due, now, once_at, played, rolled_back, stored

pytestmark = pytest.mark.django_db


@pytest.fixture
def sleeper():
    @flow("sleeper", on="go")
    def sleeper(step):
        step.run("before", lambda: 1)
        step.sleep("long", "30 days")
        return step.run("after", lambda: 2)

    return sleeper


@pytest.fixture
def waiter():
    @flow("waiter", on="go")
    def waiter(step):
        found = step.wait_for_event("reply", event="replied", timeout="30 days")
        return found and found.data["n"]

    return waiter


def refusal() -> str:
    return StoredEvent.objects.get(name=events.SKIP).error


# -- sleeps ----------------------------------------------------------------------------------


def test_a_skipped_sleep_ends_now(sleeper):
    run = played()
    assert skip(run.id, "long") == run.id
    drain()
    assert again(run).state == "completed"
    assert again(run).result == 2
    assert again(run).step("long").state == "skipped"
    assert refusal() == ""


def test_every_replay_finds_the_sleep_over(sleeper):
    run = played()
    skip(run.id, "long")
    with crash_at("step_ran", "after", times=2) as crash:
        advance("1 minute")
    assert crash.count == 2
    assert again(run).result == 2
    assert Step.objects.filter(key="long", until__lte=now()).exists()


def test_a_wait_after_a_skipped_sleep_looks_from_its_end_on():
    @flow("asks", on="go")
    def asks(step):
        step.sleep("long", "30 days")
        return step.wait_for_event("reply", event="replied", timeout="1h") is not None

    run = played()
    send("replied")
    drain()
    skip(run.id, "long")
    drain()
    assert again(run).activity == "waiting"
    send("replied")
    drain()
    assert again(run).result is True


def test_only_the_sleep_that_is_named_is_skipped():
    @flow("naps", on="go")
    def naps(step):
        for _ in range(3):
            step.sleep("nap", "1 day")

    run = played()
    skip(run.id, "nap")
    drain()
    assert [step.state for step in again(run).steps] == ["skipped", "done"]
    skip(run.id, "nap#2")
    drain()
    assert again(run).step_keys == ["nap", "nap#2", "nap#3"]
    assert again(run).activity == "waiting"


def test_a_sleep_is_skipped_while_its_slice_is_about_to_suspend(sleeper):
    (event_id,) = [send("go")]
    route.route()
    run = run_of(event_id)

    def ask() -> None:
        skip(run.id, "long")
        route.route()

    with once_at("before_suspend", ask):
        execute_due()
    drain()
    assert again(run).state == "completed"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_a_sleep_is_skipped_while_another_branch_executes(colour, monkeypatch):
    """The slice notices that it was woken, and reads anew only when all branches rest."""
    monkeypatch.setattr(fence, "LOOK", 0.0)
    asleep = threading.Event()

    def ask(run_id: str) -> None:
        asleep.wait(10)
        for thread in threading.enumerate():
            if thread.name == "durable-flows-branch-0":  # it only sleeps: now the slice knows
                thread.join(10)
        with ring.silence():
            skip(run_id, sleep)
            route.route()

    if colour == "threads":
        sleep = "parallel[0]/long"

        @flow("sleeper", on="go")
        def sleeper(step, run):
            def long() -> None:
                step.sleep("long", "30 days")
                step.run("after", lambda: None)

            def busy() -> None:
                step.run("ask", ask, run.id)
                step.run("more", lambda: None)

            step.parallel(long, busy)
    else:
        sleep = "parallel[0]/long"

        @flow("sleeper", on="go")
        async def sleeper_(step, run):
            async def long() -> None:
                await step.sleep("long", "30 days")
                await step.run("after", lambda: None)

            async def busy() -> None:
                await step.run("ask", ask, run.id)
                await step.run("more", lambda: None)

            await step.parallel(long, busy)

    with once_at("step_recorded", asleep.set, sleep):
        run = played()
    assert refusal() == ""
    assert run.state == "completed"


# -- waits -----------------------------------------------------------------------------------


def test_a_skipped_wait_ends_as_by_its_timeout(waiter):
    run = played()
    skip(run.id, "reply")
    drain()
    assert (again(run).state, again(run).result) == ("completed", None)
    assert Wait.objects.get().outcome == "cut"


def test_an_event_that_comes_with_the_skip_is_worth_more(waiter):
    run = played()
    with transaction.atomic():
        skip(run.id, "reply")
        send("replied", {"n": 7})
    drain()
    assert again(run).result == 7
    assert Wait.objects.get().outcome == "event"
    assert "neither sleeps nor waits at step 'reply'" in refusal()


def test_an_event_after_the_skip_is_not_used_up(waiter):
    @flow("again", on="go")
    def again_(step):
        first = step.wait_for_event("first", event="replied", timeout="1 day")
        second = step.wait_for_event("second", event="replied", timeout="1 day")
        return [first and first.data["n"], second and second.data["n"]]

    (event_id,) = [send("go")]
    drain()
    run = run_of(event_id, "again")
    skip(run.id, "first")
    drain()
    send("replied", {"n": 7})
    drain()
    assert again(run).result == [None, 7]


def test_a_skipped_wait_for_a_run_times_out_and_the_run_goes_on():
    @flow("child")
    def child(step):
        step.sleep("long", "1 day")

    @flow("parent", on="go")
    def parent(step):
        try:
            step.invoke("call", child)
        except InvokeTimeout as error:
            return [error.state, error.reason]

    run = played()
    skip(run.id, "call")
    drain()
    assert again(run).result == ["timeout", "the wait was skipped"]
    assert again(run).step("call").state == "failed"
    (only,) = again(run).children
    assert run_of(only).activity == "waiting"
    advance("1 day")
    assert run_of(only).state == "completed"


def test_a_wait_is_skipped_while_its_slice_looks_back(waiter):
    event_id = send("go")
    route.route()
    run = run_of(event_id)

    def ask() -> None:
        skip(run.id, "reply")
        route.route()

    with once_at("looked_back", ask):
        execute_due()
    drain()
    assert again(run).state == "completed"


@pytest.fixture
def gathers():
    @flow("gathers", on="go")
    def gathers(step):
        found = step.wait_for_events("both", ["a", "b"], timeout="30 days")
        found += step.wait_for_events("both", ["c"], timeout="30 days")
        return [one and one.name for one in found]

    return gathers


def test_all_that_a_step_still_waits_for_is_skipped_and_nothing_else(gathers):
    run = played()
    send("b")
    drain()
    skip(run.id, "both")
    drain()
    assert again(run).activity == "waiting"
    assert again(run).step("both").output[0] is None
    skip(run.id, "both#2")
    drain()
    assert again(run).result == [None, "b", None]
    assert not StoredEvent.objects.filter(name=events.SKIP).exclude(error="").exists()


def test_one_of_several_waits_is_skipped(gathers):
    run = played()
    skip(run.id, "both[1]")
    drain()
    assert again(run).activity == "waiting"
    send("a")
    drain()
    assert again(run).step("both").output[1] is None


def test_a_step_that_collects_returns_what_has_come():
    @flow("collects", on="go")
    def collects(step):
        return len(step.collect("all", event="a", count=12, timeout="30 days"))

    run = played()
    send("a")
    drain()
    skip(run.id, "all")
    drain()
    assert again(run).result == 1


def test_events_that_come_with_the_skip_of_several_are_worth_more(gathers):
    run = played()
    with transaction.atomic():
        skip(run.id, "both")
        send("a")
    drain()
    assert [one and one["name"] for one in again(run).step("both").output] == ["a", None]


def test_a_map_cannot_be_skipped():
    @flow("child")
    def child(step):
        step.sleep("long", "1 day")

    @flow("maps", on="go")
    def maps(step):
        step.map("all", child, [{}, {}])

    run = played()
    skip(run.id, "all")
    drain()
    assert "'all' of run" in refusal()
    assert "maps, and has no result before 2 more of its runs have ended" in refusal()
    for one in again(run).children:
        skip(one, "long")
    drain()
    assert again(run).state == "completed"


# -- delays ----------------------------------------------------------------------------------


def test_a_step_that_is_to_be_tried_again_is_tried_at_once():
    calls: list[int] = []

    def falter() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("not yet")
        return "done"

    @flow("falters", on="go")
    def falters(step):
        return step.run("call", falter)

    run = played()
    assert len(calls) == 1
    skip(run.id, "call")
    drain()
    assert again(run).result == "done"
    assert again(run).attempts == {"call": 1}


def test_code_between_steps_is_tried_again_at_once():
    calls: list[int] = []

    @flow("falters", on="go")
    def falters(step):
        step.run("first", lambda: None)
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("not yet")

    run = played()
    skip(run.id, "after:first")
    drain()
    assert again(run).state == "completed"


# -- what is refused -------------------------------------------------------------------------


def test_skipping_where_nothing_waits_is_refused_on_the_row_of_the_command(sleeper):
    run = played()
    skip(run.id, "before", reason="ada asked")
    drain()
    assert f"run {run.id} neither sleeps nor waits at step 'before'" in refusal()
    assert again(run).activity == "waiting"
    assert again(run).step("before").output == 1


def test_a_sleep_is_skipped_once(sleeper):
    run = played()
    skip(run.id, "long")
    skip(run.id, "long")
    drain()
    assert sorted(StoredEvent.objects.filter(name=events.SKIP).values_list("error", flat=True)) == [
        "",
        f"run {run.id} neither sleeps nor waits at step 'long'",
    ]


def test_a_run_that_ends_meanwhile_refuses_it(sleeper):
    run = played()
    cancel(run.id)
    skip(run.id, "long")
    drain()
    assert again(run).state == "cancelled"
    assert "has ended, cancelled" in refusal()


def test_a_run_that_is_purged_meanwhile_refuses_it(sleeper):
    run = played()
    skip(run.id, "long")
    Run.objects.all().delete()
    route.route()
    assert f"there is no run {run.id}" in refusal()


def test_a_run_that_has_ended_is_an_error_at_the_call(sleeper):
    run = played()
    advance("30 days")
    with pytest.raises(RunHasEnded, match="has ended, completed") as error:
        skip(run.id, "long")
    assert error.value.state == "completed"
    assert events.SKIP not in stored()


def test_an_unknown_run_is_an_error_at_the_call():
    with pytest.raises(UnknownRun, match="there is no run"):
        skip(uuid.uuid4(), "long")
    with pytest.raises(UnknownRun, match="UUID"):
        skip("nonsense", "long")


@pytest.mark.parametrize("step", ["", None, 7, "x" * 256, "a\nb"])
def test_what_is_no_step_is_an_error_at_the_call(sleeper, step):
    run = played()
    with pytest.raises(InvalidOption, match="step's key"):
        skip(run.id, step)


def test_a_reason_is_kept_with_the_command(sleeper):
    run = played()
    skip(run.id, "long", reason="ada asked")
    assert '"ada asked"' in StoredEvent.objects.get(name=events.SKIP).data
    with pytest.raises(InvalidOption, match="reason="):
        skip(run.id, "long", reason=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidEvent, match="NUL"):
        skip(run.id, "long", reason="a\0b")


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_a_skip(sleeper):
    run = played()
    with rolled_back():
        skip(run.id, "long")
    drain()
    assert again(run).activity == "waiting"


@pytest.mark.parametrize("place", ["command_obeyed", "before_routed_commit", "batch_routed"])
def test_a_router_that_dies_skips_it_once(waiter, place):
    run = played()
    skip(run.id, "reply")
    with crash_at(place) as crash:
        drain()
    assert crash.happened
    drain()
    assert again(run).state == "completed"
    assert refusal() == ""
    assert Wait.objects.filter(outcome="cut", settled_at__lte=now()).exists()
