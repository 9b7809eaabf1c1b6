"""Transactions that stay open for a minute hold up nobody else's routing, heartbeat or claim."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from django.db import connection

from durable_flows import CancelOn, Step, cancel, conf, flow, rerun
from durable_flows.engine import execute, leases, ring
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.engine.tick import tick
from durable_flows.models import Due, Run
from durable_flows.rules import clock
from durable_flows.testing import drain, run_of, send
from tests.engine.test_two_writers import PATIENCE, elsewhere, held_open

pytestmark = [pytest.mark.two_writers, pytest.mark.django_db(transaction=True)]

LEASE = timedelta(seconds=conf.DEFAULTS.LEASE_SECONDS)


@contextmanager
def waiting_for_nobody() -> Iterator[None]:
    """Whoever would wait for a lock on this connection fails."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '100ms'")
        yield
        cursor.execute("RESET lock_timeout")


def end_of_lease(run_id: str) -> datetime:
    moment = Due.objects.get(pk=UUID(run_id)).wake_at
    assert moment is not None
    return moment


def test_a_view_that_holds_a_cancel_and_a_start_for_a_minute_holds_up_nobody() -> None:
    @flow("rests", on="a/b", cancel_on=CancelOn("a/stop", match="data.n"))
    def rests(step: Step) -> None:
        step.sleep("rest", "30s")

    flow("quick", on="a/quick")(lambda: "done")
    resting, stopped = send("a/b", {"n": 1}), send("a/b", {"n": 2})
    ended = send("a/quick")
    drain()
    claimed_by_us = send("a/quick")
    route()
    (executing,) = claim(ring.default_queue(), 1)
    started: list[str] = []

    def view() -> None:
        for run in (run_of(resting), run_of(stopped), run_of(claimed_by_us)):
            cancel(run.id)
        started.append(rests.start({"n": 3}, key="mine"))
        rerun(run_of(ended).id)

    with held_open(view), waiting_for_nobody():
        before = end_of_lease(str(executing.run_id))
        clock.advance(timedelta(seconds=20))
        leases.renew()
        assert end_of_lease(str(executing.run_id)) >= before + timedelta(seconds=20)
        leases.release(executing.run_id, executing.lease)

        other = rests.start({"n": 4}, key="another's")
        send("a/stop", {"n": 2})  # routed: it ends a run that the view wants to cancel too
        assert tick()
        drain()
        assert run_of(other).activity == "waiting"
        assert run_of(stopped).state == "cancelled"

        clock.advance(timedelta(seconds=40))
        drain()  # what the view wants to cancel is claimed, and ends
        assert run_of(resting).state == "completed"
        assert run_of(claimed_by_us).state == "completed"
        assert run_of(other).state == "completed"
    assert Run.objects.filter(pk=started[0]).count() == 0
    drain()
    assert run_of(started[0]).activity == "waiting"
    assert Run.objects.filter(flow="quick", state="completed").count() == 3
    assert run_of(resting).state == "completed"  # it was faster than the view's commit


def test_an_atomic_step_of_three_leases_beside_a_broadcast_holds_up_nobody() -> None:
    working, go_on = threading.Event(), threading.Event()

    def work() -> None:
        Group.objects.create(name="made")
        working.set()
        assert go_on.wait(PATIENCE)

    @flow("long", on="a/long", cancel_on=CancelOn("a/everybody"))
    def long(step: Step) -> None:
        step.run("work", work, atomic=True)
        step.run("more", lambda: None)

    @flow("listener", on="a/listen")
    def listener(step: Step) -> bool:
        return step.wait_for_event("call", event="a/everybody", timeout="1h") is not None

    for _ in range(300):
        send("a/listen")
    drain()
    assert Due.objects.filter(state="waiting").count() == 300
    slow = send("a/long")
    route()
    with elsewhere() as submit:
        slice_ = submit(lambda: execute.drain(ring.default_queue()))
        try:
            assert working.wait(PATIENCE)
            with waiting_for_nobody():
                run = run_of(slow)
                for _ in range(3):
                    before = end_of_lease(run.id)
                    clock.advance(LEASE - timedelta(seconds=1))
                    leases.renew()
                    assert end_of_lease(run.id) >= before + LEASE - timedelta(seconds=1)
                    assert claim(ring.default_queue(), 10) == []
                send("a/everybody")
                drain()
                assert Run.objects.filter(flow="listener", state="completed").count() == 300
                assert run_of(slow).activity == "cancelling"
                leases.renew()
            assert Group.objects.count() == 0
        finally:
            go_on.set()
        slice_.result(PATIENCE)
    assert run_of(slow).state == "cancelled"
    assert run_of(slow).step_keys == ["work"]
    assert Group.objects.count() == 1
