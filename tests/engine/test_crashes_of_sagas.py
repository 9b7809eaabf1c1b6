"""A worker that dies while a saga goes on, fails, and is undone: at each visit of each place."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from itertools import groupby
from typing import Any

import pytest

from durable_flows import AsyncStep, Event, Fixed, NonRetriableError, Retries, Step, flow
from durable_flows.engine import failpoints
from durable_flows.models import Due, Wait
from durable_flows.testing import advance, crash_at, run_of, send

pytestmark = pytest.mark.django_db

#: The places to which the tour comes; to the others come the journey of `test_crashes`, and tests there.
VISITED = {
    "attempt_recorded",
    "batch_routed",
    "before_deadlines_commit",
    "before_end",
    "before_end_commit",
    "before_race_commit",
    "before_routed_commit",
    "before_suspend",
    "between_routing_transactions",
    "claim_read",
    "claimed",
    "ends_announced",
    "ends_written",
    "events_numbered",
    "floor_kept",
    "histories_read",
    "looked_back",
    "runs_admitted",
    "signature_written",
    "step_ran",
    "step_recorded",
    "suspended",
    "unparked",
    "wait_registered",
}
_ID = re.compile(r"[0-9a-f]{8}-")
#: Two are done side by side: whose turn is when is anybody's guess.
ALONG = [
    *("flight", "note", "hotel", "side", "side", "decline"),
    *("no hotel", "no hotel", "no flight", "told"),
]


@pytest.fixture(params=["threads", "tasks"])
def tour(request: pytest.FixtureRequest) -> dict[int, list[str]]:
    """A flow with a saga in a group of which one branch sleeps. Returns what was done, by tour."""
    done: dict[int, list[str]] = defaultdict(list)

    def book(tour: int, what: str) -> str:
        done[tour].append(what)
        return what

    def unbook(booked: str, tour: int, what: str) -> None:
        done[tour].append(f"no {booked}")
        if done[tour].count("no hotel") == 1:
            raise ConnectionError("not yet")

    def decline(tour: int) -> None:
        done[tour].append("decline")
        raise NonRetriableError("declined")

    def in_threads(event: Event, step: Step) -> None:
        number, saga = event.data["tour"], step.saga()

        def rests() -> None:
            step.sleep("rest", "1h")
            saga.run("hotel", book, number, "hotel", undo=unbook)

        def goes_on() -> None:
            saga.run("flight", book, number, "flight", undo=unbook)
            step.run("note", book, number, "note")

        step.parallel(rests, goes_on)
        step.parallel(*[step.later.run("side", book, number, "side") for _ in range(2)])
        step.race(
            step.later.wait_for_event("guest", event="tour/never", timeout="1 day"),
            step.later.sleep("evening", "1h"),
        )
        step.run("decline", decline, number)

    async def in_tasks(event: Event, step: AsyncStep) -> None:
        number, saga = event.data["tour"], step.saga()

        async def rests() -> None:
            await step.sleep("rest", "1h")
            await saga.run("hotel", book, number, "hotel", undo=unbook)

        async def goes_on() -> None:
            await saga.run("flight", book, number, "flight", undo=unbook)
            await step.run("note", book, number, "note")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(rests())
            tasks.create_task(goes_on())
        await step.parallel(*[step.later.run("side", book, number, "side") for _ in range(2)])
        await step.race(
            step.later.wait_for_event("guest", event="tour/never", timeout="1 day"),
            step.later.sleep("evening", "1h"),
        )
        await step.run("decline", decline, number)

    declare = flow("tour", on="tour/began", retries=Retries(2, backoff=Fixed("10s")))
    handler = declare(in_tasks if request.param == "tasks" else in_threads)

    @handler.on_failure
    def tell(event: Event, step: Step) -> None:
        step.run("tell", book, event.data["event"]["data"]["tour"], "told")

    return done


def once(done: list[str]) -> list[str]:
    """Without what was repeated at once."""
    return [what for what, _ in groupby(done)]


def visits() -> dict[str, set[str | None]]:
    """The places to which a tour comes, and what they are about then; None where that is the run."""
    seen: dict[str, set[str | None]] = defaultdict(set)

    def trap(place: str, about: str) -> None:
        seen[place].add(None if _ID.search(about) else about)

    failpoints.trap = trap
    try:
        play(0)
    finally:
        failpoints.trap = None
    return seen


def play(number: int) -> Any:
    event = send("tour/began", {"tour": number})
    advance("3h")
    return run_of(event, "tour")


@pytest.mark.parametrize("place", sorted(VISITED))
def test_a_saga_survives_a_worker_that_dies(place: str, tour: dict[int, list[str]]) -> None:
    visited = visits()
    assert tour[0] == ALONG
    assert set(visited) == VISITED
    for number, about in enumerate(sorted(visited[place], key=str), start=1):
        with crash_at(place, about) as crash:
            run = play(number)
        assert crash.happened
        assert (run.state, run.error["name"], run.warnings) == (
            "failed",
            "NonRetriableError",
            {},
        ), about
        assert once(tour[number]) == once(ALONG), about
        assert len(tour[number]) - len(ALONG) == (place == "step_ran"), about
        undone = [key.partition("/")[2] for key in run.step_keys[-2:]]
        assert undone == ["hotel#undo", "flight#undo"]
    assert not Due.objects.exists()
    assert not Wait.objects.pending().exists()
