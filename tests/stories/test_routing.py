"""Events find their flows: by type and by what they say."""

from __future__ import annotations

import pytest

from durable_flows.testing import drain, runs_of, send
from example_project.routing.models import Contact, Entry

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]

PLAIN = {"order": 1, "total": 80, "first_order": False, "gift": False}


def journal(desk: str) -> list[str]:
    return list(Entry.objects.filter(desk=desk).order_by("pk").values_list("about", flat=True))


def test_one_flow_follows_a_person_through_all_its_events() -> None:
    send("people/created", {"id": "7", "name": "Ivo"})
    drain()
    assert Contact.objects.get().name == "Ivo"
    send("people/renamed", {"id": "7", "name": "Ivo II"})
    drain()
    assert Contact.objects.get().name == "Ivo II"
    send("people/deleted", {"id": "7"})
    drain()
    assert not Contact.objects.exists()


def test_a_wildcard_hears_what_nobody_has_thought_of() -> None:
    event = send("people/praised", {"id": "7"})
    drain()
    assert [run.flow for run in runs_of(event)] == ["keep-journal"]
    assert journal("journal") == ["people/praised 7"]


@pytest.mark.parametrize(
    ("facts", "desk"),
    [
        ({"total": 10_001, "first_order": True}, "approval"),
        ({"total": 10_000, "first_order": True}, "verification"),
        ({"total": 10_000}, "standard"),
    ],
)
def test_an_order_finds_its_desk(facts: dict[str, object], desk: str) -> None:
    send("desk/order.placed", {**PLAIN, **facts})
    drain()
    assert journal(desk) == ["order 1"]
    assert Entry.objects.count() == 1


def test_a_condition_lets_only_its_orders_start_a_run() -> None:
    plain = send("desk/order.placed", PLAIN)
    gift = send("desk/order.placed", {**PLAIN, "order": 2, "gift": True})
    drain()
    assert [run.flow for run in runs_of(plain)] == ["route-order"]
    assert [run.flow for run in runs_of(gift)] == ["route-order", "wrap-gift"]
    assert journal("wrapping") == ["order 2"]
