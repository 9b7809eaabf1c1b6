"""Charge, enter, tell."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from durable_flows import Event, NonRetriableError, Step, flow
from example_project.payments.events import (
    FAILED,
    INITIATED,
    SUCCEEDED,
    Failed,
    Initiated,
    Succeeded,
)
from example_project.payments.models import BankEntry, Payment


@flow("process-payment", on=INITIATED, retries=2)
def process_payment(event: Event[Initiated], step: Step) -> dict[str, Any]:
    """Others hear of it when it is done, or when all is as it was before."""
    payment = event.data
    saga = step.saga()
    charge = saga.run("charge-card", charge_card, payment.payment_id, payment.amount, undo=refund)
    step.run("enter", enter, payment.payment_id, charge, payment.amount, atomic=True)
    step.send_event("tell", Event(SUCCEEDED, Succeeded(payment.payment_id)))
    return {"charge": charge}


@process_payment.on_failure
def tell_failure(event: Event, step: Step) -> None:
    """Begins when the money is back."""
    payment_id = UUID(event.data["event"]["data"]["payment_id"])
    step.send_event("tell", Event(FAILED, Failed(payment_id, event.data["error"]["message"])))


def charge_card(payment_id: UUID, amount: int) -> str:
    if amount > 1_000:
        raise NonRetriableError("the card was refused")
    return ask_bank(f"charge {payment_id}", amount)


def refund(charge: str | None, payment_id: UUID, amount: int) -> str | None:
    """Looks at what the bank has: also a charge whose answer never came is refunded."""
    charged = BankEntry.objects.filter(key=f"charge {payment_id}").exists()
    return ask_bank(f"refund {payment_id}", -amount) if charged else None


def ask_bank(key: str, amount: int) -> str:
    entry, _ = BankEntry.objects.get_or_create(key=key, defaults={"amount": amount})
    return entry.key


def enter(payment_id: UUID, charge: str, amount: int) -> None:
    if amount % 10:
        raise NonRetriableError("the ledger takes tens only")
    Payment.objects.create(payment_id=str(payment_id), charge=charge, amount=amount)
