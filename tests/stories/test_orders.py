"""An order saga: all of it, or nothing of it."""

from __future__ import annotations

import pytest
from django.core import mail
from django.db.models.deletion import ProtectedError

from durable_flows import cancel
from durable_flows.testing import RunView, advance, crash_after, crash_at, drain, run_of, send, sent
from example_project.orders.flows import SUPPLIER
from example_project.orders.models import Charge, Order, Stock
from example_project.orders.story import place

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


@pytest.fixture(autouse=True)
def lamps() -> None:
    Stock.objects.create(item="lamp", available=3)


def the_run() -> RunView:
    return run_of(sent("order/placed")[-1].public_id)


def left() -> int:
    return Stock.objects.get().available


def refunds() -> list[bool]:
    return list(Charge.objects.values_list("refunded", flat=True))


def subjects(*, to_supplier: bool = False) -> list[str]:
    """Of the mails to the customers, or of those to the supplier."""
    mails = [message for message in mail.outbox if to_supplier == (SUPPLIER in message.to)]
    return [str(message.subject) for message in mails]


def test_an_order_that_goes_through_is_reserved_charged_and_sent() -> None:
    place("jonas@orders.example", 2, "Mill Lane 1")
    advance("1 day")
    assert the_run().result == {"status": "completed", "label": "2 × lamp to Mill Lane 1"}
    assert (left(), refunds()) == (1, [False])
    assert subjects() == ["On its way: 2 × lamp to Mill Lane 1"]


def test_an_order_that_cannot_be_packed_is_refunded_and_its_stock_released() -> None:
    place("jonas@orders.example", 2, "")
    drain()
    assert (the_run().state, the_run().error["step"]) == ("failed", "print-label")
    assert (left(), refunds()) == (3, [True])
    assert subjects() == ["We could not do it: there is no address"]


def test_an_order_of_too_much_has_nothing_to_take_back() -> None:
    place("jonas@orders.example", 4, "Mill Lane 1")
    drain()
    assert the_run().state == "failed"
    assert (left(), refunds()) == (3, [])
    assert subjects() == ["We could not do it: there is not enough lamp"]


def test_an_order_that_is_withdrawn_before_the_carrier_comes_is_taken_back() -> None:
    first = place("jonas@orders.example", 1, "Mill Lane 1")
    other = place("karla@orders.example", 1, "Mill Lane 2")
    advance("23h")
    send("order/withdrawn", {"order_id": first.pk})
    advance("2h")
    assert [run_of(event.public_id).state for event in sent("order/placed")] == [
        "cancelled",
        "completed",
    ]
    assert left() == 2
    assert list(Charge.objects.filter(refunded=True)) == [
        Charge.objects.get(key=f"order-{first.pk}")
    ]
    assert Charge.objects.count() == 2
    assert subjects() == ["Your money is on its way", "On its way: 1 × lamp to Mill Lane 2"]
    assert list(Order.objects.filter(reserved=True)) == [other]


def test_an_order_that_was_sent_cannot_be_withdrawn() -> None:
    order = place("jonas@orders.example", 1, "Mill Lane 1")
    advance("1 day")
    send("order/withdrawn", {"order_id": order.pk})
    drain()
    assert (the_run().state, left(), refunds()) == ("completed", 2, [False])


def test_a_charge_whose_answer_was_lost_is_made_once() -> None:
    place("jonas@orders.example", 2, "Mill Lane 1")
    with crash_after("charge", recorded=False) as crash:
        drain()
    assert crash.happened
    advance("1 day")
    assert the_run().state == "completed"
    assert (left(), refunds()) == (1, [False])


def test_a_charge_whose_answer_was_lost_is_refunded_if_the_order_is_cancelled_then() -> None:
    place("jonas@orders.example", 2, "Mill Lane 1")
    with crash_after("charge", recorded=False) as crash:
        drain()
    assert crash.happened
    cancel(the_run().id, reason="changed his mind")
    drain()
    assert the_run().state == "cancelled"
    assert "charge" not in the_run().step_keys  # nobody knows what came of it
    assert (left(), refunds()) == (3, [True])


@pytest.mark.parametrize("step", ["charge#undo", "reserve-stock#undo"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_worker_that_dies_while_it_takes_back_leaves_the_rest_to_the_next(
    step: str, recorded: bool
) -> None:
    place("karla@orders.example", 1, "")
    with crash_after(step, recorded=recorded) as crash:
        drain()
    assert crash.happened
    drain()
    assert the_run().state == "failed"
    assert (left(), refunds()) == (3, [True])
    assert len(subjects()) == 1


def test_a_worker_that_dies_before_it_begins_to_take_back_leaves_all_to_the_next() -> None:
    place("karla@orders.example", 1, "")
    with crash_at("step_recorded", "print-label") as crash:
        drain()
    assert crash.happened
    drain()
    assert (the_run().state, left(), refunds()) == ("failed", 3, [True])


def test_many_orders_never_take_more_than_there_is() -> None:
    for _ in range(3):
        place("jonas@orders.example", 2, "Mill Lane 1")
    advance("1 day")
    states = [run_of(event.public_id).state for event in sent("order/placed")]
    assert sorted(states) == ["completed", "failed", "failed"]
    assert (left(), Order.objects.filter(reserved=True).count()) == (1, 1)


def test_the_supplier_is_written_to_once_when_the_shelf_runs_low() -> None:
    place("jonas@orders.example", 1, "Mill Lane 1")
    drain()
    place("karla@orders.example", 1, "Mill Lane 2")
    drain()
    assert left() == 1
    assert subjects(to_supplier=True) == ["Please send lamp"]


def test_the_supplier_is_written_to_whoever_takes_from_the_shelf() -> None:
    shelf = Stock.objects.get()
    shelf.available = 1
    shelf.save()
    drain()
    assert subjects(to_supplier=True) == ["Please send lamp"]
    assert sent("stock/updated")[0].data["before"] == {"item": "lamp", "available": 3}


def test_a_reservation_that_is_not_committed_tells_nobody() -> None:
    place("jonas@orders.example", 2, "Mill Lane 1")
    with crash_at("before_atomic_commit", "reserve-stock") as crash:
        drain()
    assert crash.happened
    drain()
    assert len(sent("stock/updated")) == 1


def test_an_order_stays_as_long_as_somebody_works_on_it() -> None:
    order = place("jonas@orders.example", 1, "Mill Lane 1")
    drain()
    assert [run.flow for run in order.flow_runs.unfinished()] == ["process-order"]
    with pytest.raises(ProtectedError):
        order.delete()
    advance("1 day")
    assert sorted(run.flow for run in order.flow_runs.all()) == ["process-order", "tell-sent"]
    order.delete()
    assert the_run().state == "completed"
