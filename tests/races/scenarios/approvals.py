"""People decide, while the run begins to ask, and while others decide."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

from durable_flows import Step, decide, flow
from durable_flows.engine import ingest
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.errors import ApprovalClosed, UnknownApproval
from durable_flows.models import Approval, Run
from durable_flows.rules import keys
from durable_flows.testing import drain, send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, slice_of


def _asks() -> None:
    @flow("asks", on="asked")
    def asks(step: Step) -> str:
        found = step.wait_for_approval("boss", timeout="1h")
        return "timeout" if found is None else found.by


def decision_against_the_question() -> Scenario:
    """It is made as soon as people see what is asked."""
    _asks()

    def approve(run: Claim) -> str:
        decide(keys.wait_id(run.run_id, "boss"), True, by="ada")
        route()
        return "decided"

    def holds(run: Claim, results: Sequence[object]) -> str:
        if results[1] is None:
            return "too early"
        assert Run.objects.get(pk=run.run_id).result == '"ada"', "the decision is lost"
        return "decided"

    return Scenario(
        stage=lambda: claimed("asked"),
        actors=[("slice", slice_of), ("boss", approve)],
        holds=holds,
        outcomes=frozenset({"too early", "decided"}),
        refuses=(UnknownApproval, ApprovalClosed),
        twins=[
            Twin(
                without="a wake of who is running, after its wait was ended",
                rewrite=cutting(r"nudged = \(state IN [^)]*\)+", "nudged = false"),
            ),
        ],
    )


def decision_against_decision() -> Scenario:
    """Two people decide the same."""
    _asks()

    def stage() -> uuid.UUID:
        send("asked")
        drain()
        return Approval.objects.get().pk

    def deciding(name: str) -> Callable[[uuid.UUID], str]:
        def part(approval: uuid.UUID) -> str:
            decide(approval, True, by=name)
            return name

        return part

    def holds(_: uuid.UUID, results: Sequence[object]) -> str:
        first, *others = (name for name in results if name is not None)
        assert not others, "both were told that theirs stands"
        assert Run.objects.get().result == f'"{first}"', (
            "one was told that it stands, and it does not"
        )
        return str(first)

    def unkeyed(name: str, target: str, data: object, run_of: object, **options: object) -> object:
        return command(name, target, data, run_of, **{**options, "key": None})  # type: ignore[arg-type]

    command = ingest.command
    return Scenario(
        stage=stage,
        actors=[("ada", deciding("ada")), ("bob", deciding("bob"))],
        holds=holds,
        outcomes=frozenset({"ada", "bob"}),
        refuses=(ApprovalClosed,),
        twins=[
            Twin(
                without="a key by which the second one finds the first",
                patch=partial(patch.object, ingest, "command", unkeyed),
            ),
        ],
    )


RACES = [decision_against_the_question, decision_against_decision]
