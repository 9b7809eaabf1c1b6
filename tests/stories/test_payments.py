"""A payment saga: the money is where both ledgers say, whatever dies."""

from __future__ import annotations

import pytest

from durable_flows.testing import crash_after, drain, run_of, send, sent
from example_project.payments.models import BankEntry, Payment

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def initiated(amount: int) -> str:
    return send("payment/initiated", {"payment_id": "7", "amount": amount})


def at_the_bank() -> dict[str, int]:
    return dict(BankEntry.objects.values_list("key", "amount"))


def test_a_payment_is_in_both_ledgers_and_told_of() -> None:
    event = initiated(120)
    drain()
    assert run_of(event).result == {"charge": "charge 7"}
    assert at_the_bank() == {"charge 7": 120}
    assert Payment.objects.get().amount == 120
    assert [event.data for event in sent("payment/succeeded")] == [{"payment_id": "7"}]
    assert not sent("payment/failed")


def test_a_payment_that_cannot_be_entered_is_refunded_and_told_of() -> None:
    event = initiated(123)
    drain()
    assert run_of(event).state == "failed"
    assert at_the_bank() == {"charge 7": 123, "refund 7": -123}
    assert not Payment.objects.exists()
    (failed,) = sent("payment/failed")
    assert failed.data == {"payment_id": "7", "error": "the ledger takes tens only"}
    assert not sent("payment/succeeded")


def test_where_nothing_was_charged_nothing_is_refunded() -> None:
    initiated(5_000)
    drain()
    assert at_the_bank() == {}
    assert len(sent("payment/failed")) == 1


@pytest.mark.parametrize("step", ["charge-card", "charge-card#undo"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_worker_that_dies_moves_no_money_twice(step: str, recorded: bool) -> None:
    initiated(123)
    with crash_after(step, recorded=recorded) as crash:
        drain()
    assert crash.happened
    drain()
    assert at_the_bank() == {"charge 7": 123, "refund 7": -123}
    assert len(sent("payment/failed")) == 1
