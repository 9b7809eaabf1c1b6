"""The runs of a map end, while others of them do, or while their parent suspends."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from durable_flows import Event, Step, flow
from durable_flows.engine import fanout
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.models import Run
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, slice_of, work


def _maps(most: int) -> None:
    @flow("child")
    def child(event: Event) -> int:
        return int(event.data["n"])

    @flow("parent", on="asked")
    def parent(step: Step) -> list[int]:
        return step.map("all", child, [{"n": 1}, {"n": 2}], max_in_flight=most)


def ends_of_items_against_the_parents_suspend() -> Scenario:
    """The children may all have ended before their parent rests."""
    _maps(1)

    def children(_: Claim) -> None:
        for _round in range(2):
            route()
            work()
        route()

    def holds(run: Claim, _: Sequence[object]) -> str:
        assert Run.objects.get(pk=run.run_id).result == "[1,2]", "the parent is not told"
        return "done"

    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("parent", slice_of), ("children", children)],
        holds=holds,
        sampled=100,
        twins=[
            Twin(
                without="a wake of who is running, after its last child has ended",
                rewrite=cutting(r"nudged = \(state IN [^)]*\)+", "nudged = false"),
            ),
            Twin(
                without="letting the next one begin",
                patch=lambda: patch.object(fanout, "_bring_forward", lambda *_: None),
            ),
        ],
    )


RACES = [ends_of_items_against_the_parents_suspend]
