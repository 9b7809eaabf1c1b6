"""Claims read their index from a floor on; nothing is left below it for long."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from durable_flows import Step, flow
from durable_flows.engine import claim as claims
from durable_flows.engine import execute, floors, ring
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.engine.tick import tick, turn_by_hand
from durable_flows.models import Due, Floor, Run, Tick
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
