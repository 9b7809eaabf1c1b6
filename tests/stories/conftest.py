"""What the stories about the example project share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable_flows.registry import registry
from durable_flows.rules import clock
from example_project.settings import STORIES


@pytest.fixture
def shop_flows() -> Iterator[None]:
    """Let the shop's flows listen."""
    from example_project.shop import flows

    with registry.isolated():
        registry.add(flows.cart_abandonment)
        registry.add(flows.activation_email)
        yield


@pytest.fixture
def example_flows(shop_flows: None) -> None:
    """Let the flows of all small apps listen, beside the shop's, as they do in the project."""
    from example_project.stories import flows_of

    for package in STORIES:
        for flow in flows_of(package):
            registry.add(flow)


@pytest.fixture
def own_clock() -> Iterator[None]:
    """The test may move the clock."""
    yield
    clock.reset()
