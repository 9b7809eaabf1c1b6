"""A run that has something to undo is cancelled, whatever it is at."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from durable_flows import Step, cancel, flow
from durable_flows.engine import cancel as cancelling
from durable_flows.engine import slices, suspend
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.models import Run
from durable_flows.models import Step as StepRow
from tests.races.scenario import Scenario, Twin
from tests.races.stage import claimed, slice_of


def cancel_against_a_saga() -> Scenario:
    """It comes before the slice, in the middle of it, while the run suspends, or when it rests."""

    @flow("trip", on="asked")
    def trip(step: Step) -> None:
        step.saga().run("book", str, "booked", undo=lambda result, _: f"{result} no more")
        step.sleep("rest", "1h")

    def stop(run: Claim) -> None:
        cancel(run.run_id)
        route()

    def holds(run: Claim, _: Sequence[object]) -> str:
        steps = set(StepRow.objects.values_list("key", flat=True))
        assert Run.objects.get(pk=run.run_id).state == "cancelled"
        assert ("book#intent" in steps) == ("book#undo" in steps), "it was not undone"
        return "undone" if "book" in steps else "not begun"

    see = suspend._see_why_not
    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("slice", slice_of), ("canceller", stop)],
        holds=holds,
        outcomes=frozenset({"undone"}),
        twins=[
            Twin(
                without="one more slice for what was cancelled while it suspended",
                patch=lambda: patch.object(
                    suspend, "_see_why_not", lambda run, *, has_undo: see(run, has_undo=False)
                ),
            ),
            Twin(
                without="a look at what a resting run has to undo",
                patch=lambda: patch.object(cancelling, "_with_undo", lambda _: []),
            ),
        ],
    )


def cancel_against_the_end_of_a_saga() -> Scenario:
    """It comes before the last step is recorded, while the run's end is written, or too late."""

    @flow("trip", on="asked")
    def trip(step: Step) -> None:
        step.saga().run("book", str, "booked", undo=lambda result, _: f"{result} no more")

    def stop(run: Claim) -> None:
        cancel(run.run_id)
        route()

    def holds(run: Claim, _: Sequence[object]) -> str:
        steps = set(StepRow.objects.values_list("key", flat=True))
        state = Run.objects.get(pk=run.run_id).state
        assert (state == "cancelled") == ("book#undo" in steps or "book#intent" not in steps), (
            f"{state}, with {sorted(steps)}"
        )
        return state

    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("slice", slice_of), ("canceller", stop)],
        holds=holds,
        outcomes=frozenset({"completed", "cancelled"}),
        twins=[
            Twin(
                without="leaving those to another slice that have something to undo",
                patch=lambda: patch.object(slices, "replace", lambda ending, **_: ending),
            ),
        ],
    )


RACES = [cancel_against_a_saga, cancel_against_the_end_of_a_saga]
