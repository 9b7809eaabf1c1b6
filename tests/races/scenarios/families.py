"""Runs that invoke others, and the ends of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from django.db import transaction

from durable_flows import InvokeError, NonRetriableError, Step, cancel, flow, retry
from durable_flows.engine import children, finish, ring
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Child, Claim
from durable_flows.engine.route import route
from durable_flows.flows import Flow
from durable_flows.models import Due, Event, Run, Wait
from durable_flows.rules import clock, events
from durable_flows.rules.states import RunState
from tests.races.company import unseen
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, lapse, routing, slice_of, work


def _parent(child: Flow | str, **options: Any) -> None:
    @flow("parent", on="a/b")
    def parent(step: Step) -> str:
        try:
            return str(step.invoke("call", child, **options))
        except InvokeError as error:
            return error.state


def _child() -> Flow:
    @flow("child")
    def child() -> str:
        return "done"

    return child


@dataclass(frozen=True, slots=True)
class Family:
    """A parent and a child, each in the hands of a worker."""

    parent: Claim
    child: Claim


def _heard(*, of: Callable[[Any], Claim] = lambda state: state) -> Callable[[Any, Any], str]:
    def holds(state: Any, _: Sequence[object]) -> str:
        parent = Run.objects.get(pk=of(state).run_id)
        assert parent.result == '"done"', "the end of the child is lost"
        assert Wait.objects.get().outcome == "completed"
        return "heard"

    return holds


NO_TELLING = Twin(
    without="a word of the end to whoever waits",
    patch=lambda: patch.object(finish, "_tell", lambda _: None),
)
NO_LOOK = Twin(
    without="the look at a joined child after the wait's commit",
    patch=lambda: patch.object(children, "look", lambda _, child: child),
)


def invoke_against_the_childs_end() -> Scenario:
    """A router and a worker are so quick that the child ends before its parent suspends."""
    _parent(_child())

    def others(_: Claim) -> None:
        for _turn in range(2):
            route()
            work()

    return Scenario(
        stage=lambda: claimed("a/b"),
        actors=[("parent", slice_of), ("others", others)],
        holds=_heard(),
        twins=[NO_TELLING],
    )


def joining_a_child_against_its_end() -> Scenario:
    child = _child()
    _parent(child, key="k")

    def stage() -> Family:
        child.start(key="k")
        route()
        (its,) = claim(ring.default_queue(), 1)
        return Family(claimed("a/b"), its)

    def end(family: Family) -> None:
        slice_of(family.child)
        route()

    return Scenario(
        stage=stage,
        actors=[("parent", lambda family: slice_of(family.parent)), ("child", end)],
        holds=_heard(of=lambda family: family.parent),
        twins=[NO_LOOK, NO_TELLING],
    )


def _waiting() -> Family:
    """A parent that waits, and its child, which somebody has in hand."""
    parent = claimed("a/b")
    slice_of(parent)
    route()
    (child,) = claim(ring.default_queue(), 1)
    return Family(parent, child)


def end_against_timeout_against_cancel() -> Scenario:
    """The child ended in time, by a transaction that commits when the time is over."""
    _parent(_child(), timeout="1h")

    def end(family: Family) -> None:
        run = family.child
        with transaction.atomic():
            with unseen():
                finish.end(
                    [
                        finish.Ending(
                            run_id=run.run_id,
                            lease=run.lease,
                            state=RunState.COMPLETED,
                            result='"done"',
                        )
                    ]
                )
            clock.advance(timedelta(hours=2))
        route()

    def stop(family: Family) -> None:
        cancel(family.parent.run_id)
        route()

    def holds(family: Family, _: Sequence[object]) -> str:
        parent, wait = Run.objects.get(pk=family.parent.run_id), Wait.objects.get()
        if parent.state == "cancelled":
            return "cancel"
        told = {"completed": '"done"', "timeout": '"timeout"'}.get(wait.outcome)
        assert parent.result == told, f"{parent.result} is the result of {wait.outcome!r}"
        return wait.outcome

    return Scenario(
        stage=_waiting,
        actors=[("child", end), ("parent", work), ("canceller", stop)],
        holds=holds,
        outcomes=frozenset({"completed", "timeout", "cancel"}),
        sampled=1_500,
        twins=[
            Twin(
                without="one conditional UPDATE that ends a wait",
                rewrite=cutting(
                    r" AND durable_flows_wait\.settled_at IS NULL", of="SET settled_at"
                ),
            ),
        ],
    )


def end_of_parent_against_end_of_child() -> Scenario:
    """The parent is told to stop while its child ends."""
    _parent(_child())

    def stage() -> Family:
        family = _waiting()
        cancel(family.parent.run_id)
        return family

    def holds(family: Family, _: Sequence[object]) -> str:
        assert Run.objects.get(pk=family.parent.run_id).state == "cancelled"
        return Run.objects.get(pk=family.child.run_id).state

    def tell_directly(run_ids: Sequence[Any]) -> None:
        waits = Wait.objects.filter(match__in=run_ids, kind="child").values("run")
        list(Due.objects.filter(pk__in=waits).select_for_update())

    def cancel_directly(run_ids: Sequence[Any], _: object) -> None:
        awaited = Wait.objects.filter(run__in=run_ids, kind="child").values("match")
        list(Due.objects.filter(pk__in=awaited).select_for_update())

    return Scenario(
        stage=stage,
        actors=[("child", lambda family: slice_of(family.child)), ("router", routing)],
        holds=holds,
        outcomes=frozenset({"completed"}),
        twins=[
            Twin(
                without="words to the router in the place of locks on each other's due rows",
                patch=lambda: patch.multiple(
                    finish, _tell=tell_directly, _cancel_children=cancel_directly
                ),
            ),
        ],
    )


def invoke_against_cancel() -> Scenario:
    @flow("child")
    def child(step: Step) -> None:
        step.sleep("rest", "1h")

    _parent(child)

    def stage() -> Claim:
        parent = claimed("a/b")
        cancel(parent.run_id)
        return parent

    def holds(parent: Claim, _: Sequence[object]) -> str:
        run = Run.objects.get(pk=parent.run_id)
        assert run.state == "cancelled"
        asked = Event.objects.filter(name=events.INVOKE).count()
        children_ = list(Run.objects.filter(parent=run).values_list("state", flat=True))
        assert children_ == ["cancelled"] * asked, (
            f"the parent was cancelled, its child {children_}"
        )
        return "asked" if asked else "not asked"

    return Scenario(
        stage=stage,
        actors=[("parent", slice_of), ("router", routing)],
        holds=holds,
        outcomes=frozenset({"asked", "not asked"}),
        sampled=300,
        twins=[
            Twin(
                without="a cancel for the children",
                patch=lambda: patch.object(finish, "_cancel_children", lambda *_: None),
            ),
        ],
    )


def steal_against_invoke() -> Scenario:
    _parent(_child())

    def stage() -> Claim:
        parent = claimed("a/b")
        lapse(parent)
        return parent

    def holds(parent: Claim, results: Sequence[Any]) -> str:
        asked = Event.objects.filter(name=events.INVOKE).count()
        assert asked == 1, f"asked for {asked} children"
        _heard()(parent, results)
        return "taken over" if results[1] else "too late"

    fence = cutting(r" AND lease = %\(lease\)s", of="SELECT state FROM", actor=0)

    return Scenario(
        stage=stage,
        actors=[("late", slice_of), ("thief", work)],
        holds=holds,
        outcomes=frozenset({"taken over", "too late"}),
        twins=[
            Twin(
                without="fence and primary key of the wait",
                rewrite=lambda number, text: (
                    fence(number, text).replace(
                        "ON CONFLICT DO NOTHING RETURNING id",
                        "ON CONFLICT (id) DO UPDATE SET match = EXCLUDED.match "
                        "RETURNING durable_flows_wait.id",
                    )
                    if "INTO durable_flows_wait" in text or "SELECT state" in text
                    else text
                ),
            ),
        ],
    )


def retry_of_a_child_against_its_parent() -> Scenario:
    """A child had failed, and was retried before its parent could look at it."""
    broken: list[bool] = []

    @flow("child", retries=0, queue="children")
    def child() -> str:
        if broken:
            raise NonRetriableError("no")
        return "done"

    _parent(child)

    def stage() -> Claim:
        broken[:] = [True]
        parent = claimed("a/b")
        slice_of(parent)
        route()
        for run in claim("children", 1):
            slice_of(run)
        route()
        broken.clear()
        retry(Run.objects.get(flow="child").pk)
        route()
        return parent

    def mend(_: Claim) -> None:
        for run in claim("children", 1):
            slice_of(run)
        route()

    def holds(parent: Claim, _: Sequence[object]) -> str:
        run = Run.objects.get(pk=parent.run_id)
        assert run.result == '"done"', "it waits for a child that has ended"
        return "waited on"

    def no_second_look(lease: Claim, wait: Child) -> Child:
        found = children._read(wait)
        if found.outcome and not found.is_over:
            children._settle(lease, found, None)
            return replace(found, outcome="")
        return found

    return Scenario(
        stage=stage,
        actors=[("parent", work), ("others", mend)],
        holds=holds,
        sampled=300,
        twins=[
            Twin(
                without="the look at a child after its wait was opened again",
                patch=lambda: patch.object(children, "look", no_second_look),
            ),
        ],
    )


RACES = [
    invoke_against_the_childs_end,
    joining_a_child_against_its_end,
    end_against_timeout_against_cancel,
    end_of_parent_against_end_of_child,
    invoke_against_cancel,
    steal_against_invoke,
    retry_of_a_child_against_its_parent,
]
