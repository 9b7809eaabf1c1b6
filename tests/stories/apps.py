"""The example shop as an app of the test suite."""

from __future__ import annotations

import importlib

from durable_flows.registry import registry
from example_project.shop.apps import ShopConfig


class ShopWithoutFlows(ShopConfig):
    """The shop's pages and tables. Its flows listen only in tests that ask for ``shop_flows``.

    Other tests send events of the same names. It stands before ``durable_flows`` in INSTALLED_APPS,
    whose discovery then finds the flows' module imported already, and registers nothing.
    """

    def ready(self) -> None:
        with registry.isolated():
            importlib.import_module("example_project.shop.flows")
