"""Ask three, go on when all have answered."""

from __future__ import annotations

import pytest
from django.core import mail

from durable_flows.testing import RunView, advance, crash_after, drain, run_of, sent
from example_project.gather.story import sign_up

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def taken_in() -> RunView:
    (event,) = sent("customer/signed-up")
    return run_of(event.public_id)


def test_who_asks_goes_on_when_all_have_answered() -> None:
    customer = sign_up("emil@customer.example")
    drain()
    assert taken_in().result == {"missing": []}
    customer.refresh_from_db()
    done = (customer.mailed, customer.subscribed, customer.known_to_sales, customer.complete)
    assert done == (True, True, True, True)
    assert len(mail.outbox) == 1


def test_answers_that_come_before_anybody_waits_are_not_missed() -> None:
    sign_up("emil@customer.example")
    with crash_after("ask") as crash:
        drain()  # the worker dies, and all three have answered before another goes on
    assert crash.happened
    drain()
    assert taken_in().result == {"missing": []}


def test_answers_for_one_customer_are_no_answers_for_another() -> None:
    first, second = sign_up("emil@customer.example"), sign_up("secret.frida@customer.example")
    advance("5m")
    results = [run_of(event.public_id).result for event in sent("customer/signed-up")]
    assert results == [{"missing": []}, {"missing": ["sales/contact.added"]}]
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.complete, second.complete) == (True, False)


def test_a_service_that_keeps_silent_is_waited_for_five_minutes() -> None:
    sign_up("secret.frida@customer.example")
    advance("4m")
    assert taken_in().activity == "waiting"
    advance("1m")
    assert taken_in().result == {"missing": ["sales/contact.added"]}
