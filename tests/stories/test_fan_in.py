"""Three events, three runs, one shipment; and why the run claims the parcel, not asks about it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pytest
from django.db import connection

from durable_flows import Event, Step, flow
from durable_flows.engine.route import route
from durable_flows.testing import crash_after, drain, run_of, runs_of, send, sent
from example_project.fan_in.flows import claim
from example_project.fan_in.models import Parcel, Shipment
from tests.promises.staging import execute_due

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]

READY = ("paid", "packed", "addressed")


def ready_at_once() -> Parcel:
    """A parcel whose three events are there before any of their runs is executed."""
    parcel = Parcel.objects.create()
    for what in READY:
        parcel.note(what)
    return parcel


def box_ready_at_once() -> list[str]:
    """The same, with events that the app's own flow does not listen to."""
    parcel = Parcel.objects.create(paid=True, packed=True, addressed=True)
    return [send(f"box/{what}", {"parcel_id": parcel.pk}) for what in READY]


def results() -> list[Any]:
    events = [event for what in READY for event in sent(f"parcel/{what}")]
    return [run.result for event in events for run in runs_of(event.public_id, "ship-parcel")]


@pytest.mark.parametrize("order", list(permutations(READY)))
def test_a_parcel_leaves_with_the_last_of_its_events(order: tuple[str, ...]) -> None:
    parcel = Parcel.objects.create()
    for what in order:
        assert not Shipment.objects.exists()
        parcel.note(what)
        drain()
    assert parcel.shipments.count() == 1
    assert len(sent("parcel/shipped")) == 1


def test_a_parcel_that_is_ready_at_once_leaves_once() -> None:
    ready_at_once()
    drain()
    assert sorted(results()) == ["not yet, or not by me"] * 2 + ["shipped"]
    assert Shipment.objects.count() == 1


def test_runs_that_only_ask_whether_all_is_ready_ship_three_times() -> None:
    @flow("ship-carelessly", on=[f"box/{what}" for what in READY])
    def ship_carelessly(event: Event, step: Step) -> None:
        parcel_id = event.data["parcel_id"]
        if step.run("is-ready", is_ready, parcel_id):
            step.run("ship", lambda: Shipment.objects.create(parcel_id=parcel_id).pk, atomic=True)

    def is_ready(parcel_id: int) -> bool:
        return Parcel.objects.filter(pk=parcel_id, paid=True, packed=True, addressed=True).exists()

    box_ready_at_once()
    drain()
    assert Shipment.objects.count() == 3


def test_a_worker_that_dies_at_the_claim_has_not_lost_the_parcel() -> None:
    ready_at_once()
    with crash_after("claim", recorded=False) as crash:
        drain()
    assert crash.happened
    drain()
    assert sorted(results()) == ["not yet, or not by me"] * 2 + ["shipped"]


def test_a_claim_that_is_no_atomic_step_is_lost_with_its_worker() -> None:
    @flow("claim-carelessly", on=[f"box/{what}" for what in READY])
    def claim_carelessly(event: Event, step: Step) -> Any:
        return step.run("claim", claim, event.data["parcel_id"])

    events = box_ready_at_once()
    with crash_after("claim", recorded=False) as crash:
        drain()
    assert crash.happened
    drain()
    # It is claimed, and nobody knows by whom.
    assert [run_of(event).result for event in events] == [False, False, False]


@pytest.mark.two_writers
@pytest.mark.django_db(transaction=True)
def test_of_runs_that_claim_in_the_same_moment_one_succeeds(settings: Any) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "CLAIM_BATCH": 1}
    together = threading.Barrier(3, timeout=20)

    @flow("claim-together", on=[f"box/{what}" for what in READY])
    def claim_together(event: Event, step: Step) -> Any:
        return step.run("claim", claim_at_once, event.data["parcel_id"], atomic=True)

    def claim_at_once(parcel_id: int) -> bool:
        together.wait()
        return claim(parcel_id)

    def work() -> None:
        execute_due()
        connection.close()

    events = box_ready_at_once()
    route()
    with ThreadPoolExecutor(3) as workers:
        for worker in [workers.submit(work) for _ in READY]:
            worker.result()
    assert sorted(run_of(event).result for event in events) == [False, False, True]
