"""Claims and routers read their index from a floor on; nothing is left below it for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from durable_flows import Step, flow
from durable_flows.engine import claim as claims
from durable_flows.engine import deployments, execute, floors, ring, sql
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.engine.tick import tick, turn_by_hand
from durable_flows.models import Due, Floor, Run, Tick
from durable_flows.models import Event as Stored
from durable_flows.rules import clock
from durable_flows.testing import drain, run_of, send

pytestmark = pytest.mark.django_db

LITTLE = timedelta(seconds=5)


def floor() -> datetime:
    return Floor.objects.get(name=ring.default_queue()).moment


def tick_again() -> None:
    Tick.objects.all().delete()  # the interval is over
    tick()


def start_one() -> str:
    flow("any", on="a/b")(lambda step: step.sleep("rest", "1h"))
    event = send("a/b")
    route()
    return event


def test_the_tick_keeps_it_a_minute_below_the_oldest_that_is_due() -> None:
    start_one()
    oldest = clock.now() - timedelta(hours=3)
    Due.objects.update(wake_at=oldest)
    tick()
    assert floor() == oldest - floors.SLACK


def test_where_nothing_is_due_it_is_a_minute_below_now() -> None:
    start_one()
    drain()
    tick()
    assert abs(floor() - (clock.now() - floors.SLACK)) < LITTLE


def test_what_is_committed_late_below_it_is_found_by_the_next_tick() -> None:
    event = start_one()
    Floor.objects.create(name=ring.default_queue(), moment=clock.now() - floors.SLACK)
    Due.objects.update(wake_at=clock.now() - timedelta(minutes=10))
    assert claim(ring.default_queue(), 10) == []
    tick()
    assert execute.drain(ring.default_queue()) == 1
    assert run_of(event).activity == "waiting"


@pytest.mark.parametrize("find", [tick_again, turn_by_hand])
def test_a_clock_that_is_put_back_strands_nothing(find: object) -> None:
    clock.advance(timedelta(days=1))
    flow("ahead", on="a/ahead")(lambda step: step.sleep("rest", "1h"))
    send("a/ahead")
    drain()
    tick()
    clock.reset()
    Floor.objects.filter(name=floors.EVENTS).delete()  # its own test is below
    event = start_one()
    assert claim(ring.default_queue(), 10) == []
    find()  # type: ignore[operator]
    execute.drain(ring.default_queue())
    assert run_of(event).activity == "waiting"


def test_each_queue_has_its_own() -> None:
    flow("here", on="a/b")(lambda step: step.sleep("rest", "1h"))
    flow("there", on="a/b", queue="there")(lambda step: step.sleep("rest", "1h"))
    send("a/b")
    route()
    Due.objects.filter(queue="there").update(wake_at=clock.now() - timedelta(hours=1))
    tick()
    there = Floor.objects.get(name="there").moment
    assert floor() - there > timedelta(minutes=50)


# -- unrouted events -----------------------------------------------------------------------------


def floor_of_events() -> datetime:
    return Floor.objects.get(name=floors.EVENTS).moment


def deliver(event_id: str, moment: datetime) -> None:
    Stored.objects.filter(pk=event_id).update(deliver_at=moment)


def test_the_floor_of_events_is_a_minute_below_the_oldest_that_is_to_be_routed() -> None:
    oldest = clock.now() - timedelta(hours=3)
    deliver(send("a/b"), oldest)
    send("a/b")
    tick()
    assert floor_of_events() == oldest - floors.SLACK


@pytest.mark.parametrize("ahead", [False, True])
def test_where_no_event_is_to_be_routed_now_the_floor_is_a_minute_below_now(ahead: bool) -> None:
    if ahead:
        send("a/b", ts=clock.now() + timedelta(days=3))
    tick()
    assert abs(floor_of_events() - (clock.now() - floors.SLACK)) < LITTLE


@pytest.mark.parametrize("find", [tick_again, turn_by_hand])
def test_an_event_of_a_transaction_held_open_for_longer_than_a_minute_is_found_by_the_next_tick(
    find: Callable[[], object],
) -> None:
    flow("any", on="a/b")(lambda: "done")
    tick()
    event = send("a/b")
    deliver(event, clock.now() - timedelta(minutes=5))  # when it was inserted; visible now
    assert route().events == 0
    find()
    drain()
    assert run_of(event).result == "done"
    tick_again()
    assert abs(floor_of_events() - (clock.now() - floors.SLACK)) < LITTLE


def test_the_tick_that_finds_an_event_below_the_floor_rings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rung: list[str] = []
    monkeypatch.setattr(ring, "route", lambda: rung.append("route"))
    tick()
    assert rung == []
    deliver(send("a/b"), clock.now() - timedelta(minutes=5))
    rung.clear()
    tick_again()
    assert rung == ["route"]


@pytest.mark.parametrize("find", [tick_again, turn_by_hand])
def test_a_clock_that_is_put_back_strands_no_event(find: Callable[[], object]) -> None:
    flow("any", on="a/b")(lambda: "done")
    clock.advance(timedelta(days=1))
    tick()
    clock.reset()
    event = send("a/b")
    find()
    route()
    drain()
    assert run_of(event).result == "done"


def test_the_floor_of_events_is_that_of_no_queue() -> None:
    flow("any", on="a/b", queue="events")(lambda step: step.sleep("rest", "1h"))
    send("a/b")
    drain()
    tick()
    assert floors.EVENTS == ""
    assert set(Floor.objects.values_list("name", flat=True)) == {"", "events"}
    assert not Due.objects.filter(queue="").exists()


@pytest.mark.two_writers
@pytest.mark.parametrize("count", [1, 4])
def test_routers_read_their_index_between_floor_and_now(count: int, settings: Any) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "ROUTE_SHARDS": count}
    deployments.take_part()
    read: list[str] = []
    execute_as_is = sql.execute

    def explain(text: str, params: Any = None, **more: Any) -> list[Any]:
        if "e.routed_at IS NULL" in text and "ORDER BY e.deliver_at" in text:
            rows = execute_as_is(f"EXPLAIN {text}", params, **more)
            read.append("\n".join(row[0] for row in rows))
        return execute_as_is(text, params, **more)

    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    tick()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql, "execute", explain)
        route()
    assert len(read) == count
    for plan in read:
        assert "Index Scan using event_unrouted" in plan, plan
        assert "Sort" not in plan.split("InitPlan")[0], plan
        (condition,) = [line for line in plan.splitlines() if "Index Cond: ((deliver_at" in line]
        assert "deliver_at >" in condition, plan
        assert "deliver_at <=" in condition, plan


@pytest.mark.two_writers
def test_a_claim_is_one_scan_of_its_index_between_floor_and_now() -> None:
    @flow("any", on="a/b")
    def any_(step: Step) -> None:
        step.sleep("rest", "1h")

    send("a/b")
    route()
    assert Run.objects.exists()
    moment = clock.now()
    params: dict[str, Any] = {
        "queue": ring.default_queue(), "now": moment, "until": moment, "ever": floors.EVER,
        "most": 10, "suspects": True,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {claims._NEXT} SELECT * FROM next", params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert plan.count("due_next") == 1, plan
    assert "Sort" not in plan.split("CTE Scan")[0], plan
    (condition,) = [line for line in plan.splitlines() if "Index Cond" in line and "queue" in line]
    assert "wake_at >" in condition, plan
    assert "wake_at <=" in condition, plan
