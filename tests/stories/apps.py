"""The example shop as an app of the test suite, and the small apps beside it."""

from __future__ import annotations

import importlib

from django.conf import settings

from durable_flows.registry import registry
from example_project.shop.apps import ShopConfig


class ShopWithoutFlows(ShopConfig):
    """The shop's pages and tables. Its flows listen only in tests that ask for ``shop_flows``.

    So do those of the small apps, with ``example_flows``. Other tests send events of the same names.
    It stands before ``durable_flows`` in INSTALLED_APPS, whose discovery then finds the flows'
    modules imported already, and registers nothing.
    """

    def ready(self) -> None:
        with registry.isolated():
            for app in ("example_project.shop", *settings.STORIES):
                importlib.import_module(f"{app}.flows")
