"""A payment saga: the money is where both ledgers say, whatever dies."""

from __future__ import annotations

from uuid import UUID

import pytest

from durable_flows import InvalidEvent
from durable_flows.testing import crash_after, drain, run_of, send, sent
from example_project.payments.events import (
    FAILED,
    INITIATED,
    SUCCEEDED,
    Failed,
    Initiated,
    Succeeded,
)
from example_project.payments.models import BankEntry, Payment

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


ID = UUID(int=7)
CHARGE, REFUND = f"charge {ID}", f"refund {ID}"


def initiated(amount: int) -> str:
    return send(INITIATED, Initiated(ID, amount))


def at_the_bank() -> dict[str, int]:
    return dict(BankEntry.objects.values_list("key", "amount"))


def test_a_payment_is_in_both_ledgers_and_told_of() -> None:
    event = initiated(120)
    drain()
    assert run_of(event).result == {"charge": CHARGE}
    assert at_the_bank() == {CHARGE: 120}
    assert Payment.objects.get().amount == 120
    assert [event.data for event in sent(SUCCEEDED)] == [Succeeded(ID)]
    assert not sent(FAILED)


def test_a_payment_that_cannot_be_entered_is_refunded_and_told_of() -> None:
    event = initiated(123)
    drain()
    assert run_of(event).state == "failed"
    assert at_the_bank() == {CHARGE: 123, REFUND: -123}
    assert not Payment.objects.exists()
    (failed,) = sent(FAILED)
    assert failed.data == Failed(ID, "the ledger takes tens only")
    assert not sent(SUCCEEDED)


def test_where_nothing_was_charged_nothing_is_refunded() -> None:
    initiated(5_000)
    drain()
    assert at_the_bank() == {}
    assert len(sent(FAILED)) == 1


@pytest.mark.parametrize("step", ["charge-card", "charge-card#undo"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_worker_that_dies_moves_no_money_twice(step: str, recorded: bool) -> None:
    initiated(123)
    with crash_after(step, recorded=recorded) as crash:
        drain()
    assert crash.happened
    drain()
    assert at_the_bank() == {CHARGE: 123, REFUND: -123}
    assert len(sent(FAILED)) == 1


def test_a_payment_without_an_amount_in_whole_numbers_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="^/data/amount: .*Expected `int`, got `float`"):
        send(INITIATED, {"payment_id": str(ID), "amount": 1.5})
