"""One order is sent, one withdrawn, two cannot be done; and the shelf asks for more."""

from __future__ import annotations

from django.db import transaction

from durable_flows.testing import advance, send
from example_project.orders.models import Order, Stock


def play() -> None:
    """A day with four orders."""
    if not Stock.objects.filter(item="lamp").update(available=6):  # which nobody is told of
        Stock.objects.create(item="lamp", available=6)
    place("jonas@orders.example", 2, "Mill Lane 1")
    regretted = place("karla@orders.example", 2, "Mill Lane 2")
    place("lukas@orders.example", 1, "")
    place("mia@orders.example", 9, "Mill Lane 4")
    advance("3h")
    send("order/withdrawn", {"order_id": regretted.pk})
    advance("1 day")


@transaction.atomic
def place(email: str, quantity: int, address: str) -> Order:
    """What the page does: the row and the event are one commit."""
    order = Order.objects.create(
        email=email, item="lamp", quantity=quantity, total=40 * quantity, address=address
    )
    send("order/placed", {"order_id": order.pk, "email": email}, subject=order)
    return order


DONE = "reserve-stock#intent, reserve-stock, charge#intent, charge, print-label"
UNDONE = "saga#undo, charge#undo, reserve-stock#undo"

ENDED = [
    f"process-order completed ({DONE}, until-fetched, tell)",
    f"process-order cancelled ({DONE}, until-fetched, {UNDONE})",
    f"process-order failed ({DONE}, {UNDONE})",
    "process-order failed (reserve-stock#intent, reserve-stock, saga#undo, reserve-stock#undo)",
    "tell-sent completed (send-mail)",
    "process-order/on-cancel completed (send-mail)",
    *["process-order/on-failure completed (send-mail)"] * 2,
    "reorder-stock completed (write-to-supplier)",
    *["reorder-stock completed (no steps)"] * 4,
]
