"""What the stories about the shop share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable_flows.registry import registry
from durable_flows.rules import clock


@pytest.fixture
def shop_flows() -> Iterator[None]:
    """Let the shop's flows listen."""
    from example_project.shop import flows

    with registry.isolated():
        registry.add(flows.cart_abandonment)
        registry.add(flows.activation_email)
        yield


@pytest.fixture
def own_clock() -> Iterator[None]:
    """The test may move the clock."""
    yield
    clock.reset()
