"""No order of the statements breaks a promise, and without its protection some order does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from durable_flows.registry import registry
from tests.races.company import Company
from tests.races.explorer import Exploration, Explorer
from tests.races.scenarios import ALL

pytestmark = [pytest.mark.two_writers, pytest.mark.races]

THOROUGH = os.environ.get("DURABLE_FLOWS_RACES") == "all"
FEW = 15  # orders where there is no time for more
ENOUGH = 40  # orders after which a twin that was caught is believed
MOST = 1_500  # orders after which a twin is given up
SEED = 20261121

Tell = Callable[[str, object], None]


def _twins() -> list[Any]:
    found = []
    for name, recipe in ALL.items():
        with registry.isolated():  # it declares flows
            twins = recipe().twins
        for number, twin in enumerate(twins):
            found.append(pytest.param(name, number, id=f"{name}, without {twin.without}"))
    return found


@pytest.mark.parametrize("name", ALL)
def test_no_order_of_statements_breaks_it(
    name: str, company: Company, record_property: Tell
) -> None:
    scenario = ALL[name]()
    explorer = Explorer(company, scenario)
    samples = scenario.sampled if THOROUGH else FEW
    found = explorer.some(samples, seed=SEED) if samples else explorer.all()
    if THOROUGH:
        record_property("race", f"{name}: {found}")
    assert not found.bad, found.bad[0].told(scenario)
    if THOROUGH:
        assert scenario.outcomes <= set(found.outcomes), "this was no race"


@pytest.mark.skipif(not THOROUGH, reason="looks for orders that are rare")
@pytest.mark.parametrize(("name", "number"), _twins())
def test_without_its_protection_some_order_breaks_it(
    name: str, number: int, company: Company, record_property: Tell
) -> None:
    scenario = ALL[name]()
    twin = scenario.twins[number]

    def is_caught(found: Exploration) -> bool:
        return bool(found.bad) and found.schedules >= ENOUGH

    def is_over(found: Exploration) -> bool:
        return is_caught(found) or found.schedules >= MOST

    explorer = Explorer(company, scenario, twin)
    found = Exploration()
    if scenario.sampled:
        found = explorer.some(scenario.sampled, seed=SEED, until=is_caught)
    if not found.bad:  # chance seldom finds an order in which much must come first
        found = explorer.all(until=is_over)
    record_property("race", f"{name}, without {twin.without}: {found}")
    assert found.bad, "nothing was caught"
