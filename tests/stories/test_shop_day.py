"""A day in the shop: real pages send the events, real flows follow them up, the clock is moved."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import timedelta

import pytest
from django.core import mail

from durable_flows import testing
from durable_flows.models import Event, Run
from example_project.shop.models import Cart, Order
from example_project.shop.shoppers import (
    DAY,
    DAY_ENDS,
    EXPECTED,
    Ended,
    Shopper,
    cast,
    differences,
    mail_differences,
    perform,
)

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("shop_flows", "own_clock"),
]


def play(shoppers: dict[str, Shopper]) -> None:
    """Let everybody do what they do when they do it, and the day end."""
    now = timedelta(0)
    for act in DAY:
        testing.advance(act.at - now)
        now = act.at
        perform(act, shoppers[act.who])
    testing.advance(DAY_ENDS - now)


def ended_by_email() -> dict[str, list[Ended]]:
    found = defaultdict(list)
    for event in Event.objects.order_by("arrival"):
        for run in testing.runs_of(str(event.pk)):
            steps = tuple(step.key for step in run.steps)
            email = json.loads(event.user or "{}")["email"]
            found[email].append(Ended(flow=run.flow, state=run.state, steps=steps))
    return found


def test_every_run_of_the_day_ends_as_the_script_says() -> None:
    shoppers = cast()
    play(shoppers)
    ended = ended_by_email()
    assert {who: tuple(ended[shopper.email]) for who, shopper in shoppers.items()} == EXPECTED
    assert not Run.objects.unfinished().exists()


def test_everybody_gets_the_mails_of_their_runs_and_no_others() -> None:
    shoppers = cast()
    play(shoppers)
    sent: dict[str, list[str]] = defaultdict(list)
    for message in mail.outbox:
        sent[message.to[0]].append(str(message.subject))
    assert {who for who in shoppers if mail_differences(who, sent[shoppers[who].email])} == set()
    assert set(sent) <= {shopper.email for shopper in shoppers.values()}


def test_a_reminder_lists_the_cart_as_it_is_then_and_links_to_it() -> None:
    shoppers = cast()
    play(shoppers)
    (message,) = [m for m in mail.outbox if m.to == [shoppers["Eve"].email]]
    cart = Cart.objects.get(email=shoppers["Eve"].email)
    assert "1 × Beeswax candle, 12.50 EUR" in message.body
    assert "1 × Linen towel, 16.00 EUR" in message.body
    assert "Together 28.50 EUR" in message.body
    assert f"http://shop.example/cart/pick-up/{cart.pk}/" in message.body


def test_the_day_can_be_played_twice_on_one_database() -> None:
    first, second = cast("one"), cast("two")
    play(first)
    play(second)
    ended = ended_by_email()
    for shoppers in (first, second):
        for who, shopper in shoppers.items():
            assert differences(who, ended[shopper.email]) == []
    assert Order.objects.count() == 10


def test_a_difference_says_whose_run_it_is_and_how_it_ended() -> None:
    early = Ended(flow="cart-abandonment", state="failed", steps=("purchased",))
    assert differences("Bob", [early]) == [
        "Bob: run missing: cart-abandonment completed (purchased, send-reminder)",
        "Bob: run not expected: cart-abandonment failed (purchased)",
    ]
    assert mail_differences("Bob", []) == ["Bob: mail missing: Your cart is still here"]
