"""Customers."""

from __future__ import annotations

from django.contrib import admin

from example_project.gather.models import Customer

admin.site.register(Customer)
