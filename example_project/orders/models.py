"""The warehouse, the orders, and the bank's books."""

from __future__ import annotations

from django.db import models

from durable_flows import FlowSubject, model_event


class Stock(models.Model):
    """How much there is of something."""

    item = models.CharField(max_length=40, unique=True)
    available = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.available} × {self.item}"


# Whoever changes a shelf need not think of those who want to know: the row tells of it.
model_event(Stock, on="updated", fields=["item", "available"], name="stock/{verb}")


class Order(FlowSubject):
    """What somebody wants. It stays as long as somebody works on it."""

    flow_runs_on_delete = "protect"

    email = models.EmailField()
    item = models.CharField(max_length=40)
    quantity = models.PositiveIntegerField()
    total = models.PositiveIntegerField()
    address = models.CharField(max_length=80, blank=True)
    reserved = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"order {self.pk}"


class Charge(models.Model):
    """A line in the books of the bank, which carries out each key once."""

    key = models.CharField(max_length=40, unique=True)
    amount = models.PositiveIntegerField()
    refunded = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.key}: {self.amount}{' refunded' if self.refunded else ''}"
