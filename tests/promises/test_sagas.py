"""Sagas: what has an intent is undone, in reverse order, whatever ends the run without success."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.contrib.auth.models import Group

from durable_flows import (
    CancelOn,
    Fixed,
    NonRetriableError,
    Retries,
    StepError,
    Timeouts,
    cancel,
    flow,
    retry,
    send,
)
from durable_flows.engine import ring
from durable_flows.engine.execute import drain as drain_queue
from durable_flows.engine.route import route
from durable_flows.errors import InvalidOption
from durable_flows.flows import Flow
from durable_flows.models import RunWarning
from durable_flows.testing import advance, crash_after, crash_at, drain, run_of
from tests.promises.staging import again, forget, played

pytestmark = pytest.mark.django_db


@pytest.fixture
def ledger() -> list[str]:
    return []


@pytest.fixture
def book(ledger):
    """Book something, and what takes it back."""

    def do(what: str) -> str:
        ledger.append(what)
        return f"{what}!"

    def undo(result: Any, what: str) -> None:
        ledger.append(f"un{what} {result}")

    def run(saga, what: str, **options: Any) -> str:
        booked: str = saga.run(what, do, what, undo=undo, **options)
        return booked

    return run


def fail() -> None:
    raise NonRetriableError("no")


def test_a_failed_run_undoes_its_saga_in_reverse_order(ledger, book):
    @flow("trip", on="go")
    def trip(step):
        saga = step.saga()
        assert book(saga, "flight") == "flight!"
        book(saga, "hotel")
        step.run("fail", fail)

    run = played()
    assert ledger == ["flight", "hotel", "unhotel hotel!", "unflight flight!"]
    assert (run.state, run.error["step"]) == ("failed", "fail")
    assert run.step_keys == [
        *("flight#intent", "flight", "hotel#intent", "hotel", "fail"),
        *("saga#undo", "hotel#undo", "flight#undo"),
    ]


def test_an_async_flow_undoes_its_saga_too(ledger):
    async def do(what: str) -> str:
        ledger.append(what)
        return what

    async def undo(result: str, what: str) -> None:
        ledger.append(f"un{what}")

    @flow("trip", on="go")
    async def trip(step):
        saga = step.saga()
        await saga.run("flight", do, "flight", undo=undo)
        await step.sleep("nap", "1h")
        await saga.run("hotel", do, "hotel", undo=undo)
        await step.run("fail", fail)

    run = played()
    advance("1h")
    assert again(run).state == "failed"
    assert ledger == ["flight", "hotel", "unhotel", "unflight"]


def test_a_completed_run_undoes_nothing(ledger, book):
    @flow("trip", on="go")
    def trip(step):
        return book(step.saga(), "flight")

    assert played().result == "flight!"
    assert ledger == ["flight"]


def test_a_step_that_fails_is_undone_without_a_result(ledger):
    """It may have had its effect all the same."""

    @flow("trip", on="go")
    def trip(step):
        step.saga().run("charge", fail, undo=lambda result: ledger.append(f"undo {result}"))

    assert played().state == "failed"
    assert ledger == ["undo None"]


def test_a_failure_that_the_handler_catches_undoes_nothing(ledger):
    @flow("trip", on="go")
    def trip(step):
        with pytest.raises(StepError):
            step.saga().run("charge", fail, undo=lambda result: ledger.append("undo"))
        return "went on"

    assert played().result == "went on"
    assert ledger == []


def test_a_resting_run_that_is_cancelled_is_woken_to_undo(ledger, book):
    @flow("trip", on="go", cancel_on=CancelOn("stop"))
    def trip(step):
        book(step.saga(), "flight")
        step.sleep("nap", "1 day")
        step.run("never", ledger.append, "never")

    run = played()
    send("stop")
    drain()
    run = again(run)
    assert run.state == "cancelled"
    assert run.reason.startswith("event stop")
    assert ledger == ["flight", "unflight flight!"]


def test_a_run_that_is_cancelled_while_it_executes_undoes_what_is_in_hand(ledger, book):
    def stop(run_id: str) -> None:
        cancel(run_id, reason="enough")
        with ring.silence():
            route()

    @flow("trip", on="go")
    def trip(step, run):
        saga = step.saga()
        book(saga, "flight")
        step.run("stop", stop, run.id)
        book(saga, "hotel")

    run = played()
    drain()
    run = again(run)
    assert (run.state, run.reason) == ("cancelled", "enough")
    assert ledger == ["flight", "unflight flight!"]


def test_a_run_without_a_saga_is_cancelled_at_once():
    @flow("trip", on="go")
    def trip(step):
        step.sleep("nap", "1 day")

    run = played()
    cancel(run.id)
    drain()
    assert again(run).step_keys == ["nap"]


def test_a_missed_deadline_undoes_too(ledger, book):
    @flow("trip", on="go", timeouts=Timeouts(finish="1h"))
    def trip(step):
        book(step.saga(), "flight")
        step.sleep("nap", "1 day")

    run = played()
    advance("2h")
    run = again(run)
    assert (run.state, run.reason) == ("cancelled", "timeout: finish")
    assert ledger == ["flight", "unflight flight!"]


def test_an_undo_is_retried_while_the_run_is_being_cancelled(ledger):
    tried: list[int] = []

    def undo(result: str) -> None:
        tried.append(1)
        if len(tried) < 3:
            raise ConnectionError("not yet")
        ledger.append("undone")

    @flow("trip", on="go", retries=Retries(3, backoff=Fixed("10s")))
    def trip(step):
        step.saga().run("flight", lambda: "f", undo=undo)
        step.sleep("nap", "1 day")

    run = played()
    cancel(run.id, reason="enough")
    drain()
    assert again(run).state == "started"
    advance("5m")
    run = again(run)
    assert (run.state, run.reason, ledger) == ("cancelled", "enough", ["undone"])
    assert run.attempts == {"flight#undo": 2}


def test_an_undo_that_fails_is_a_named_error_and_the_others_are_undone(ledger, book):
    @flow("trip", on="go")
    def trip(step):
        saga = step.saga()
        book(saga, "flight")
        saga.run("charge", lambda: 7, undo=lambda result: fail())
        step.run("fail", fail)

    run = played()
    assert (run.state, run.error["name"]) == ("failed", "UndoFailed")
    assert "'charge' (NonRetriableError: no)" in run.reason
    assert "the run had failed: NonRetriableError: no" in run.reason
    assert ledger == ["flight", "unflight flight!"]
    assert run.warnings == {"charge#undo": "not undone: NonRetriableError: no"}


def test_a_cancelled_run_of_which_something_was_not_undone_warns(ledger):
    @flow("trip", on="go")
    def trip(step):
        step.saga().run("charge", lambda: 7, undo=lambda result: fail())
        step.sleep("nap", "1h")

    run = played()
    cancel(run.id)
    drain()
    run = again(run)
    assert run.state == "cancelled"
    assert "not undone" in run.warnings["charge#undo"]


def test_what_the_code_has_lost_is_said_and_not_passed_over(ledger, book):
    present = [True]

    @flow("trip", on="go")
    def trip(step):
        if present:
            book(step.saga(), "flight")
        step.sleep("nap", "1h")

    run = played()
    present.clear()
    cancel(run.id)
    drain()
    run = again(run)
    assert run.state == "cancelled"
    assert "nobody knows how" in run.warnings["flight#undo"]


@pytest.mark.parametrize("moment", ["intent", "do", "undo"])
def test_a_run_that_dies_on_the_way_undoes_all_the_same(moment, ledger, book):
    @flow("trip", on="go")
    def trip(step):
        saga = step.saga()
        book(saga, "flight")
        book(saga, "hotel")
        step.run("fail", fail)

    place = {"intent": "hotel#intent", "do": "hotel", "undo": "hotel#undo"}[moment]
    with crash_after(place, recorded=moment == "intent") as crash:
        run = played()
        advance("1h")
    assert crash.happened
    assert again(run).state == "failed"
    assert ledger[-2:] == ["unhotel hotel!", "unflight flight!"]
    assert ledger.count("unflight flight!") == 1


def test_a_run_that_died_between_an_intent_and_its_end_is_undone_without_a_result(ledger):
    """Cancelled before it is tried again: nobody knows what came of it."""

    @flow("trip", on="go")
    def trip(step):
        def charge() -> None:
            ledger.append("charge")

        step.saga().run("charge", charge, undo=lambda result: ledger.append(f"undo {result}"))

    with crash_after("charge", recorded=False):
        run = played()
        cancel(run.id)
        advance("1h")
    assert again(run).state == "cancelled"
    assert ledger == ["charge", "undo None"]


def test_what_the_handler_would_do_now_does_not_matter_once_undoing_has_begun(ledger, book):
    broken = [True]

    @flow("trip", on="go", retries=0)
    def trip(step):
        book(step.saga(), "flight")
        if broken:
            raise ValueError("broken")
        step.run("more", ledger.append, "more")

    with crash_after("saga#undo"):
        run = played()
        broken.clear()
        advance("1h")
    run = again(run)
    assert (run.state, run.error["name"]) == ("failed", "ValueError")
    assert ledger == ["flight", "unflight flight!"]


def test_an_atomic_step_and_its_undo_are_exactly_once():
    def found(name: str) -> int:
        return Group.objects.create(name=name).pk

    def dissolve(pk: int, name: str) -> None:
        Group.objects.filter(pk=pk).delete()
        Group.objects.create(name=f"was {name}")

    @flow("club", on="go")
    def club(step):
        step.saga().run("found", found, "chess", undo=dissolve, atomic=True)
        step.run("fail", fail)

    with crash_at("before_atomic_commit", "found#undo") as crash:
        run = played()
        advance("1h")
    assert crash.happened
    assert again(run).state == "failed"
    assert [group.name for group in Group.objects.all()] == ["was chess"]


def test_a_retry_books_again_what_was_undone(ledger, book):
    broken = [True]

    def look() -> int:
        ledger.append("look")
        return 1

    def shaky() -> str:
        if broken:
            fail()
        return "done"

    @flow("trip", on="go")
    def trip(step):
        first = step.run("look", look)
        book(step.saga(), "flight")
        return [first, step.run("shaky", shaky)]

    run = played()
    assert run.state == "failed"
    broken.clear()
    retry(run.id)
    drain()
    run = again(run)
    assert run.result == [1, "done"]
    assert ledger == ["look", "flight", "unflight flight!", "flight"]


def test_branches_have_a_saga_in_common(ledger, book):
    @flow("trip", on="go")
    def trip(step):
        saga = step.saga()
        step.parallel(lambda: book(saga, "flight"), lambda: book(saga, "hotel"))
        step.run("fail", fail)

    assert played().state == "failed"
    assert ledger == ["flight", "hotel", "unhotel hotel!", "unflight flight!"]


def test_an_undo_that_is_no_function_is_refused():
    @flow("trip", on="go", retries=0)
    def trip(step):
        step.saga().run("charge", lambda: 1, undo="refund")

    run = played()
    assert (run.state, run.error["name"]) == ("failed", InvalidOption.__name__)
    assert "undo= is a function" in run.reason
    assert not RunWarning.objects.exists()


@pytest.mark.parametrize("id", ["a#undo", "a#intent"])
def test_ids_of_intents_and_undos_are_the_engines(id):
    @flow("trip", on="go", retries=0)
    def trip(step):
        step.run(id, lambda: 1)

    assert "choose another id" in played().reason


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_nothing_is_undone_while_it_is_still_being_done(colour, ledger):
    """A neighbour has failed meanwhile, and the group does not wait."""
    begun, failed = threading.Event(), threading.Event()

    def charge() -> None:
        begun.set()
        failed.wait(10)
        ledger.append("charged")

    def decline() -> None:
        begun.wait(10)
        threading.Timer(0.1, failed.set).start()
        fail()

    def refund(result: Any) -> None:
        ledger.append("refunded")

    if colour == "threads":

        @flow("trip", on="go")
        def trip(step):
            saga = step.saga()
            step.parallel(
                lambda: saga.run("charge", charge, undo=refund),
                step.later.run("decline", decline),
                on_error="stop",
            )
    else:

        @flow("trip", on="go")
        async def trip_(step):
            saga = step.saga()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(saga.run("charge", charge, undo=refund))
                tasks.create_task(step.run("decline", decline))

    assert played().state == "failed"
    assert ledger == ["charged", "refunded"]


@pytest.fixture
def declare(ledger):
    """Declare a flow of a saga's step and what goes on beside it, in either colour."""

    def do(what: str) -> str:
        ledger.append(what)
        return what

    def undo(result: Any, what: str) -> None:
        ledger.append(f"un{what}")

    def in_threads(group: str) -> None:
        @flow("trip", on="go", retries=0)
        def trip(step):
            def pay() -> None:
                step.sleep("a-moment", "1m")
                step.saga().run("charge", do, "charge", undo=undo)
                step.sleep("settle", "1h")
                step.saga().run("ship", do, "ship", undo=undo)
                step.sleep("arrive", "9 days")

            def rest() -> None:
                step.run("plain", do, "plain")
                step.sleep("rest", "2 days")

            getattr(step, group)(
                lambda: step.wait_for_event("wait", event="never", timeout="7 days"), rest, pay
            )
            step.sleep("pause", "1h")
            step.run("fail", fail)

    def in_tasks(group: str) -> None:
        @flow("trip", on="go", retries=0)
        async def trip(step):
            async def pay() -> None:
                await step.sleep("a-moment", "1m")
                await step.saga().run("charge", do, "charge", undo=undo)
                await step.sleep("settle", "1h")
                await step.saga().run("ship", do, "ship", undo=undo)
                await step.sleep("arrive", "9 days")

            async def rest() -> None:
                await step.run("plain", do, "plain")
                await step.sleep("rest", "2 days")

            async def wait() -> None:
                await step.wait_for_event("wait", event="never", timeout="7 days")

            if group == "TaskGroup":
                async with asyncio.TaskGroup() as tasks:
                    for branch in (wait, rest, pay):
                        tasks.create_task(branch())
            else:
                await getattr(step, group)(wait, rest, pay)
            await step.sleep("pause", "1h")
            await step.run("fail", fail)

    return {"threads": in_threads, "tasks": in_tasks}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("colour", "group"),
    [
        ("threads", "parallel"),
        ("threads", "race"),
        ("tasks", "parallel"),
        ("tasks", "race"),
        ("tasks", "TaskGroup"),
    ],
)
def test_a_branch_that_rests_keeps_no_other_from_being_undone(colour, group, declare, ledger):
    declare[colour](group)
    run = played()
    advance("2h")
    cancel(run.id)
    drain()
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["plain", "charge", "ship", "unship", "uncharge"]


@pytest.mark.parametrize("colour", ["threads", "tasks"])
@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_the_loser_of_a_race_is_undone_in_a_later_slice_too(colour, end, declare, ledger):
    declare[colour]("race")
    run = played()
    advance("2 days")
    assert ledger == ["plain", "charge", "ship"]
    if end == "cancelled":
        cancel(run.id)
    advance("1h")
    assert (again(run).state, again(run).warnings) == (end, {})
    assert ledger == ["plain", "charge", "ship", "unship", "uncharge"]


def test_children_of_a_cancelled_run_are_cancelled_before_it_is_undone(ledger):
    def undo(result: Any) -> None:
        ledger.append("undo")
        if len(ledger) == 1:
            raise ConnectionError("not yet")

    @flow("child")
    def child(step):
        step.sleep("work", "1 day")

    @flow("trip", on="go", retries=Retries(2, backoff=Fixed("1h"), jitter=0))
    def trip(step):
        step.saga().run("charge", lambda: None, undo=undo)
        step.invoke("child", child)

    run = played()
    cancel(run.id)
    drain()
    assert again(run).activity == "cancelling"
    (child_id,) = again(run).children
    assert run_of(child_id).state == "cancelled"
    advance("1h")
    assert (again(run).state, ledger) == ("cancelled", ["undo", "undo"])


# -- whatever comes in between -----------------------------------------------------------------


@pytest.mark.parametrize("rests", [False, True])
def test_a_run_that_is_cancelled_after_its_last_step_is_undone(rests, ledger, book):
    """Its handler has ended, and its end is not written yet."""

    @flow("trip", on="go")
    def trip(step, run):
        book(step.saga(), "flight")
        if rests:
            step.sleep("rest", "1h")
        cancel(run.id)
        route()
        return "done"

    run = played()
    advance("1h")
    assert (again(run).state, again(run).result) == ("cancelled", None)
    assert ledger == ["flight", "unflight flight!"]


def test_it_is_undone_at_once_and_not_when_the_lease_has_ended(ledger, book):
    @flow("trip", on="go")
    def trip(step, run):
        book(step.saga(), "flight")
        cancel(run.id)
        route()

    run = played()
    assert (again(run).state, ledger) == ("cancelled", ["flight", "unflight flight!"])


def test_a_run_that_has_ended_is_not_undone_if_somebody_comes_too_late(ledger, book):
    @flow("trip", on="go")
    def trip(step):
        book(step.saga(), "flight")

    run = played()
    cancel(run.id)
    drain()
    assert (again(run).state, ledger) == ("completed", ["flight"])


@pytest.mark.parametrize("by", ["a person", "a deadline"])
def test_a_failed_run_that_is_being_undone_stays_failed_whoever_cancels_it(by, ledger):
    def undo(result: Any) -> None:
        ledger.append("try")
        if ledger.count("try") < 3:
            raise ConnectionError("not yet")

    timeouts = Timeouts(finish="1h" if by == "a deadline" else "9 days")

    @flow("trip", on="go", retries=Retries(5, backoff=Fixed("40m"), jitter=0), timeouts=timeouts)
    def trip(step):
        step.saga().run("charge", lambda: None, undo=undo)
        step.run("fail", fail)

    @trip.on_failure
    def tell():
        ledger.append("told")

    run = played()
    if by == "a person":
        cancel(run.id)
    advance("3h")
    run = again(run)
    assert (run.state, run.error["step"]) == ("failed", "fail")
    assert ledger == ["try", "try", "try", "told"]


def test_a_patch_that_came_later_keeps_nothing_from_being_undone(ledger, book):
    def declare(is_patched: bool) -> Flow:
        @flow("trip", on="go")
        def trip(step):
            saga = step.saga()
            book(saga, "flight")
            if is_patched and step.patched("bus"):
                book(saga, "bus")
            book(saga, "hotel")
            step.sleep("rest", "1h")

        return trip

    old = declare(False)
    run = played()
    forget(old)
    declare(True)
    cancel(run.id)
    drain()
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["flight", "hotel", "unhotel hotel!", "unflight flight!"]
    assert "patched:bus" not in again(run).step_keys


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_an_error_between_steps_is_tried_again_while_undoing_is_learnt(colour, ledger):
    def do(what: str) -> None:
        ledger.append(what)

    def undo(result: Any, what: str) -> None:
        ledger.append(f"un{what}")

    def between() -> None:
        ledger.append("between")
        if ledger.count("between") == 2:
            raise ConnectionError("a moment")

    policy = Retries(3, backoff=Fixed("1m"), jitter=0)
    if colour == "threads":

        @flow("trip", on="go", retries=policy)
        def trip(step):
            step.saga().run("flight", do, "flight", undo=undo)
            between()
            step.saga().run("hotel", do, "hotel", undo=undo)
            step.sleep("rest", "1 day")
    else:

        @flow("trip", on="go", retries=policy)
        async def trip_(step):
            await step.saga().run("flight", do, "flight", undo=undo)
            between()
            await step.saga().run("hotel", do, "hotel", undo=undo)
            await step.sleep("rest", "1 day")

    run = played()
    cancel(run.id)
    drain()
    assert again(run).activity == "cancelling"
    advance("1m")
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert [what for what in ledger if what != "between"] == [
        *("flight", "hotel", "unhotel", "unflight")
    ]


def test_one_that_lasts_ends_it_and_what_is_not_undone_is_said(ledger, book):
    broken: list[bool] = []

    @flow("trip", on="go", retries=Retries(2, backoff=Fixed("1m"), jitter=0))
    def trip(step):
        book(step.saga(), "flight")
        if broken:
            raise ConnectionError("for good")
        book(step.saga(), "hotel")
        step.sleep("rest", "1 day")

    run = played()
    broken.append(True)
    cancel(run.id)
    advance("1h")
    assert again(run).state == "cancelled"
    assert "nobody knows how" in again(run).warnings["hotel#undo"]
    assert ledger == ["flight", "hotel", "unflight flight!"]


def test_code_that_does_not_fit_is_waited_for_before_anything_is_undone(ledger, book):
    def declare(changed: bool) -> Flow:
        @flow("trip", on="go")
        def trip(step):
            book(step.saga(), "flight")
            if changed:
                step.sleep("look", "1h")
            else:
                step.run("look", lambda: None)
            book(step.saga(), "hotel")
            step.sleep("rest", "1 day")

        return trip

    old = declare(False)
    run = played()
    forget(old)
    changed = declare(True)
    cancel(run.id)
    route()
    drain_queue(ring.default_queue(), seconds=0.2)
    assert (again(run).activity, ledger) == ("cancelling", ["flight", "hotel"])
    assert "look" in again(run).warnings["parked"]
    forget(changed)
    declare(False)
    advance("1m")
    assert again(run).state == "cancelled"
    assert ledger == ["flight", "hotel", "unhotel hotel!", "unflight flight!"]


@pytest.mark.django_db(transaction=True)
def test_nobody_waits_for_a_loser_that_has_nothing_to_undo(ledger, book):
    late = threading.Event()

    def be_slow() -> None:
        late.wait(10)
        ledger.append("late")

    @flow("trip", on="go")
    def trip(step):
        book(step.saga(), "flight")
        step.race(step.later.run("quick", str), step.later.run("slow", be_slow))

    try:
        assert (played().state, ledger) == ("completed", ["flight"])
    finally:
        late.set()
