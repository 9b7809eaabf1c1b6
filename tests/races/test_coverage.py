"""No statement of the engine that writes or locks is left out of the races."""

from __future__ import annotations

import pytest

from durable_flows.registry import registry
from tests.races.company import Company
from tests.races.explorer import Explorer
from tests.races.scenarios import ALL
from tests.races.statements import Sent, Site, writing

#: Places that race against nobody, and why.
ALONE = {
    ("leases.py", "move"): "moves leases along with the clock of a test",
}
ORDERS = 8  # of each scenario, in a round: most of what is sent is soon known
ROUNDS = 6  # at most: what only a rare order sends comes in a later one


def test_the_sources_are_read_with_all_ways_to_write() -> None:
    found = {(site.file, site.function) for site in writing()}
    assert {
        ("claim.py", ""),  # a constant
        ("settle.py", "lock_due"),  # a text in the call, that locks
        ("cancel.py", "_mark_cancelling"),  # a text with holes
        ("admit.py", "_insert_runs"),  # sql.insert
        ("leases.py", "move"),  # Django's
    } <= found


@pytest.mark.two_writers
@pytest.mark.races
def test_every_statement_that_writes_or_locks_is_in_some_race(company: Company) -> None:
    sent = Sent()
    for seed in range(1, ROUNDS + 1):
        for recipe in ALL.values():
            with registry.isolated():
                Explorer(company, recipe(), seen=sent.see).some(ORDERS, seed=seed)
        if not (left_out := _unsent(sent)):
            break
    assert not left_out, "in no race: " + ", ".join(str(site) for site in left_out)


def _unsent(sent: Sent) -> list[Site]:
    return [site for site in writing() if not sent.has(site) and not _is_alone(site)]


def _is_alone(site: Site) -> bool:
    return (site.file, site.function) in ALONE
