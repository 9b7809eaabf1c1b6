"""Which cart a request is about. The session remembers the cart's id, and nothing else."""

from __future__ import annotations

from typing import Any

from django.db.models import F, QuerySet
from django.http import HttpRequest

from example_project.shop.models import Cart, CartItem, Product

SESSION_KEY = "cart"


def cart_of(request: HttpRequest) -> Cart | None:
    """The visitor's open cart, if there is one."""
    return _remembered(request, Cart.objects.open())


def locked_cart_of(request: HttpRequest) -> Cart | None:
    """The same, locked until the transaction ends: nobody else adds to it or buys it meanwhile."""
    return _remembered(request, Cart.objects.select_for_update().open())


def _remembered(request: HttpRequest, carts: QuerySet[Cart]) -> Cart | None:
    cart_id: str | None = request.session.get(SESSION_KEY)
    return carts.filter(pk=cart_id).first() if cart_id else None


def remember(request: HttpRequest, cart: Cart) -> None:
    """From now on this is the visitor's cart."""
    request.session[SESSION_KEY] = str(cart.pk)


def forget(request: HttpRequest) -> None:
    """The visitor starts over with no cart."""
    request.session.pop(SESSION_KEY, None)


def put(product: Product, cart: Cart) -> None:
    """One more of the product in the cart, at today's price. The cart is locked."""
    same = CartItem.objects.filter(cart=cart, product=product)
    if not same.update(quantity=F("quantity") + 1, price=product.price):
        CartItem.objects.create(cart=cart, product=product, price=product.price)


def known_email(request: HttpRequest, cart: Cart | None) -> str:
    """How to reach the visitor: the account's address, else the cart's, else an empty string."""
    if request.user.is_authenticated and request.user.email:
        return request.user.email
    return cart.email if cart else ""


def context(request: HttpRequest) -> dict[str, Any]:
    """For every page: how many things are in the cart."""
    cart = cart_of(request)
    return {"cart_count": cart.count() if cart else 0}
