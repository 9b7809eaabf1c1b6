"""Runs that end, are told to stop and are held, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from durable_flows import Step, Timeouts, cancel, flow
from durable_flows.engine import deadlines, finish, leases, ring
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.models import Run
from durable_flows.rules import clock
from durable_flows.rules.states import RunState
from durable_flows.testing import send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import admitted, claimed, routing, slice_of, work


def end_against_cancel() -> Scenario:
    @flow("works", on="a/b")
    def works(step: Step) -> str:
        return step.run("work", lambda: "done")

    def stage() -> Claim:
        run = claimed("a/b")
        cancel(run.run_id, reason="no more")
        return run

    def holds(claim: Claim, _: Sequence[object]) -> str:
        run = Run.objects.get(pk=claim.run_id)
        if run.state == "completed":
            assert run.reason == "", "it was told to stop, and ended otherwise"
            assert run.result == '"done"'
        else:
            assert (run.state, run.reason, run.result) == ("cancelled", "no more", None)
        return run.state

    return Scenario(
        stage=stage,
        actors=[("slice", slice_of), ("router", routing)],
        holds=holds,
        outcomes=frozenset({"completed", "cancelled"}),
        twins=[
            Twin(
                without="a look at whether it was told to stop, when it ends",
                rewrite=cutting("state = 'cancelling' AS asked", "false AS asked"),
            ),
        ],
    )


def ends_against_cancels_against_heartbeat() -> Scenario:
    """Two that lock the rows of the same two runs, and one that locks the first of them."""
    flow("quick", on="a/b")(lambda: None)

    def stage() -> list[Claim]:
        send("a/b")
        send("a/b")
        route()
        claims = sorted(claim(ring.default_queue(), 2), key=lambda run: run.run_id)
        for run in reversed(claims):
            cancel(run.run_id)
        # Its process holds the first alone: while it has that in hand, others may have the second.
        leases.release(claims[1].run_id, claims[1].lease)
        return claims

    def end(claims: list[Claim]) -> None:
        finish.end(
            [
                finish.Ending(
                    run_id=run.run_id, lease=run.lease, state=RunState.COMPLETED, result="1"
                )
                for run in claims
            ]
        )

    def holds(_: list[Claim], __: Sequence[object]) -> str:
        states = set(Run.objects.values_list("state", flat=True))
        assert len(states) == 1, "ended together, and otherwise"
        return str(states.pop())

    return Scenario(
        stage=stage,
        actors=[("worker", end), ("router", routing), ("heartbeat", lambda _: leases.renew())],
        holds=holds,
        outcomes=frozenset({"completed", "cancelled"}),
        twins=[
            Twin(
                without="one order of locking in the router",
                rewrite=cutting("ORDER BY run_id FOR UPDATE", "ORDER BY run_id DESC FOR UPDATE"),
            ),
        ],
    )


def deadline_against_claim() -> Scenario:
    """The time in which a run must have begun is over when it has just begun."""

    @flow("hurries", on="a/b", timeouts=Timeouts(start="1h", finish="9h"))
    def hurries(step: Step) -> str:
        return step.run("work", lambda: "done")

    def serve(_: str) -> None:
        clock.advance(timedelta(hours=2))
        deadlines.serve()

    def holds(event_id: str, results: Sequence[object]) -> str:
        run = Run.objects.get(event_id=event_id)
        if results[0]:
            assert run.state == "completed", "cancelled, though it began in time"
        else:
            assert (run.state, run.reason) == ("cancelled", "timeout: start")
        return run.state

    return Scenario(
        stage=lambda: admitted("a/b"),
        actors=[("worker", work), ("tick", serve)],
        holds=holds,
        outcomes=frozenset({"completed", "cancelled"}),
        twins=[
            Twin(
                without="the locks before a tick decides whose time is over",
                rewrite=cutting("FOR UPDATE SKIP LOCKED", of="deadline_at <= "),
            ),
        ],
    )


RACES = [deadline_against_claim, end_against_cancel, ends_against_cancels_against_heartbeat]
