"""What a run learns when its handler is replayed to be undone: all that it has done, and nothing more."""

from __future__ import annotations

from typing import Any

import pytest

from durable_flows import NonRetriableError, cancel, flow
from durable_flows.engine import ring
from durable_flows.engine.route import route
from durable_flows.flows import Flow
from durable_flows.testing import advance, crash_after, drain
from tests.promises.staging import again, forget, played

pytestmark = pytest.mark.django_db


@pytest.fixture
def ledger() -> list[str]:
    return []


@pytest.fixture
def book(ledger):
    """Book something, and what takes it back."""

    def undo(_: Any, what: str) -> None:
        ledger.append(f"un{what}")

    def run(saga, what: str) -> None:
        saga.run(what, ledger.append, what, undo=undo)

    return run


def fail() -> None:
    raise NonRetriableError("no")


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_the_loser_of_a_race_is_undone_though_the_run_is_cancelled_while_it_executes(
    colour, ledger
):
    def refund(*_: Any) -> None:
        ledger.append("refunded")

    def stop(run_id: str) -> None:
        cancel(run_id)
        with ring.silence():
            route()

    if colour == "threads":

        @flow("trip", on="go")
        def trip(step, run):
            def pay() -> None:
                step.saga().run("charge", ledger.append, "charged", undo=refund)
                step.sleep("settle", "9 days")

            step.race(pay, step.later.sleep("short", "1h"))
            step.sleep("pause", "1h")
            step.run("stop", stop, run.id)
            step.run("never", ledger.append, "never")
    else:

        @flow("trip", on="go")
        async def trip_(step, run):
            async def pay() -> None:
                await step.saga().run("charge", ledger.append, "charged", undo=refund)
                await step.sleep("settle", "9 days")

            await step.race(pay, step.later.sleep("short", "1h"))
            await step.sleep("pause", "1h")
            await step.run("stop", stop, run.id)
            await step.run("never", ledger.append, "never")

    run = played()
    advance("2h")
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["charged", "refunded"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_the_loser_of_a_race_is_undone_however_much_longer_its_way_is(colour, ledger):
    def refund(*_: Any) -> None:
        ledger.append("refunded")

    if colour == "threads":

        @flow("trip", on="go", retries=0)
        def trip(step):
            def pay() -> None:
                for _ in range(10):
                    step.run("consider", int)
                step.saga().run("charge", ledger.append, "charged", undo=refund)
                step.sleep("settle", "9 days")

            step.race(step.later.sleep("short", "1h"), pay)
            step.sleep("pause", "1h")
            step.run("fail", fail)
    else:

        @flow("trip", on="go", retries=0)
        async def trip_(step):
            async def pay() -> None:
                for _ in range(10):
                    await step.run("consider", int)
                await step.saga().run("charge", ledger.append, "charged", undo=refund)
                await step.sleep("settle", "9 days")

            await step.race(step.later.sleep("short", "1h"), pay)
            await step.sleep("pause", "1h")
            await step.run("fail", fail)

    run = played()
    advance("2h")
    assert (again(run).state, again(run).warnings) == ("failed", {})
    assert ledger == ["charged", "refunded"]


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_a_branch_that_had_no_room_yet_when_another_failed_is_undone(colour, ledger):
    """It had begun while the other slept; the next time the other comes first, and fails."""

    def refund(*_: Any) -> None:
        ledger.append("refunded")

    if colour == "threads":

        @flow("trip", on="go", retries=0)
        def trip(step):
            def fails() -> None:
                step.sleep("short", "1h")
                raise ValueError("no")

            def pay() -> None:
                step.saga().run("charge", ledger.append, "charged", undo=refund)
                step.sleep("settle", "9 days")

            step.parallel(fails, pay, max_in_flight=1, on_error="stop")
    else:

        @flow("trip", on="go", retries=0)
        async def trip_(step):
            async def fails() -> None:
                await step.sleep("short", "1h")
                raise ValueError("no")

            async def pay() -> None:
                await step.saga().run("charge", ledger.append, "charged", undo=refund)
                await step.sleep("settle", "9 days")

            await step.parallel(fails, pay, max_in_flight=1, on_error="stop")

    run = played()
    advance("1h")
    assert (again(run).state, again(run).warnings) == ("failed", {})
    assert ledger == ["charged", "refunded"]


def test_what_is_undone_decides_no_race_any_more(ledger):
    @flow("trip", on="go")
    def trip(step):
        step.race(
            lambda: step.saga().run(
                "charge", ledger.append, "charged", undo=lambda *_: ledger.append("refunded")
            ),
            step.later.sleep("long", "1h"),
        )
        step.run("never", ledger.append, "never")

    with crash_after("race[0]/charge"):
        run = played()
    cancel(run.id)
    drain()
    advance("10m")
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["charged", "refunded"]
    assert "race" not in again(run).step_keys


def test_a_handler_is_not_called_once_more_to_undo_what_it_has_just_done(ledger, book):
    @flow("trip", on="go")
    def trip(step):
        ledger.append("called")
        book(step.saga(), "flight")
        step.run("fail", fail)

    assert played().state == "failed"
    assert ledger == ["called", "flight", "unflight"]


def test_a_handler_that_knows_how_to_undo_some_is_asked_for_the_rest(ledger, book):
    @flow("trip", on="go", retries=0)
    def trip(step):
        def lose() -> None:
            book(step.saga(), "flight")
            step.sleep("long", "9 days")

        step.race(lose, step.later.sleep("short", "1h"))
        step.sleep("pause", "1h")
        book(step.saga(), "hotel")
        step.run("fail", fail)

    run = played()
    advance("2h")
    assert (again(run).state, again(run).warnings) == ("failed", {})
    assert ledger == ["flight", "hotel", "unhotel", "unflight"]


def test_an_error_that_comes_when_all_is_known_keeps_nothing_from_being_undone(ledger, book):
    broken: list[bool] = []

    @flow("trip", on="go")
    def trip(step):
        book(step.saga(), "flight")
        if broken:
            raise ConnectionError("for good")
        step.sleep("rest", "1 day")

    run = played()
    broken.append(True)
    cancel(run.id)
    drain()
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["flight", "unflight"]


def test_code_that_does_not_fit_later_keeps_nothing_from_being_undone(ledger, book):
    def declare(changed: bool) -> Flow:
        @flow("trip", on="go")
        def trip(step):
            book(step.saga(), "flight")
            if changed:
                step.sleep("look", "1h")
            else:
                step.run("look", lambda: None)
            step.sleep("rest", "1 day")

        return trip

    old = declare(False)
    run = played()
    forget(old)
    declare(True)
    cancel(run.id)
    drain()
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["flight", "unflight"]
