"""Three services answer for Emil; for Frida one keeps silent, and is waited for five minutes."""

from __future__ import annotations

from django.db import transaction

from durable_flows.testing import advance, send
from example_project.gather.models import Customer


def play() -> None:
    """Two customers."""
    for name in ("emil", "secret.frida"):
        sign_up(f"{name}@customer.example")
    advance("5m")


@transaction.atomic
def sign_up(email: str) -> Customer:
    """What the page does: the row and the event are one commit."""
    customer = Customer.objects.create(email=email)
    send("customer/signed-up", {"customer_id": customer.pk, "email": email})
    return customer


ANSWERS = "answers[0], answers[1], answers[2], answers"

ENDED = [
    *["mail-welcome completed (send-mail, note, answer)"] * 2,
    *["start-trial completed (note, answer)"] * 2,
    "add-contact completed (look-up, note, answer)",
    "add-contact failed (look-up)",
    f"take-in completed (ask, {ANSWERS}, complete)",
    f"take-in completed (ask, {ANSWERS})",
]
