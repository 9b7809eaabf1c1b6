"""A strict run that code which does not fit parks, while newer code is there that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from durable_flows import Step, cancel, flow
from durable_flows.engine import ring, suspend, versions
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.engine.tick import unpark_known
from durable_flows.errors import RunHasEnded
from durable_flows.models import Run
from durable_flows.models import Step as StepRow
from durable_flows.registry import Registry, registry
from durable_flows.rules import clock
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, slice_of, work

_code = ContextVar("code", default=registry)  # what the process of this actor has


class _OfTheProcess:
    """The registry, where the actors are of several processes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_code.get(), name)


@contextmanager
def _processes() -> Iterator[None]:
    """Slices are executed by the code of their actor's process."""
    with (
        patch.object(versions, "registry", _OfTheProcess()),
        patch.object(suspend, "registry", _OfTheProcess()),
    ):
        yield


def _trips() -> Callable[[Claim], None]:
    """Declare a flow. Returns what executes a slice by older code, which does not fit."""

    def trip(step: Step) -> None:
        step.saga().run("book", str, "booked", undo=lambda result, _: f"{result} no more")
        step.sleep("rest", "1h")
        step.run("charge", str, "charged")

    def other(step: Step) -> None:
        step.run("reserve", str, "reserved")

    older = Registry()
    with registry.isolated():
        older.add(flow("trip", on="asked", strict=True)(other))
    flow("trip", on="asked", strict=True)(trip)

    def slice_of_the_older(run: Claim) -> None:
        token = _code.set(older)
        try:
            slice_of(run)
        finally:
            _code.reset(token)

    return slice_of_the_older


def _rested() -> Claim:
    """A run that has booked and rested, and that somebody has just claimed."""
    slice_of(claimed("asked"))
    clock.advance(timedelta(hours=2))
    (one,) = claim(ring.default_queue(), 1)
    return one


def _unpark_and_work(_: Claim) -> None:
    unpark_known()
    work()


def _stop(run: Claim) -> bool:
    """Returns whether it came before the run's end."""
    cancel(run.run_id, reason="enough")
    route()
    return Run.objects.filter(pk=run.run_id, reason="enough").exists()


def _as_was_asked(run: Claim, did: Sequence[object]) -> str:
    is_stopped = did[-1] is True
    state = Run.objects.get(pk=run.run_id).state
    steps = set(StepRow.objects.values_list("key", flat=True))
    assert state == ("cancelled" if is_stopped else "completed")
    assert ("book#undo" in steps) == is_stopped, "it was not undone, or for no reason"
    assert "reserve" not in steps, "a step of code that does not fit was executed"
    return f"{state}, charged" if "charge" in steps else state


def parking_against_unparking() -> Scenario:
    """A tick of the newer code comes before it is parked, meanwhile, or when it is."""
    slice_of_the_older = _trips()
    return Scenario(
        stage=_rested,
        actors=[("older", slice_of_the_older), ("tick", _unpark_and_work)],
        holds=_as_was_asked,
        meanwhile=_processes,
        outcomes=frozenset({"completed, charged"}),
        twins=[
            Twin(
                without="a note of the code that could not go on with it",
                rewrite=cutting(r"parked_by = %\(keeps\)s", f"parked_by = '{registry.digest}'"),
            ),
        ],
    )


def parking_against_cancel() -> Scenario:
    """It is cancelled before its slice, before it is parked, when it is, or when it goes on."""
    slice_of_the_older = _trips()
    return Scenario(
        stage=_rested,
        actors=[("older", slice_of_the_older), ("tick", _unpark_and_work), ("canceller", _stop)],
        holds=_as_was_asked,
        sampled=100,
        refuses=(RunHasEnded,),
        meanwhile=_processes,
        outcomes=frozenset({"cancelled"}),
        twins=[
            Twin(
                without="the condition that it is not being cancelled",
                rewrite=cutting(" AND state = 'running'", of="SET state = 'parked'"),
            ),
        ],
    )


def unparking_against_cancel() -> Scenario:
    """A tick has seen that it is parked, and is about to let it go on."""
    slice_of_the_older = _trips()

    def stage() -> Claim:
        run = _rested()
        slice_of_the_older(run)
        cancel(run.run_id)
        return run

    def obey(_: Claim) -> bool:
        route()
        return True

    return Scenario(
        stage=stage,
        actors=[("tick", lambda _: unpark_known()), ("router", obey)],
        holds=_as_was_asked,
        meanwhile=_processes,
        outcomes=frozenset({"cancelled"}),
        twins=[
            Twin(
                without="the condition that it is parked still",
                rewrite=cutting(r"d\.wake_at IS NULL AND ", of="WITH next AS MATERIALIZED"),
            ),
        ],
    )


RACES = [parking_against_unparking, parking_against_cancel, unparking_against_cancel]
