"""All of it, or nothing of it."""

from __future__ import annotations

from typing import Any

from django.core.mail import send_mail
from django.db.models import F

from durable_flows import CancelOn, Event, NonRetriableError, Step, flow, flows_update
from example_project.orders.models import Charge, Order, Stock

FEW = 3
SUPPLIER = "supplier@orders.example"


@flow(
    "process-order",
    on="order/placed",
    cancel_on=CancelOn("order/withdrawn", match="data.order_id"),
    retries=2,
)
def process_order(event: Event, step: Step) -> dict[str, Any]:
    """Reserve, charge, pack; until the carrier comes it can be withdrawn."""
    order_id = event.data["order_id"]
    saga = step.saga()
    saga.run("reserve-stock", reserve_stock, order_id, undo=release_stock, atomic=True)
    saga.run("charge", charge, order_id, undo=refund)
    label = step.run("print-label", print_label, order_id)  # paper: nothing to take back
    step.sleep("until-fetched", "1 day")
    # Another flow tells the customer: a mail that fails is no reason to take it all back.
    step.send_event("tell", Event("order/sent", {"email": event.data["email"], "label": label}))
    return {"status": "completed", "label": label}


@process_order.on_failure
def tell_failure(event: Event, step: Step) -> None:
    """Begins when all has been taken back."""
    to, why = event.data["event"]["data"]["email"], event.data["error"]["message"]
    step.run("send-mail", mail, to, f"We could not do it: {why}")


@process_order.on_cancel
def tell_withdrawn(event: Event, step: Step) -> None:
    """The same for the orders that were withdrawn."""
    step.run("send-mail", mail, event.data["event"]["data"]["email"], "Your money is on its way")


@flow("tell-sent", on="order/sent")
def tell_sent(event: Event, step: Step) -> None:
    """A mail that it is on its way."""
    step.run("send-mail", mail, event.data["email"], f"On its way: {event.data['label']}")


@flow("reorder-stock", on="stock/updated")
def reorder_stock(event: Event, step: Step) -> None:
    """A mail to the supplier when there are few left, whatever has taken the others."""
    before, after = event.data["before"], event.data["after"]
    if after["available"] < FEW <= before["available"]:
        step.run("write-to-supplier", mail, SUPPLIER, f"Please send {after['item']}")


# -- what is done, and what takes it back ----------------------------------------------------


def reserve_stock(order_id: int) -> None:
    order = Order.objects.get(pk=order_id)
    enough = Stock.objects.filter(item=order.item, available__gte=order.quantity)
    if not flows_update(enough, available=F("available") - order.quantity):
        raise NonRetriableError(f"there is not enough {order.item}")
    order.reserved = True
    order.save(update_fields=["reserved"])


def release_stock(reserved: None, order_id: int) -> None:
    order = Order.objects.get(pk=order_id)
    if Order.objects.filter(pk=order_id, reserved=True).update(reserved=False):
        shelf = Stock.objects.filter(item=order.item)
        flows_update(shelf, available=F("available") + order.quantity)


def charge(order_id: int) -> str:
    order = Order.objects.get(pk=order_id)
    made, _ = Charge.objects.get_or_create(
        key=f"order-{order_id}", defaults={"amount": order.total}
    )
    return made.key


def refund(key: str | None, order_id: int) -> bool:
    """Asks the bank, also where the key never came: whether it charged is not known then."""
    return Charge.objects.filter(key=f"order-{order_id}").update(refunded=True) == 1


def print_label(order_id: int) -> str:
    order = Order.objects.get(pk=order_id)
    if not order.address:
        raise NonRetriableError("there is no address")
    return f"{order.quantity} × {order.item} to {order.address}"


def mail(to: str, subject: str) -> int:
    return send_mail(subject, "", None, [to])
