"""Warehouse, orders and the bank's books."""

from __future__ import annotations

from django.contrib import admin

from example_project.orders.models import Charge, Order, Stock

admin.site.register([Stock, Order, Charge])
