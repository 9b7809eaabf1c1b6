"""A worker is thought dead, and another takes its run over, while the first one writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import Group

from durable_flows import Event, Step, flow
from durable_flows import models as tables
from durable_flows.engine import suspend
from durable_flows.engine.batch import Batch
from durable_flows.engine.history import Claim
from durable_flows.models import Run
from durable_flows.models import Step as Recorded
from durable_flows.rules import clock
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, lapse, slice_of, work

NO_FENCE = Twin(
    without="the lease in the condition of a write",
    rewrite=cutting(r" AND (d\.)?lease = %\(lease\)s| AND \w+\.lease = d\.lease", actor=0),
)
NO_SHARE = Twin(
    without="the row lock under which a slice writes", rewrite=cutting("FOR SHARE", actor=0)
)


def _is_late() -> bool:
    """Whether this is the worker that is thought dead."""
    return threading.current_thread().name == "actor-0"


@dataclass(slots=True)
class Stolen:
    """A run whose lease has ended though its worker lives; and who has called its step."""

    run: Claim
    calls: list[str] = field(default_factory=list)


def _staged(stolen: list[Stolen]) -> Callable[[], Stolen]:
    def stage() -> Stolen:
        Group.objects.all().delete()
        stolen[:] = [Stolen(claimed("a/b"))]
        lapse(stolen[0].run)
        return stolen[0]

    return stage


def _late(state: Stolen) -> None:
    slice_of(state.run)


def _once(state: Stolen, results: Sequence[Any]) -> str:
    """Whoever took the run over had it, with everything that was recorded before."""
    taken_over = bool(results[1])
    run = Run.objects.get(pk=state.run.run_id)
    assert run.state == "completed"
    assert run.lease == state.run.lease + taken_over, "who had taken it over lost it again"
    step = Recorded.objects.get(run=run)
    assert run.result == step.output, "two of one step: one recorded, another one returned"
    if step.lease == state.run.lease:
        assert len(state.calls) <= 1, "a recorded step was called again"
    return "taken over" if taken_over else "too late"


def steal_against_step() -> Scenario:
    stolen: list[Stolen] = []

    @flow("draws", on="a/b")
    def draws(step: Step) -> int:
        def draw() -> int:
            stolen[0].calls.append("draw")
            return len(stolen[0].calls)

        return step.run("draw", draw)

    return Scenario(
        stage=_staged(stolen),
        actors=[("late", _late), ("thief", work)],
        holds=_once,
        outcomes=frozenset({"taken over", "too late"}),
        twins=[NO_SHARE, NO_FENCE],
    )


def steal_against_atomic_step() -> Scenario:
    stolen: list[Stolen] = []

    @flow("pays", on="a/b")
    def pays(step: Step) -> int:
        def pay() -> int:
            stolen[0].calls.append("pay")
            return Group.objects.create(name=f"payment {len(stolen[0].calls)}").pk

        return step.run("pay", pay, atomic=True)

    def holds(state: Stolen, results: Sequence[Any]) -> str:
        assert Group.objects.count() == 1, f"paid {Group.objects.count()} times"
        return _once(state, results)

    return Scenario(
        stage=_staged(stolen),
        actors=[("late", _late), ("thief", work)],
        holds=holds,
        outcomes=frozenset({"taken over", "too late"}),
        twins=[
            NO_SHARE,
            NO_FENCE,
            Twin(
                without="fence and primary key of the step",
                rewrite=lambda number, text: NO_SHARE.rewrite(number, text).replace(  # type: ignore[misc]
                    "ON CONFLICT DO NOTHING RETURNING mark",
                    "ON CONFLICT (run_id, key) DO UPDATE SET seq = 1 RETURNING durable_flows_step.mark",
                ),
            ),
        ],
    )


def steal_against_sent_events() -> Scenario:
    stolen: list[Stolen] = []

    @flow("tells", on="a/b")
    def tells(step: Step) -> list[str]:
        return step.send_event("tell", Event("told"))

    def holds(state: Stolen, results: Sequence[Any]) -> str:
        told = tables.Event.objects.filter(name="told").count()
        assert told == 1, f"told {told} times"
        return _once(state, results)

    return Scenario(
        stage=_staged(stolen),
        actors=[("late", _late), ("thief", work)],
        holds=holds,
        outcomes=frozenset({"taken over", "too late"}),
        twins=[NO_SHARE, NO_FENCE],
    )


# -- the late worker puts the run away -----------------------------------------------------------


def _putting_away(put_away: Callable[[Claim], object], *twins: Twin) -> Scenario:
    """However the late worker puts the run away, who has taken it over goes on."""
    stolen: list[Stolen] = []

    @flow("goes", on="a/b")
    def goes(step: Step) -> str:
        if _is_late():
            step.sleep("rest", "1h")
        return step.run("go", lambda: "on")

    def holds(state: Stolen, results: Sequence[Any]) -> str:
        run = Run.objects.get(pk=state.run.run_id)
        if not results[1]:
            return "put away"
        rest = run.steps.filter(key="rest").first()
        if rest is not None:
            assert rest.lease == state.run.lease, "recorded under a lost lease"
            return "resting"
        assert run.state == "completed", "who had taken it over lost it again"
        assert run.lease == state.run.lease + 1, "who had taken it over lost it again"
        return "taken over"

    return Scenario(
        stage=_staged(stolen),
        actors=[("late", lambda state: put_away(state.run)), ("thief", work)],
        holds=holds,
        outcomes=frozenset({"taken over"}),
        twins=twins or [NO_FENCE],
    )


def steal_against_sleep() -> Scenario:
    return _putting_away(slice_of)


def steal_against_suspend() -> Scenario:
    return _putting_away(
        lambda run: suspend._suspend(run, suspend.Sleeping(clock.now() + timedelta(hours=1)))
    )


def steal_against_parking() -> Scenario:
    return _putting_away(suspend._park)


def steal_against_leaving_to_others() -> Scenario:
    return _putting_away(suspend._leave_to_others)


def steal_against_hand_back() -> Scenario:
    return _putting_away(lambda run: suspend._hand_back(run, suspend.HandedBack()))


def steal_against_give_back() -> Scenario:
    return _putting_away(lambda run: Batch([run]).close())


def steal_against_failure() -> Scenario:
    """The late worker's code fails between steps, and is to be tried again later."""
    stolen: list[Stolen] = []

    @flow("fails", on="a/b")
    def fails(step: Step) -> str:
        if _is_late():
            raise OSError("too late")
        return step.run("go", lambda: "on")

    def holds(state: Stolen, results: Sequence[Any]) -> str:
        run = Run.objects.get(pk=state.run.run_id)
        if run.attempts.exists():
            assert run.state == "started", "a failure under a lost lease was noted"
            return "failed"
        assert run.state == "completed"
        assert run.lease == state.run.lease + 1, "who had taken it over lost it again"
        return "taken over"

    return Scenario(
        stage=_staged(stolen),
        actors=[("late", _late), ("thief", work)],
        holds=holds,
        outcomes=frozenset({"taken over", "failed"}),
        twins=[NO_FENCE],
    )


RACES = [
    steal_against_step,
    steal_against_atomic_step,
    steal_against_sent_events,
    steal_against_sleep,
    steal_against_suspend,
    steal_against_parking,
    steal_against_leaving_to_others,
    steal_against_hand_back,
    steal_against_give_back,
    steal_against_failure,
]
