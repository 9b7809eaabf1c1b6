"""The thread that keeps a worker's leases alive, whatever the worker's slots are busy with."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings

from durable_flows import Event, Step, flow, signals
from durable_flows.engine import execute, leases, ring, sql, watch
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.engine.stop import stopping
from durable_flows.models import Due
from durable_flows.models import Event as Stored
from durable_flows.testing import drain, run_of, send

PATIENCE = 20  # real seconds, after which a test gives up
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process whose heartbeat thread is quick."""
    monkeypatch.setattr(leases, "LOOK", 0.01)
    monkeypatch.setattr(watch, "OLD", 0.02)
    watch.keep_watch()
    yield
    leases.watch(None)
    until(lambda: not leases.is_watched())


def until(happened: Callable[[], bool]) -> bool:
    """Let other threads go on until something has happened. Returns whether it has."""
    end = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < end:
        threading.Event().wait(0.005)
    return happened()


@pytest.mark.usefixtures("watched")
@pytest.mark.django_db(transaction=True)
def test_a_worker_whose_runs_are_fast_opens_no_second_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "OLD", PATIENCE)  # fast is what a busy machine takes for a step, too
    threads: set[int] = set()
    looks: list[bool] = []

    def observe(text: str) -> None:
        threads.add(threading.get_ident())
        looks.append(leases.is_watched())

    flow("fast", on="a/b")(lambda step: step.run("x", lambda: None))
    sql.observers.append(observe)
    try:
        for _ in range(20):
            send("a/b")
        drain()
    finally:
        sql.observers.remove(observe)
    assert any(looks)
    assert threads == {threading.get_ident()}


@pytest.mark.two_writers
@pytest.mark.usefixtures("watched")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("told_to_stop", [False, True])
@override_settings(DURABLE_FLOWS={"RING": "off", "HEARTBEAT_SECONDS": 0.02})
def test_the_lease_of_a_long_step_is_renewed_until_it_ends(told_to_stop: bool) -> None:
    def take_long() -> bool:
        if told_to_stop:
            stopping.set()
        end = Due.objects.get().wake_at
        return until(lambda: Due.objects.filter(wake_at__gt=end).exists())

    flow("long", on="a/b")(lambda step: step.run("x", take_long))
    event = send("a/b")
    try:
        drain()
    finally:
        stopping.clear()
    assert run_of(event).step("x").output is True


@pytest.mark.two_writers
@pytest.mark.usefixtures("watched")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["run_started", "step_finished", "event_received"])
@override_settings(DURABLE_FLOWS={"RING": "off", "HEARTBEAT_SECONDS": 0.02})
def test_the_lease_is_renewed_while_an_observer_takes_long(name: str) -> None:
    renewed: list[bool] = []

    def take_long(**_: Any) -> None:
        due = Due.objects.first()
        if due is not None:  # not of the event that starts it all
            end = due.wake_at
            renewed.append(until(lambda: Due.objects.filter(wake_at__gt=end).exists()))

    @flow("observed", on="a/b")
    def observed(step: Step) -> None:
        step.send_event("x", Event("a/c"))

    signal = getattr(signals, name)
    signal.connect(take_long)
    try:
        event = send("a/b")
        drain()
    finally:
        signal.disconnect(take_long)
    assert renewed == [True]
    assert run_of(event).state == "completed"


@pytest.mark.two_writers
@pytest.mark.usefixtures("watched")
@pytest.mark.django_db(transaction=True)
def test_events_are_routed_though_the_only_slot_sits_in_a_long_step() -> None:
    rung: list[str] = []

    def take_long() -> bool:
        other = send("a/other")
        return until(lambda: Stored.objects.filter(pk=other, routed_at__isnull=False).exists())

    flow("long", on="a/b")(lambda step: step.run("x", take_long))
    flow("other", on="a/other", queue="elsewhere")(lambda: "done")
    event = send("a/b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "drain", rung.append)
        drain_without_routing()
    assert run_of(event).step("x").output is True
    assert "elsewhere" in rung


def drain_without_routing() -> None:
    """A worker whose only slot drains: nobody takes the bell for the event."""
    route()
    execute.drain(ring.default_queue())


@pytest.mark.django_db
def test_how_long_a_lease_still_holds_is_known_without_asking() -> None:
    flow("any", on="a/b")(lambda: None)
    send("a/b")
    route()
    (claimed,) = claim(ring.default_queue(), 1)
    lease = claimed.lease
    assert 29 < leases.left(claimed.run_id, lease) <= 30
    assert leases.left(claimed.run_id, lease + 1) == 0
    leases.release(claimed.run_id, lease)
    assert leases.left(claimed.run_id, lease) == 0


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, time
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
settings.DURABLE_FLOWS = {"RING": "off", "HEARTBEAT_SECONDS": 0.02}
import django
django.setup()
from durable_flows import flow
from durable_flows.engine import leases, sql, watch
from durable_flows.testing import drain, run_of, send

leases.LOOK = 0.01
renewals = []

def busy():
    sql.observers.append(lambda text: renewals.append(1) if "WITH renewed" in text else None)
    end = time.monotonic() + 20
    while len(renewals) < 3 and time.monotonic() < end:
        pass  # never yields: no other greenlet of this thread runs
    return len(renewals)

flow("busy", on="a/b")(lambda step: step.run("x", busy))
watch.keep_watch()
event = send("a/b")
drain()
print("renewals:", run_of(event).step("x").output)
"""


@pytest.mark.two_writers
@pytest.mark.processes
@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
@pytest.mark.django_db(transaction=True)
def test_leases_are_renewed_beside_a_greenlet_that_never_yields() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREENLETS, connection.settings_dict["NAME"]],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "renewals: 3" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.two_writers
@pytest.mark.usefixtures("watched")
@pytest.mark.django_db(transaction=True)
@override_settings(DURABLE_FLOWS={"RING": "off", "HEARTBEAT_SECONDS": 0.02})
def test_leases_are_renewed_though_a_neighbours_row_is_locked() -> None:
    def take_long() -> bool:
        neighbour = Due.objects.exclude(run__event_id=event)
        with transaction.atomic():  # somebody who is slow, or was stopped, with the row in hand
            list(neighbour.select_for_update())
            assert until(lambda: bool(sql.execute("SELECT 1 FROM pg_locks WHERE NOT granted")))
            end = Due.objects.get(run__event_id=event).wake_at
            renewed = Due.objects.filter(run__event_id=event, wake_at__gt=end)
            return until(renewed.exists)

    flow("long", on="a/b")(lambda step: step.run("x", take_long))
    flow("neighbour", on="a/other")(lambda: "done")
    event, other = send("a/b"), send("a/other")
    drain()
    assert run_of(event).step("x").output is True
    assert run_of(other).result == "done"
