"""People who ask for the same thing at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest.mock import patch
from uuid import UUID

from durable_flows import NonRetriableError, Step, flow, retry
from durable_flows.engine import admit, quarantine, stored
from durable_flows.engine.route import route
from durable_flows.engine.stored import Routed
from durable_flows.errors import IllegalTransition
from durable_flows.models import Event, Run
from durable_flows.testing import drain, send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import routing


def _failed_run() -> Callable[[], UUID]:
    """Declares a flow that fails once, and says how to make a run of it that has."""
    failures: list[str] = []

    @flow("fails", on="a/b")
    def fails(step: Step) -> str:
        def fail_once() -> str:
            if not failures:
                failures.append("once")
                raise NonRetriableError("once")
            return "done"

        return step.run("try", fail_once)

    def stage() -> UUID:
        failures.clear()
        event_id = send("a/b")
        drain()
        run: UUID = Run.objects.get(event_id=event_id, state="failed").pk
        return run

    return stage


def _retried_once(run_id: UUID, _: Sequence[object]) -> str:
    run = Run.objects.get(pk=run_id)
    assert run.generation == 1, f"retried {run.generation} times"
    assert run.state == "completed"
    return "retried once"


def retry_against_retry() -> Scenario:
    def ask(run: UUID) -> None:
        retry(run)

    def ask_and_route(run: UUID) -> None:
        retry(run)
        route()

    return Scenario(
        stage=_failed_run(),
        actors=[("one", ask_and_route), ("other", ask)],
        holds=_retried_once,
        refuses=(IllegalTransition,),
        twins=[
            Twin(
                without="the check of the move when the command is carried out",
                patch=lambda: patch.object(admit, "check_move", lambda *_: None),
            ),
        ],
    )


def failure_against_router() -> Scenario:
    """A router notes that a command failed which another one carries out meanwhile."""
    failed_run = _failed_run()

    def stage() -> Routed:
        run = failed_run()
        retry(run)
        command = Event.objects.get(target=str(run)).pk
        return stored.by_id([command])[command]

    def fail(command: Routed) -> None:
        quarantine.count_failure(command, OSError("once"))
        quarantine.give_back([command])

    def holds(command: Routed, results: Sequence[object]) -> str:
        assert Event.objects.get(pk=command.id).error == "", "carried out, and once more"
        return _retried_once(UUID(command.target), results)

    return Scenario(
        stage=stage,
        actors=[("failing", fail), ("router", routing)],
        holds=holds,
        twins=[
            Twin(
                without="the condition that it is not routed yet",
                rewrite=cutting(" AND routed_at IS NULL", of="error = %(error)s"),
            ),
        ],
    )


RACES = [retry_against_retry, failure_against_router]
