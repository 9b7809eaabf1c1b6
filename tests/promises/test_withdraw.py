"""withdraw: an event that lies in the future is taken back."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from durable_flows import CancelOn, flow, send, withdraw
from durable_flows.engine import route
from durable_flows.errors import InvalidOption, UnknownEvent
from durable_flows.models import Event as StoredEvent
from durable_flows.rules import events
from durable_flows.testing import advance, crash_at, drain, runs_of
from tests.promises.staging import listener, now, played, rolled_back, row

pytestmark = pytest.mark.django_db


def later(name: str = "remind", hours: float = 1, **fields: Any) -> str:
    """Send an event into the future."""
    (event_id,) = send(name, {"n": 1}, ts=now() + timedelta(hours=hours), **fields)
    return event_id


def refusals() -> list[str]:
    rows = StoredEvent.objects.filter(name=events.WITHDRAW).order_by("arrival")
    return list(rows.values_list("error", flat=True))


def test_a_withdrawn_event_is_not_delivered():
    started = listener("remind")
    event_id = later()
    assert withdraw(event_id) is True
    advance("2h")
    assert started == []
    assert runs_of(event_id) == []
    assert refusals() == [""]


def test_it_is_kept_and_marked():
    event_id = later()
    withdraw(event_id, reason="paid meanwhile")
    drain()
    assert row(event_id).withdrawn
    assert row(event_id).routed_at is not None
    assert "paid meanwhile" in StoredEvent.objects.get(name=events.WITHDRAW).data


def test_it_resumes_no_wait_and_no_later_wait_finds_it():
    @flow("asks", on="go")
    def asks(step):
        seen = []
        for _ in range(2):
            seen.append(step.wait_for_event("reply", event="remind", timeout="1 day") is not None)
        return seen

    run = played()
    withdraw(later())
    drain()
    advance("3 days")
    assert runs_of(run.id)[0].result == [False, False]


def test_it_cancels_nothing():
    @flow("rests", on="go", cancel_on=CancelOn("remind"))
    def rests(step):
        step.sleep("rest", "1 day")

    run = played()
    withdraw(later())
    advance("2 days")
    assert runs_of(run.id)[0].state == "completed"


def test_an_event_that_was_delivered_stays_delivered():
    started = listener("remind")
    (now_,) = send("remind")
    event_id = later()
    advance("2h")
    assert withdraw(now_) is False
    assert withdraw(event_id) is False
    drain()
    assert started == [now_, event_id]
    assert refusals() == []


def test_withdrawing_twice_says_so():
    event_id = later()
    assert withdraw(event_id)
    drain()
    assert withdraw(event_id) is False


def test_two_may_ask_before_it_is_carried_out():
    event_id = later()
    assert withdraw(event_id)
    assert withdraw(uuid.UUID(event_id))
    advance("2h")
    assert row(event_id).withdrawn
    assert refusals() == ["", ""]


def test_a_withdrawal_holds_though_nobody_routed_until_the_event_was_due():
    started = listener("remind")
    event_id = later()
    withdraw(event_id)
    advance("2h", play=False)
    drain()
    assert started == []
    assert row(event_id).withdrawn


def test_a_withdrawal_that_comes_too_late_is_refused_on_its_row():
    started = listener("remind")
    event_id = later()
    withdraw(event_id)
    command = StoredEvent.objects.filter(name=events.WITHDRAW)
    command.update(deliver_at=now() + timedelta(hours=2))  # as by a clock that is ahead
    advance("3h")
    assert started == [event_id]
    assert "was delivered before" in refusals()[0]
    assert not row(event_id).withdrawn


def test_an_event_that_was_purged_meanwhile_refuses_it():
    event_id = later()
    withdraw(event_id)
    StoredEvent.objects.filter(pk=event_id).delete()
    drain()
    assert "no event" in refusals()[0]


def test_it_can_be_withdrawn_in_the_transaction_that_sends_it():
    started = listener("remind")
    with transaction.atomic():
        assert withdraw(later())
    advance("2h")
    assert started == []


def test_its_own_id_stays_taken():
    event_id = later(id="order 7")
    withdraw(event_id)
    drain()
    assert later(id="order 7") == event_id


def test_others_of_its_name_are_delivered():
    started = listener("remind")
    first, second = later(), later()
    withdraw(first)
    advance("2h")
    assert started == [second]


def test_what_is_no_event_is_an_error_at_the_call():
    run = flow("any")(lambda: None).start()
    unknown: Any
    for unknown in (uuid.uuid4(), "nonsense", None, run, StoredEvent.objects.get().pk):
        with pytest.raises(UnknownEvent, match="there is no event"):
            withdraw(unknown)
    with pytest.raises(InvalidOption, match="reason="):
        withdraw(later(), reason=7)  # type: ignore[arg-type]
    assert refusals() == []


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_a_withdrawal():
    started = listener("remind")
    event_id = later()
    with rolled_back():
        withdraw(event_id)
    advance("2h")
    assert started == [event_id]


@pytest.mark.parametrize(
    "place",
    ["events_withdrawn", "events_numbered", "between_routing_transactions", "command_obeyed"],
)
def test_a_router_that_dies_withdraws_it_all_the_same(place):
    started = listener("remind")
    event_id = later()
    withdraw(event_id)
    advance("2h", play=False)
    with crash_at(place) as crash:
        drain()
    assert crash.happened
    drain()
    assert started == []
    assert row(event_id).withdrawn
    assert refusals() == [""]


def test_with_several_shards_it_is_the_events_own_router_that_takes_it_back(settings):
    settings.DURABLE_FLOWS = {**settings.DURABLE_FLOWS, "ROUTE_SHARDS": 4}
    started = listener("remind")
    event_id = later()
    withdraw(event_id)
    assert StoredEvent.objects.get(name=events.WITHDRAW).shard == row(event_id).shard
    advance("2h", play=False)
    route.route()
    drain()
    assert started == []
