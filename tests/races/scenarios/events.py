"""Senders of one id, and routers that route the same events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch
from uuid import UUID

from django.db import transaction

from durable_flows import CancelOn, On, Step, flow
from durable_flows.engine import lookback, quarantine, route, take
from durable_flows.engine.hand import Routing
from durable_flows.engine.shards import Shard, number_of
from durable_flows.models import Admission, Due, Event, EventMatch, Run
from durable_flows.testing import send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import routing

NO_ROUTER_LOCK = Twin(
    without="the lock of the one router",
    rewrite=cutting(r"pg_(try_)?advisory_xact_lock\(%\(kind\)s, %\(number\)s\)", "true"),
)


def duplicate_send() -> Scenario:
    flow("quick", on="a/b")(lambda: None)

    def send_it(_: None) -> str:
        with transaction.atomic():
            return send("a/b", id="the same")

    def holds(_: None, ids: Sequence[Any]) -> str:
        (event,) = Event.objects.all()
        assert set(ids) == {str(event.pk)}, "a public id of nothing"
        assert Run.objects.get().state == "completed"
        return "one"

    return Scenario(
        stage=lambda: None,
        actors=[("one", send_it), ("other", send_it)],
        holds=holds,
        twins=[
            Twin(
                without="the conflict clause of the key",
                rewrite=cutting("ON CONFLICT DO NOTHING", of="INTO durable_flows_eventkey"),
            ),
        ],
    )


def _only_the_newest(events: list[UUID], _: Sequence[object]) -> str:
    assert Run.objects.count() == 2, "not one run an event"
    states = [Run.objects.get(event_id=event).state for event in events]
    assert states == ["cancelled", "started"], f"the older {states[0]}, the newer {states[1]}"
    assert Due.objects.count() == 1
    for match in EventMatch.objects.select_related("event"):
        assert match.routed == match.event.routed, "numbered twice"
    return "newest"


def router_against_router() -> Scenario:
    """Each event cancels the run of the one before: only the newest run is left."""

    @flow("newest", on="a/b", cancel_on=CancelOn("a/b"))
    def newest(step: Step) -> None:
        step.sleep("rest", "1h")

    flow("never", on=On("a/b", if_="event.data.is.missing"))(lambda: None)

    def holds(events: list[UUID], results: Sequence[object]) -> str:
        assert Admission.objects.count() == 2, "not noted, or twice"
        return _only_the_newest(events, results)

    return Scenario(
        stage=lambda: [UUID(send("a/b")) for _ in range(2)],
        actors=[("one", routing), ("other", routing)],
        holds=holds,
        sampled=300,
        twins=[NO_ROUTER_LOCK],
    )


def _two_shards(names: Sequence[str], *twins: Twin) -> Scenario:
    def router(index: int) -> Callable[[object], None]:
        return lambda _: route._route_shard(Shard(index, 2), Routing())

    return Scenario(
        stage=lambda: [UUID(send(name)) for name in names],
        actors=[("first", router(0)), ("second", router(1))],
        holds=_only_the_newest,
        sampled=300,
        twins=[
            *twins,
            Twin(
                without="a look back for what cancels a run, once it is there",
                patch=lambda: patch.object(lookback, "for_cancels", lambda *_: []),
            ),
        ],
    )


def routers_of_two_shards() -> Scenario:
    """The older event and the newer one, which cancels its run, are routed by two routers at once."""
    names = [_name_in(shard) for shard in range(2)]

    @flow("newest", on=names, cancel_on=[CancelOn(name) for name in names])
    def newest(step: Step) -> None:
        step.sleep("rest", "1h")

    return _two_shards(names)


def rule_against_event_of_another_shard() -> Scenario:
    """The rule's own signature is the first of its event's name: the other router may not know it."""
    names = [_name_in(shard) for shard in range(2)]

    @flow("older", on=names[0], cancel_on=CancelOn(names[1]))
    def older(step: Step) -> None:
        step.sleep("rest", "1h")

    @flow("newer", on=names[1])
    def newer(step: Step) -> None:
        step.sleep("rest", "1h")

    return _two_shards(
        names,
        Twin(
            without="matches by signatures that another router could not know",
            patch=lambda: patch.object(take, "backfill", lambda _: None),
        ),
    )


def _name_in(shard: int) -> str:
    names = (f"a/{number}" for number in range(1_000))
    return next(name for name in names if number_of(name) % 2 == shard)


def reroute_against_router() -> Scenario:
    """Somebody lets an event be routed again that was set aside; routers are at work."""
    flow("quick", on="a/b")(lambda: None)

    def stage() -> UUID:
        event = UUID(send("a/b"))
        Event.objects.update(attempts=quarantine.MOST_FAILURES + 1)
        return event

    def holds(event: UUID, again: Sequence[Any]) -> str:
        found = Event.objects.get(pk=event)
        if not again[0]:
            assert found.quarantined
            assert not Run.objects.exists()
            return "set aside"
        assert not found.quarantined, "nobody routes it, and nobody can see why"
        assert Run.objects.get().state == "completed"
        return "routed again"

    return Scenario(
        stage=stage,
        actors=[("person", lambda event: quarantine.reroute([event])), ("router", routing)],
        holds=holds,
        outcomes=frozenset({"set aside", "routed again"}),
        twins=[
            Twin(
                without="the condition that it is in quarantine",
                rewrite=cutting(" AND quarantined"),
            ),
        ],
    )


RACES = [
    duplicate_send,
    router_against_router,
    routers_of_two_shards,
    rule_against_event_of_another_shard,
    reroute_against_router,
]
