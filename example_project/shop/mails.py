"""The mails that flows send. Each returns what is worth keeping in the run's journal."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.mail import send_mail
from django.template.loader import render_to_string
from django.urls import reverse

from example_project.shop.models import Cart

WELCOME = "Welcome to Slow Cupboard"
FIRST_POST = "Your first note is still unwritten"
CART_WAITING = "Your cart is still here"


def send_welcome(email: str) -> dict[str, Any]:
    """Greet a new customer."""
    return _send(WELCOME, email, "welcome", link=_link("shop:write-post"))


def send_first_post_reminder(email: str) -> dict[str, Any]:
    """Remind a customer who has not written a post yet."""
    return _send(FIRST_POST, email, "first_post", link=_link("shop:write-post"))


def send_cart_reminder(email: str, cart_id: str) -> dict[str, Any]:
    """Remind a visitor of a full cart; one that was emptied again needs no reminder."""
    cart = Cart.objects.get(pk=cart_id)
    items = list(cart.items.select_related("product"))
    if not items:
        return {"to": email, "sent": False, "reason": "the cart is empty"}
    link = _link("shop:pick-up-cart", cart_id)
    return _send(CART_WAITING, email, "cart_waiting", items=items, total=cart.total(), link=link)


def _send(subject: str, to: str, template: str, **facts: Any) -> dict[str, Any]:
    body = render_to_string(f"shop/mails/{template}.txt", facts)
    sent = send_mail(subject, body, None, [to])
    return {"to": to, "sent": bool(sent), "subject": subject}


def _link(page: str, *args: str) -> str:
    return f"{settings.EXAMPLE_BASE_URL}{reverse(page, args=args)}"
