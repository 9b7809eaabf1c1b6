"""The shop as a Django app."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Slow Cupboard, the example shop."""

    name = "example_project.shop"
    label = "shop"
    verbose_name = "Shop"
