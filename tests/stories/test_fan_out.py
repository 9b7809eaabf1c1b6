"""One sign-up, four flows."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import mail

from durable_flows.testing import advance, drain, run_of, runs_of, send, sent
from example_project.fan_out.models import Preferences, SignUp

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]

DORA = {"member_id": "7", "email": "dora@club.example", "name": "Dora"}


def test_one_event_starts_four_flows_and_each_does_its_own() -> None:
    event = send("club/member.signed-up", {**DORA, "referred_by": "9"})
    drain()
    assert [(run.flow, run.state) for run in runs_of(event)] == [
        ("greet-member", "completed"),
        ("notify-board", "completed"),
        ("record-sign-up", "completed"),
        ("set-up-defaults", "completed"),
    ]
    told = {(message.to[0], message.subject) for message in mail.outbox}
    assert told == {
        ("dora@club.example", "Good to have you"),
        ("board@club.example", "Dora has joined"),
    }
    assert Preferences.objects.get().theme == "light"
    assert SignUp.objects.get().referred_by == "9"
    assert [event.data for event in sent("club/member.greeted")] == [{"member_id": "7"}]


def test_a_flow_that_fails_holds_up_no_other(settings: Any) -> None:
    settings.EMAIL_BACKEND = "no.such.Backend"
    event = send("club/member.signed-up", DORA)
    advance("1h")
    states = {run.flow: run.state for run in runs_of(event)}
    assert states == {
        "greet-member": "failed",
        "notify-board": "failed",
        "record-sign-up": "completed",
        "set-up-defaults": "completed",
    }
    assert not sent("club/member.greeted")
    assert Preferences.objects.exists()


def test_each_flow_is_tried_again_by_itself() -> None:
    in_the_way = Preferences.objects.create(member_id="7", theme="dark", notifications=False)
    event = send("club/member.signed-up", DORA)
    drain()
    assert run_of(event, "set-up-defaults").attempts == {"create-preferences": 1}
    in_the_way.delete()
    advance("1m")
    assert run_of(event, "set-up-defaults").state == "completed"
    assert len(mail.outbox) == 2
