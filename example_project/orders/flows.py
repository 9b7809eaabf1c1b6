"""All of it, or nothing of it."""

from __future__ import annotations

from typing import Any

from django.core.mail import send_mail
from django.db.models import F

from durable_flows import Event, NonRetriableError, Step, StepError, flow
from example_project.orders.models import Charge, Order, Stock


@flow("process-order", on="order/placed", retries=2)
def process_order(event: Event, step: Step) -> dict[str, Any]:
    """Reserve, charge, pack. Whoever could not be told is no reason to take it all back."""
    order_id, to = event.data["order_id"], event.data["email"]
    try:
        step.run("reserve-stock", reserve_stock, order_id, atomic=True)
        step.run("charge", charge, order_id)
        label = step.run("print-label", print_label, order_id)
    except StepError as error:
        step.run("refund", refund, order_id)
        step.run("release-stock", release_stock, order_id, atomic=True)
        step.run("tell-failure", mail, to, f"We could not do it: {error.message}")
        raise
    step.run("tell-success", mail, to, f"On its way: {label}")
    return {"status": "completed", "label": label}


# -- what is done, and what takes it back ----------------------------------------------------


def reserve_stock(order_id: int) -> None:
    order = Order.objects.get(pk=order_id)
    enough = Stock.objects.filter(item=order.item, available__gte=order.quantity)
    if not enough.update(available=F("available") - order.quantity):
        raise NonRetriableError(f"there is not enough {order.item}")
    order.reserved = True
    order.save(update_fields=["reserved"])


def release_stock(order_id: int) -> None:
    order = Order.objects.get(pk=order_id)
    if Order.objects.filter(pk=order_id, reserved=True).update(reserved=False):
        Stock.objects.filter(item=order.item).update(available=F("available") + order.quantity)


def charge(order_id: int) -> str:
    order = Order.objects.get(pk=order_id)
    made, _ = Charge.objects.get_or_create(
        key=f"order-{order_id}", defaults={"amount": order.total}
    )
    return made.key


def refund(order_id: int) -> bool:
    """Whether there was anything to refund."""
    return Charge.objects.filter(key=f"order-{order_id}").update(refunded=True) == 1


def print_label(order_id: int) -> str:
    order = Order.objects.get(pk=order_id)
    if not order.address:
        raise NonRetriableError("there is no address")
    return f"{order.quantity} × {order.item} to {order.address}"


def mail(to: str, subject: str) -> int:
    return send_mail(subject, "", None, [to])
