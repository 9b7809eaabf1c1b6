"""A slice with branches, and what comes from outside meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

from durable_flows import Step, flow
from durable_flows.engine import fence, in_threads, play
from durable_flows.engine.history import Claim
from durable_flows.models import Run, Wait
from durable_flows.testing import send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, routing, slice_of


def _one_thread() -> AbstractContextManager[object]:
    """Branches are executed one after the other: schedules can be repeated."""
    return patch.object(play, "_is_alone", lambda: True)


def decision_against_event() -> Scenario:
    """A race is decided, while an event comes that a loser waits for."""

    @flow("asks", on="asked")
    def asks(step: Step) -> str:
        won = step.race(
            step.later.wait_for_event("reply", event="replied", timeout="1h"),
            step.later.run("work", str, "worked"),
        )
        return won if won == "worked" else "replied"

    def stage() -> Claim:
        run = claimed("asked")
        send("replied")
        return run

    def holds(run: Claim, _: Sequence[object]) -> str:
        result, wait = Run.objects.get(pk=run.run_id).result, Wait.objects.get()
        has_got_it = result == '"replied"'
        assert (wait.event_id is not None) == has_got_it, "it is used up, and nobody has got it"
        return f"{result} {wait.outcome}"

    return Scenario(
        stage=stage,
        actors=[("slice", slice_of), ("router", routing)],
        holds=holds,
        outcomes=frozenset({'"worked" closed', '"replied" event'}),
        meanwhile=_one_thread,
        twins=[
            Twin(
                without="taking back what has ended a loser a moment ago",
                rewrite=cutting(r" OR kind = 'step' AND outcome = 'event'", of="event_id = NULL"),
            ),
        ],
    )


def nudge_seen_against_event() -> Scenario:
    """A branch waits while another executes, and the slice sees that the run was woken."""

    @flow("asks", on="asked")
    def asks(step: Step) -> object:
        found, _ = step.parallel(
            step.later.wait_for_event("reply", event="replied", timeout="1h"),
            step.later.run("work", str, "worked"),
            max_in_flight=1,
        )
        return found and found.name

    def stage() -> Claim:
        run = claimed("asked")
        send("replied")
        return run

    def holds(run: Claim, _: Sequence[object]) -> str:
        assert Run.objects.get(pk=run.run_id).result == '"replied"', "the event is lost"
        return "event"

    def see_and_go_on(group: in_threads._Group) -> None:
        group._desk.do(group._journal.look_for_nudges)

    @contextmanager
    def nothing_follows() -> Iterator[None]:
        with (
            patch.object(in_threads._Group, "_wake", see_and_go_on),
            patch.object(play, "goes_on_at", lambda _, signal: signal.until),
        ):
            yield

    return Scenario(
        stage=stage,
        actors=[("slice", slice_of), ("router", routing)],
        holds=holds,
        meanwhile=lambda: patch.object(fence, "LOOK", 0.0),
        twins=[
            Twin(
                without="another look after a nudge, by those who wait or by the next slice at once",
                patch=nothing_follows,
            ),
        ],
    )


RACES = [decision_against_event, nudge_seen_against_event]
