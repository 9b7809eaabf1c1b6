"""Several wait for a signal of one name, and somebody sends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

from django.db import connection

from durable_flows import Step, flow, send_signal
from durable_flows.engine import settle
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Claim
from durable_flows.engine.ring import default_queue
from durable_flows.models import Due, Event, Run, Wait
from durable_flows.rules import clock
from durable_flows.rules.events import SIGNALLED
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import admitted, routing, slice_of, work


def _asks() -> None:
    @flow("asks", on="asked")
    def asks(step: Step) -> str:
        found = step.wait_for_signal("door", "door", timeout="1h")
        return "timeout" if found is None else "got it"


def _two_claims() -> list[Claim]:
    for _ in range(2):
        admitted("asked")
    return claim(default_queue(), 2)


def _slices(number: int) -> tuple[str, object]:
    return f"slice {number + 1}", lambda runs: slice_of(runs[number])


def waiter_against_waiter() -> Scenario:
    """Of two who want the same name at once one gets it, and the other is told."""
    _asks()

    def holds(runs: Sequence[Claim], _: Sequence[object]) -> str:
        waiting = Wait.objects.filter(settled_at=None).count()
        refused = Run.objects.filter(error__contains="SignalTaken").count()
        assert (waiting, refused) == (1, 1), f"{waiting} wait, {refused} were refused"
        return str(Wait.objects.get().run_id == runs[0].run_id)

    return Scenario(
        stage=_two_claims,
        actors=[_slices(0), _slices(1)],  # type: ignore[list-item]
        holds=holds,
        outcomes=frozenset({"True", "False"}),
        twins=[Twin(without="one waiter a name, by an index", patch=_without_index)],
    )


@contextmanager
def _without_index() -> Iterator[None]:
    name = "wait_signal_taken"
    (constraint,) = (one for one in Wait._meta.constraints if one.name == name)
    with connection.schema_editor() as editor:
        editor.remove_constraint(Wait, constraint)
    try:
        yield
    finally:
        Wait.objects.all().delete()
        with connection.schema_editor() as editor:
            editor.add_constraint(Wait, constraint)


def one_signal_for_two() -> Scenario:
    """The first gets it and ends, so that the name is free; the second must not get it again."""
    _asks()

    def stage() -> list[Claim]:
        runs = _two_claims()
        send_signal("door")
        return runs

    def holds(_: Sequence[Claim], __: Sequence[object]) -> str:
        got = Wait.objects.filter(event__isnull=False).count()
        assert got == 1, f"{got} have got it"
        assert Run.objects.filter(result='"got it"').count() == 1
        return Run.objects.exclude(result='"got it"').get().state

    return Scenario(
        stage=stage,
        actors=[_slices(0), _slices(1), ("router", routing)],  # type: ignore[list-item]
        holds=holds,
        outcomes=frozenset({"started", "failed"}),
        sampled=1_500,
        twins=[
            Twin(
                without="a look at whether another run has got it",
                rewrite=cutting(_TAKEN, of="UPDATE durable_flows_wait"),
            ),
        ],
    )


def newcomer_against_holder_whose_time_is_over() -> Scenario:
    """Both end the wait, by the signal that came in time: the newcomer then has the name, and no signal."""
    _asks()

    def stage() -> list[Claim]:
        runs = _two_claims()
        slice_of(runs[0])
        send_signal("door")
        over = clock.now() - timedelta(minutes=1)
        Wait.objects.update(expires_at=over)
        Event.objects.filter(name=SIGNALLED).update(deliver_at=over)
        Due.objects.filter(pk=runs[0].run_id).update(wake_at=clock.now())
        return runs

    def holds(runs: Sequence[Claim], _: Sequence[object]) -> str:
        first, second = (Run.objects.get(pk=run.run_id) for run in runs)
        assert first.result == '"got it"', f"{first.result} for a signal that came in time"
        assert second.state == "started", f"the other is {second.state}: {second.reason}"
        return str(Wait.objects.filter(run=second).count())

    return Scenario(
        stage=stage,
        actors=[("holder", work), _slices(1), ("router", routing)],  # type: ignore[list-item]
        holds=holds,
        sampled=300,
        outcomes=frozenset(
            {"0", "1"}
        ),  # 0: it has to look again, since the signal is to be routed first
        twins=[
            Twin(
                without="a look at what is not routed yet, before a timeout",
                patch=lambda: patch.object(settle, "_unrouted_in_time", lambda _: False),
            ),
            Twin(
                without="one conditional UPDATE that ends a wait",
                rewrite=cutting(
                    r" AND durable_flows_wait\.settled_at IS NULL", of="SET settled_at"
                ),
            ),
        ],
    )


_TAKEN = r"AND NOT EXISTS \(SELECT 1 FROM durable_flows_wait taken [^)]*\)"

RACES = [waiter_against_waiter, one_signal_for_two, newcomer_against_holder_whose_time_is_over]
