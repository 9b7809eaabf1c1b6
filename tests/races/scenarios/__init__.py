"""The races. Each function declares the flows of one and returns it."""

from __future__ import annotations

from tests.races.scenario import Recipe
from tests.races.scenarios import (
    approvals,
    branches,
    claims,
    commands,
    ends,
    events,
    families,
    maps,
    parking,
    purges,
    sagas,
    signals,
    steals,
    steering,
    tellings,
    waits,
)

ALL: dict[str, Recipe] = {
    recipe.__name__.replace("_", " "): recipe
    for module in (
        waits,
        claims,
        parking,
        steals,
        ends,
        families,
        maps,
        events,
        commands,
        branches,
        sagas,
        approvals,
        signals,
        steering,
        tellings,
        purges,
    )
    for recipe in module.RACES
}
