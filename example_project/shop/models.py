"""What the shop knows. Customers are Django's own users; a visitor has only a cart."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse


class Product(models.Model):
    """Something on the shelf."""

    name = models.CharField(max_length=80)
    slug = models.SlugField(max_length=80, unique=True)
    summary = models.CharField(max_length=160)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    picture = models.CharField(
        max_length=120, blank=True, help_text="Path of a static file, e.g. shop/products/mug.svg"
    )
    position = models.PositiveSmallIntegerField(default=0, help_text="Low numbers come first.")

    class Meta:
        ordering = ["position", "name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(price__gte=0), name="shop_product_price_not_negative"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class CartQuerySet(models.QuerySet["Cart"]):
    """Words about carts."""

    def open(self) -> CartQuerySet:
        """Carts that nobody has bought yet."""
        return self.filter(bought_at=None)


class Cart(models.Model):
    """What a visitor has picked. Its id is random, so knowing it is enough to pick it up again."""

    cart_id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField()
    created_at = models.DateTimeField(auto_now_add=True)
    bought_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = CartQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"cart of {self.email}"

    def count(self) -> int:
        """How many things are in it."""
        return sum(self.items.values_list("quantity", flat=True))

    def total(self) -> Decimal:
        """What they cost together."""
        return sum((item.cost() for item in self.items.all()), Decimal("0.00"))


class CartItem(models.Model):
    """A product in a cart, at the price it had when it was put there."""

    cart = models.ForeignKey(Cart, on_delete=models.CASCADE, related_name="items")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    quantity = models.PositiveIntegerField(default=1)
    price = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["cart", "product"], name="shop_cartitem_once_a_cart"),
            models.CheckConstraint(condition=Q(quantity__gte=1), name="shop_cartitem_quantity"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product}"

    def cost(self) -> Decimal:
        """Price times quantity."""
        return self.quantity * self.price


class Order(models.Model):
    """A cart that was bought."""

    order_id = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    cart = models.OneToOneField(Cart, on_delete=models.PROTECT, related_name="order")
    email = models.EmailField()
    total = models.DecimalField(max_digits=10, decimal_places=2)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"order {self.pk}"

    def get_absolute_url(self) -> str:
        """The confirmation page."""
        return reverse("shop:order", args=[self.order_id])


class Post(models.Model):
    """A note that a customer wrote for the others."""

    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="posts"
    )
    title = models.CharField(max_length=120)
    body = models.TextField(max_length=5000)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return self.title
