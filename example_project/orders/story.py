"""One order goes through; one cannot be packed and is taken back; for one there is not enough."""

from __future__ import annotations

from django.db import transaction

from durable_flows.testing import drain, send
from example_project.orders.models import Order, Stock


def play() -> None:
    """Three orders."""
    Stock.objects.update_or_create(item="lamp", defaults={"available": 3})
    place("jonas@orders.example", 2, "Mill Lane 1")
    place("karla@orders.example", 1, "")
    place("lukas@orders.example", 4, "Mill Lane 2")
    drain()


@transaction.atomic
def place(email: str, quantity: int, address: str) -> Order:
    """What the page does: the row and the event are one commit."""
    order = Order.objects.create(
        email=email, item="lamp", quantity=quantity, total=40 * quantity, address=address
    )
    send("order/placed", {"order_id": order.pk, "email": email})
    return order


ENDED = [
    "process-order completed (reserve-stock, charge, print-label, tell-success)",
    "process-order failed "
    "(reserve-stock, charge, print-label, refund, release-stock, tell-failure)",
    "process-order failed (reserve-stock, refund, release-stock, tell-failure)",
]
