"""Sagas of ``async def`` flows whose branches cancel each other: whatever was done is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from durable_flows import Fixed, NonRetriableError, Retries, StepError, cancel, flow
from durable_flows.testing import advance
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
