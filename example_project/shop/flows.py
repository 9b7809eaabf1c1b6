"""What happens after the pages are closed."""

from __future__ import annotations

from durable_flows import CancelOn, Event, Step, flow
from example_project.shop.mails import (
    send_cart_reminder,
    send_first_post_reminder,
    send_welcome,
)


@flow(
    "cart-abandonment",
    on="cart/product.added",
    # Adding another product starts another run; the newest one alone goes on.
    cancel_on=[CancelOn("cart/product.added", match="data.cart_id", timeout="24h")],
)
def cart_abandonment(event: Event, step: Step) -> None:
    """A cart that was not bought within 24 hours of its last product gets one reminder."""
    if step.wait_for_event(
        "purchased", event="cart/purchased", match="data.cart_id", timeout="24h"
    ):
        return
    step.run("send-reminder", send_cart_reminder, event.user["email"], event.data["cart_id"])


@flow("activation-email", on="app/user.created")
def activation_email(event: Event, step: Step) -> None:
    """A welcome at once, and a reminder if there is no post within 24 hours."""
    step.run("send-welcome-email", send_welcome, event.user["email"])
    post_created = step.wait_for_event(
        "wait-for-post-creation",
        event="app/post.created",
        match="data.user.id",
        timeout="24h",
    )
    if post_created is None:
        step.run("send-reminder-email", send_first_post_reminder, event.user["email"])
