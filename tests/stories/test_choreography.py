"""A chain of flows: each reacts to the one before."""

from __future__ import annotations

import pytest
from django.core import mail

from durable_flows.testing import crash_after, drain, run_of, send, sent

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]

CHAIN = ("choir/singer.joined", "choir/welcome.wanted", "choir/singer.greeted")


def subjects() -> list[str]:
    return [str(message.subject) for message in mail.outbox]


def test_every_link_passes_on_to_the_next() -> None:
    send("choir/singer.joined", {"email": "greta@choir.example"})
    drain()
    assert [len(sent(name)) for name in CHAIN] == [1, 1, 1]
    assert subjects() == ["Welcome to the choir", "Where to find your scores"]


def test_a_worker_that_dies_at_a_link_passes_on_once() -> None:
    send("choir/singer.joined", {"email": "greta@choir.example"})
    with crash_after("pass-on", times=2) as crash:
        for _ in range(3):
            drain()
    assert crash.count == 2
    assert [len(sent(name)) for name in CHAIN] == [1, 1, 1]


def test_where_the_chain_breaks_the_office_is_told_and_nothing_follows() -> None:
    send("choir/singer.joined", {"email": "hanno"})
    drain()
    (message,) = mail.outbox
    assert message.to == ["office@choir.example"]
    assert message.subject == "Not greeted: hanno (hanno is no address)"
    (wanted,) = sent("choir/welcome.wanted")
    failed = run_of(wanted.public_id)
    assert (failed.state, failed.error["step"]) == ("failed", "send-mail")
    assert not sent("choir/singer.greeted")
