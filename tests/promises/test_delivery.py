"""When an event is delivered, and in which order."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from durable_flows import CancelOn, Event, flow, send
from durable_flows.models import Due, Run
from durable_flows.models import Event as StoredEvent
from durable_flows.testing import advance, drain, run_of, runs_of
from tests.promises.staging import again, listener, milliseconds, now, played, row

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def in_an_hour() -> datetime:
    return now() + HOUR


# -- time ------------------------------------------------------------------------------------


def test_an_event_of_the_future_starts_its_flow_at_its_time_and_not_before():
    started: list[datetime] = []

    @flow("punctual", on="go")
    def punctual():
        started.append(now())

    ts = in_an_hour()
    (event_id,) = send("go", ts=ts)
    advance("59m")
    assert runs_of(event_id) == []
    advance("2m")
    assert len(started) == 1
    assert started[0] >= ts


def test_milliseconds_of_the_future_delay_it_as_well():
    started = listener("go")
    send("go", ts=milliseconds(in_an_hour()))
    advance("59m")
    assert started == []
    advance("2m")
    assert len(started) == 1


def test_an_event_of_the_future_resumes_at_its_time_and_not_before():
    @flow("waiter", on="go")
    def waiter(step):
        found = step.wait_for_event("reply", event="replied", timeout="2h")
        return "timed out" if found is None else "heard"

    run = played("go")
    send("replied", ts=in_an_hour())
    advance("59m")
    assert again(run).activity == "waiting"
    advance("2m")
    assert again(run).result == "heard"


def test_an_event_that_is_delivered_after_the_timeout_was_not_in_time():
    @flow("waiter", on="go")
    def waiter(step):
        found = step.wait_for_event("reply", event="replied", timeout="30m")
        return "timed out" if found is None else "heard"

    run = played("go")
    send("replied", ts=in_an_hour())
    advance("2h")
    assert again(run).result == "timed out"


def test_an_event_of_the_future_cancels_at_its_time_and_not_before():
    @flow("sleeper", on="go", cancel_on=CancelOn("stop"))
    def sleeper(step):
        step.sleep("long", "1 day")

    run = played("go")
    send("stop", ts=in_an_hour())
    advance("59m")
    assert again(run).activity == "waiting"
    advance("2m")
    assert again(run).state == "cancelled"


def test_an_event_of_the_future_sent_before_a_run_began_cancels_it_when_its_time_comes():
    @flow("sleeper", on="go", cancel_on=CancelOn("stop"))
    def sleeper(step):
        step.sleep("long", "1 day")

    send("stop", ts=in_an_hour())
    run = played("go")
    assert again(run).activity == "waiting"
    advance("61m")
    assert again(run).state == "cancelled"


def test_an_event_of_the_past_is_delivered_now_and_keeps_its_ts():
    seen: list[Event] = []

    @flow("reader", on="go")
    def reader(event):
        seen.append(event)

    ts = now().replace(microsecond=0) - timedelta(days=400)
    (event_id,) = send("go", ts=ts)
    drain()
    assert seen[0].ts == ts
    assert row(event_id).deliver_at == row(event_id).received_at


def test_an_event_of_the_past_is_not_newer_than_a_trigger_that_was_delivered_later():
    """Delivery counts, not what the sender says: an old ``ts`` does not spare a run."""

    @flow("sleeper", on="go", cancel_on=CancelOn("stop"))
    def sleeper(step):
        step.sleep("long", "1 day")

    run = played("go")
    send("stop", ts=now() - timedelta(days=1))
    drain()
    assert again(run).state == "cancelled"


# -- order -----------------------------------------------------------------------------------


def test_events_are_delivered_by_time_first():
    started = listener("go")
    late, early = send([Event("go", ts=now() + 2 * HOUR), Event("go", ts=now() + HOUR)])
    advance("3h")
    assert started == [early, late]


def test_events_of_one_time_are_delivered_by_arrival():
    started = listener("go")
    ts = in_an_hour()
    ids = [send("go", ts=ts)[0] for _ in range(10)]
    advance("2h")
    assert started == ids


def test_a_late_router_still_goes_by_delivery_time_and_then_by_arrival():
    started = listener("go")
    first_due, second_due = now() + HOUR, now() + 2 * HOUR
    ids = send([Event("go", {"n": n}, ts=second_due) for n in range(3)])
    ids = send([Event("go", {"n": n}, ts=first_due) for n in range(3)]) + ids
    advance("3h", play=False)
    ids += send("go")
    drain()
    assert started == ids


def test_arrival_orders_what_has_the_same_moment_of_receipt():
    ids = send([Event("go", {"n": n}) for n in range(200)])
    kept = StoredEvent.objects.order_by("arrival")
    assert [str(event.pk) for event in kept] == ids
    assert len({event.received_at for event in kept}) == 1


def test_more_events_than_one_batch_are_routed_in_order(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "ROUTE_BATCH": 3, "CLAIM_BATCH": 2}
    started = listener("go")
    ids = send([Event("go", {"n": n}) for n in range(10)])
    drain()
    assert started == ids


# -- once ------------------------------------------------------------------------------------


def test_one_event_starts_a_flow_once_even_if_it_is_routed_twice():
    started = listener("go")
    (event_id,) = send("go")
    drain()
    StoredEvent.objects.update(routed_at=None)
    assert drain() == 1
    StoredEvent.objects.update(routed_at=None, routed=None, attempts=0)
    assert drain() == 1
    assert started == [event_id]
    assert Run.objects.count() == 1
    assert not Due.objects.exists()


def test_routing_twice_does_not_wake_a_run_that_has_not_begun_twice():
    started = listener("go")
    (event_id,) = send("go")
    from durable_flows.engine.route import route

    route()
    StoredEvent.objects.update(routed_at=None)
    route()
    assert Due.objects.count() == 1
    drain()
    assert started == [event_id]


def test_one_event_resumes_a_wait_once_even_if_it_is_routed_twice():
    @flow("waiter", on="go")
    def waiter(step):
        for _ in range(2):
            step.wait_for_event("reply", event="replied", timeout="1h")

    run = played("go")
    send("replied")
    drain()
    StoredEvent.objects.filter(name="replied").update(routed_at=None, routed=None)
    drain()
    assert again(run).step_keys == ["reply"]
    assert again(run).activity == "waiting"


def test_one_event_may_start_several_flows():
    one, other = listener("go", flow_id="one"), listener("go", flow_id="other")
    (event_id,) = send("go")
    drain()
    assert one == other == [event_id]
    assert [run.flow for run in runs_of(event_id)] == ["one", "other"]


def test_a_run_knows_the_event_that_started_it():
    listener("go")
    (event_id,) = send("go")
    drain()
    assert Run.objects.get(event_id=event_id).flow == "listener"
    assert run_of(event_id).state == "completed"
