"""Fourteen days on trial, with the clock moved."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core import mail

from durable_flows.testing import RunView, advance, crash_after, drain, run_of, send, sent
from example_project.onboarding.models import Account, Tracked, Workspace
from example_project.onboarding.story import sign_up

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def subjects() -> list[str]:
    return [str(message.subject) for message in mail.outbox]


def run_on(event_name: str, flow: str) -> RunView:
    (event,) = sent(event_name)
    return run_of(event.public_id, flow)


def test_signing_up_makes_account_workspace_and_defaults_and_starts_the_trial() -> None:
    user_id = sign_up("Ada")
    account = Account.objects.get(user_id=user_id)
    workspace = Workspace.objects.get(account=account)
    assert workspace.name == "Ada's workspace"
    assert workspace.settings == {"project": "First steps", "notifications": "weekly"}
    trial = run_on("user/trial.started", "manage-trial")
    assert trial.wake_at is not None
    assert abs(trial.wake_at + timedelta(days=7) - account.trial_ends_at) < timedelta(minutes=1)


def test_a_worker_that_dies_while_provisioning_makes_nothing_twice() -> None:
    for step in ("create-account", "create-workspace", "start-trial"):
        with crash_after(step) as crash:
            sign_up("Ada")
        assert crash.happened
        drain()
    assert Account.objects.count() == Workspace.objects.count() == 3
    assert len(sent("user/trial.started")) == 3


def test_the_same_sign_up_sent_twice_is_one() -> None:
    user_id = sign_up("Ada")
    facts = {"user_id": user_id, "email": "a@b.example", "name": "Ada", "plan": "pro"}
    send("user/signup.completed", facts, id=f"signup-{user_id}")
    drain()
    assert subjects() == ["Welcome aboard", "Is this your address?"]


def test_the_welcome_goes_out_though_the_account_cannot_be_made() -> None:
    Account.objects.create(user_id="7", email="x@y.example", trial_ends_at="2026-01-01T00:00Z")
    facts = {"user_id": "7", "email": "ada@b.example", "name": "Ada", "plan": "pro"}
    event = send("user/signup.completed", facts)
    drain()
    welcome = run_of(event, "send-welcome-mail")
    assert welcome.state == "completed"
    assert welcome.result["to"] == "ada@b.example"
    assert "pro plan" in mail.outbox[0].body
    assert Tracked.objects.get().user_id == "7"
    assert run_of(event, "provision-account").attempts == {"create-account": 1}


def test_a_trial_reminds_on_day_7_and_13_and_ends_on_day_14() -> None:
    user_id = sign_up("Ada")
    advance("25h")
    mail.outbox.clear()
    advance("6 days")
    assert subjects() == ["You are halfway through your trial"]
    advance("6 days")
    assert subjects()[1:] == ["Your trial ends tomorrow"]
    assert Account.objects.get(user_id=user_id).plan == "pro"
    advance("1 day")
    assert subjects()[2:] == ["You are on the free plan now"]
    assert Account.objects.get(user_id=user_id).plan == "free"
    trial = run_on("user/trial.started", "manage-trial")
    assert trial.result == {"user_id": user_id, "converted": False}


@pytest.mark.parametrize("day", [1, 8, 13])
def test_a_subscription_ends_the_trial_wherever_it_is(day: int) -> None:
    user_id, other = sign_up("Ada"), sign_up("Bob")
    advance(f"{day} days")
    Account.objects.get(user_id=user_id).subscribe("sub-1")
    drain()
    told = [message for message in mail.outbox if message.to == ["ada@onboarding.example"]]
    advance("20 days")
    after = [message for message in mail.outbox if message.to == ["ada@onboarding.example"]]
    assert len(after) == len(told)
    plans = Account.objects.in_bulk([user_id, other], field_name="user_id")
    assert (plans[user_id].plan, plans[other].plan) == ("pro", "free")
    assert [run_of(e.public_id).state for e in sent("user/trial.started")] == [
        "cancelled",
        "completed",
    ]


def test_who_subscribes_between_the_question_and_the_end_keeps_the_plan() -> None:
    user_id = sign_up("Ada")
    advance("13 days")
    advance("1 day", play=False)
    with crash_after("check-subscription") as crash:
        drain()
    assert crash.happened
    Account.objects.filter(user_id=user_id).update(subscription_id="sub-1")  # its event is late
    drain()
    assert run_on("user/trial.started", "manage-trial").step("downgrade-to-free").state == "done"
    assert Account.objects.get(user_id=user_id).plan == "pro"


def test_an_address_that_is_confirmed_within_a_day_opens_everything() -> None:
    user_id, other = sign_up("Ada"), sign_up("Bob")
    advance("23h")
    send("user/email.verified", {"user_id": user_id})
    advance("2h")
    assert Account.objects.get(user_id=user_id).full_access
    assert not Account.objects.get(user_id=other).full_access
    reminded = [m.to for m in mail.outbox if m.subject == "Please confirm your address"]
    assert reminded == [["bob@onboarding.example"]]
