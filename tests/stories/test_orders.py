"""An order saga: all of it, or nothing of it."""

from __future__ import annotations

import pytest
from django.core import mail

from durable_flows.testing import RunView, crash_after, drain, run_of, sent
from example_project.orders.models import Charge, Order, Stock
from example_project.orders.story import place

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


@pytest.fixture(autouse=True)
def lamps() -> None:
    Stock.objects.create(item="lamp", available=3)


def played(quantity: int = 2, address: str = "Mill Lane 1") -> RunView:
    place("jonas@orders.example", quantity, address)
    drain()
    return the_run()


def the_run() -> RunView:
    return run_of(sent("order/placed")[-1].public_id)


def left() -> int:
    return Stock.objects.get().available


def refunds() -> list[bool]:
    return list(Charge.objects.values_list("refunded", flat=True))


def subjects() -> list[str]:
    return [str(message.subject) for message in mail.outbox]


def test_an_order_that_goes_through_is_reserved_charged_and_packed() -> None:
    assert played().result == {"status": "completed", "label": "2 × lamp to Mill Lane 1"}
    assert (left(), refunds()) == (1, [False])
    assert subjects() == ["On its way: 2 × lamp to Mill Lane 1"]


def test_an_order_that_cannot_be_packed_is_refunded_and_its_stock_released() -> None:
    run = played(address="")
    assert (run.state, run.error["step"]) == ("failed", "print-label")
    assert (left(), refunds()) == (3, [True])
    assert subjects() == ["We could not do it: there is no address"]


def test_an_order_of_too_much_has_nothing_to_take_back() -> None:
    assert played(quantity=4).state == "failed"
    assert (left(), refunds()) == (3, [])
    assert subjects() == ["We could not do it: there is not enough lamp"]


def test_a_charge_whose_answer_was_lost_is_made_once() -> None:
    place("jonas@orders.example", 2, "Mill Lane 1")
    with crash_after("charge", recorded=False) as crash:
        drain()
    assert crash.happened
    drain()
    assert the_run().state == "completed"
    assert (left(), refunds()) == (1, [False])


@pytest.mark.parametrize(
    ("step", "recorded"),
    [
        ("print-label", True),
        ("refund", False),
        ("refund", True),
        ("release-stock", False),
        ("release-stock", True),
    ],
)
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
    assert len(mail.outbox) == 1


def test_many_orders_never_take_more_than_there_is() -> None:
    for _ in range(3):
        place("jonas@orders.example", 2, "Mill Lane 1")
    drain()
    states = [run_of(event.public_id).state for event in sent("order/placed")]
    assert sorted(states) == ["completed", "failed", "failed"]
    assert (left(), Order.objects.filter(reserved=True).count()) == (1, 1)
