"""Charge, enter, tell."""

from __future__ import annotations

from typing import Any

from durable_flows import Event, NonRetriableError, Step, flow
from example_project.payments.models import BankEntry, Payment


@flow("process-payment", on="payment/initiated", retries=2)
def process_payment(event: Event, step: Step) -> dict[str, Any]:
    """Others hear of it when it is done, or when all is as it was before."""
    payment_id, amount = event.data["payment_id"], event.data["amount"]
    saga = step.saga()
    charge = saga.run("charge-card", charge_card, payment_id, amount, undo=refund)
    step.run("enter", enter, payment_id, charge, amount, atomic=True)
    step.send_event("tell", Event("payment/succeeded", {"payment_id": payment_id}))
    return {"charge": charge}


@process_payment.on_failure
def tell_failure(event: Event, step: Step) -> None:
    """Begins when the money is back."""
    payment_id = event.data["event"]["data"]["payment_id"]
    failed = {"payment_id": payment_id, "error": event.data["error"]["message"]}
    step.send_event("tell", Event("payment/failed", failed))


def charge_card(payment_id: str, amount: int) -> str:
    if amount > 1_000:
        raise NonRetriableError("the card was refused")
    return ask_bank(f"charge {payment_id}", amount)


def refund(charge: str | None, payment_id: str, amount: int) -> str | None:
    """Looks at what the bank has: also a charge whose answer never came is refunded."""
    charged = BankEntry.objects.filter(key=f"charge {payment_id}").exists()
    return ask_bank(f"refund {payment_id}", -amount) if charged else None


def ask_bank(key: str, amount: int) -> str:
    entry, _ = BankEntry.objects.get_or_create(key=key, defaults={"amount": amount})
    return entry.key


def enter(payment_id: str, charge: str, amount: int) -> None:
    if amount % 10:
        raise NonRetriableError("the ledger takes tens only")
    Payment.objects.create(payment_id=payment_id, charge=charge, amount=amount)
