"""Sagas of ``async def`` flows whose branches cancel each other: whatever was done is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from durable_flows import (
    Event,
    Fixed,
    InvokeError,
    NonRetriableError,
    Retries,
    StepError,
    cancel,
    flow,
    send,
)
from durable_flows.engine import ring
from durable_flows.engine.route import route
from durable_flows.models import Run
from durable_flows.testing import advance, drain, run_of
from tests.promises.staging import again, played

#: In one transaction, and with threads of their own.
MODES = [
    pytest.param(mark, id=name, marks=mark)
    for name, mark in {
        "alone": pytest.mark.django_db,
        "in_threads": pytest.mark.django_db(transaction=True),
    }.items()
]
in_both_modes = pytest.mark.parametrize("mode", MODES)

Branch = Callable[[], Coroutine[Any, Any, None]]


def fail() -> None:
    raise NonRetriableError("no")


class Ledger(list[str]):
    """What was done and undone."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0  # of an undo, to come

    def do(self, what: str) -> str:
        self.append(what)
        return what

    def undo(self, result: Any, what: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("not yet")
        self.append(f"un{what}")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def in_a_task_group(step: Any, books: Branch, stops: Branch) -> None:
    with suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(books())
            tasks.create_task(stops())


async def beside_a_task_group(step: Any, books: Branch, stops: Branch) -> None:
    with suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stops())
            await books()


async def by_hand(step: Any, books: Branch, stops: Branch) -> None:
    tasks = [asyncio.create_task(books()), asyncio.create_task(stops())]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


async def gathered(step: Any, books: Branch, stops: Branch) -> None:
    with suppress(StepError):
        await asyncio.gather(books(), stops())


async def in_parallel(step: Any, books: Branch, stops: Branch) -> None:
    with suppress(StepError):
        await step.parallel(books, stops, on_error="stop")


async def in_a_race(step: Any, books: Branch, stops: Branch) -> None:
    with suppress(StepError):
        await step.race(books, stops)


@in_both_modes
@pytest.mark.parametrize("end", ["failed", "cancelled"])
@pytest.mark.parametrize(
    "together",
    [in_a_task_group, beside_a_task_group, by_hand, gathered, in_parallel, in_a_race],
)
def test_what_a_branch_did_before_its_neighbour_stopped_it_is_undone(together, end, mode, ledger):
    """On a replay its neighbour fails at once, and would stop it before it comes to its later steps."""

    @flow("trip", on="go", retries=0)
    async def trip(step):
        saga = step.saga()

        async def books() -> None:
            for what in "abcd":
                await saga.run(what, ledger.do, what, undo=ledger.undo)
            await step.sleep("rest", "2h")

        async def stops() -> None:
            await step.sleep("a-moment", "1m")
            await step.run("stop", fail)

        await together(step, books, stops)
        await saga.run("e", ledger.do, "e", undo=ledger.undo)
        await step.sleep("pause", "1h")
        await step.run("fail", fail)

    run = played()
    advance("30m")
    assert ledger == [*"abcde"]
    if end == "cancelled":
        cancel(run.id)
    advance("1h")
    run = again(run)
    assert run.state == end
    assert [about for about in run.warnings if about.endswith("#undo")] == []
    assert ledger == [*"abcde", "une", "und", "unc", "unb", "una"]


@in_both_modes
def test_it_is_undone_though_nobody_failed_but_a_neighbour_was_there_first(mode, ledger):
    @flow("trip", on="go")
    async def trip(step):
        async def books() -> None:
            for what in "ab":
                await step.sleep(f"before {what}", "10m")
                await step.saga().run(what, ledger.do, what, undo=ledger.undo)
            await step.sleep("rest", "2h")

        async def waits() -> None:
            await step.sleep("patience", "30m")

        await by_hand(step, books, waits)
        await step.sleep("pause", "1 day")

    run = played()
    advance("1h")
    cancel(run.id)
    advance("1h")
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["a", "b", "unb", "una"]


@in_both_modes
def test_it_is_undone_by_the_slice_that_tries_an_undo_again(mode, ledger):
    @flow("trip", on="go", retries=Retries(2, backoff=Fixed("30s"), jitter=0))
    async def trip(step):
        async def books() -> None:
            for what in "ab":
                await step.saga().run(what, ledger.do, what, undo=ledger.undo)
            await step.sleep("rest", "2h")

        async def stops() -> None:
            await step.sleep("a-moment", "1m")
            await step.run("stop", fail)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(books())
            tasks.create_task(stops())

    ledger.failures = 1
    run = played()
    advance("1h")
    assert (again(run).state, again(run).warnings) == ("failed", {})
    assert ledger == ["a", "b", "unb", "una"]


@in_both_modes
def test_what_a_branch_does_when_it_is_cancelled_is_undone_too(mode, ledger):
    @flow("trip", on="go")
    async def trip(step):
        async def books() -> None:
            try:
                await step.sleep("rest", "2h")
            except asyncio.CancelledError:
                await step.saga().run("fee", ledger.do, "fee", undo=ledger.undo)
                raise

        async def waits() -> None:
            await step.sleep("patience", "30m")

        await by_hand(step, books, waits)
        await step.sleep("pause", "1 day")

    run = played()
    advance("1h")
    assert ledger == ["fee"]
    cancel(run.id)
    advance("1h")
    assert (again(run).state, again(run).warnings) == ("cancelled", {})
    assert ledger == ["fee", "unfee"]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
@pytest.mark.parametrize("colour", ["threads", "tasks"])
@pytest.mark.django_db
def test_a_run_is_undone_before_anybody_is_told_that_it_has_ended(colour, end, ledger):
    """Also where an undo takes more than one attempt: meanwhile the run has not ended."""
    retries = Retries(2, backoff=Fixed("10m"), jitter=0)
    if colour == "threads":

        @flow("trip", on="go", retries=retries)
        def trip(step):
            step.saga().run("seat", ledger.do, "seat", undo=ledger.undo)
            step.sleep("rest", "1h")
            step.run("fail", fail)
    else:

        @flow("trip", on="go", retries=retries)
        async def trip(step):
            await step.saga().run("seat", ledger.do, "seat", undo=ledger.undo)
            await step.sleep("rest", "1h")
            await step.run("fail", fail)

    trip.on_failure(lambda: ledger.append("told of failed"))
    trip.on_cancel(lambda: ledger.append("told of cancelled"))

    ledger.failures = 1
    run = played()
    if end == "cancelled":
        cancel(run.id)
        drain()
    else:
        advance("1h")
    assert again(run).state == "started"
    assert ledger == ["seat"]
    advance("10m")
    assert again(run).state == end
    assert ledger == ["seat", "unseat", f"told of {end}"]


@in_both_modes
@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_a_charge_that_two_wait_for_and_that_is_cancelled_meanwhile_is_refunded_once(
    colour, mode, ledger
):
    """Both ask for it by one key, and a third one while it is being made: it is the same run."""
    asked: list[str] = []

    def charge(run_id: str) -> str:
        ledger.append("charge")
        asked.append(payments[0].start({"order": 7}, key="order 7"))
        cancel(run_id, reason="changed my mind")
        with ring.silence():
            route()
        return "receipt"

    def refund(receipt: str, run_id: str) -> None:
        ledger.append(f"refund {receipt}")

    if colour == "threads":

        @flow("payment")
        def payment(step, run):
            step.saga().run("charge", charge, run.id, undo=refund)
            step.saga().run("ship", ledger.do, "ship", undo=ledger.undo)

        payments = [payment]
    else:

        @flow("payment")
        async def payment_(step, run):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(step.sleep("rest", "1h"))
                await step.saga().run("charge", charge, run.id, undo=refund)
                await step.saga().run("ship", ledger.do, "ship", undo=ledger.undo)

        payments = [payment_]

    @flow("checkout", on="go")
    def checkout(event, step):
        try:
            step.invoke("pay", payments[0], {"order": 7}, key="order 7")
        except InvokeError as error:
            return [error.state, error.reason]

    first, second = send([Event("go"), Event("go")])
    advance("1h")
    paid = Run.objects.get(flow="payment")
    assert (paid.state, paid.reason) == ("cancelled", "changed my mind")
    assert asked == [str(paid.pk)]
    assert ledger == ["charge", "refund receipt"]
    assert [run_of(one).result for one in (first, second)] == [["cancelled", "changed my mind"]] * 2
