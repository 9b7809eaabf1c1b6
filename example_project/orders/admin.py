"""Warehouse, orders and the bank's books."""

from __future__ import annotations

from django.contrib import admin

from durable_flows.admin import FlowRunsMixin
from example_project.orders.models import Charge, Order, Stock

admin.site.register([Stock, Charge])


@admin.register(Order)
class OrderAdmin(FlowRunsMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    """Orders, and what is done about them."""

    list_display = ["__str__", "email", "item", "quantity", "reserved"]
