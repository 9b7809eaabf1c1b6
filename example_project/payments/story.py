"""One payment is made, one is refunded because it cannot be entered, one is refused by the bank."""

from __future__ import annotations

from uuid import uuid4

from durable_flows.testing import drain, send
from example_project.payments.events import INITIATED, Initiated


def play() -> None:
    """Three payments."""
    for amount in (120, 123, 5_000):
        send(INITIATED, Initiated(uuid4(), amount))
    drain()


CHARGED = "charge-card#intent, charge-card"
UNDONE = "saga#undo, charge-card#undo"

ENDED = [
    f"process-payment completed ({CHARGED}, enter, tell)",
    f"process-payment failed ({CHARGED}, enter, {UNDONE})",
    f"process-payment failed ({CHARGED}, {UNDONE})",
    *["process-payment/on-failure completed (tell)"] * 2,
]
