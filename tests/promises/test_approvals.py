"""Approvals: a wait that a person ends, who may, by a decision that stands."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from django import forms
from django.contrib.auth.models import Permission, User
from django.db import transaction

from durable_flows import Decision, cancel, decide, flow
from durable_flows.errors import ApprovalClosed, InvalidDecision, NotAllowed, UnknownApproval
from durable_flows.models import Approval
from durable_flows.rules import clock
from durable_flows.testing import advance, crash_at, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db


class RefundForm(forms.Form):
    amount = forms.IntegerField(max_value=100)
    on = forms.DateField(required=False)


@pytest.fixture
def seen() -> list[Any]:
    return []


@pytest.fixture
def refund(seen):
    """A flow that asks whether to refund, with what is asked of people."""

    def declare(**asked: Any) -> None:
        @flow("refund", on="go")
        def handler(step):
            found = step.wait_for_approval("refund", timeout="7 days", **asked)
            seen.append(found)
            return found and found.approved

    return declare


def user(name: str, *permissions: str) -> User:
    made = User.objects.create_user(name)
    for codename in permissions:
        made.user_permissions.add(Permission.objects.get(codename=codename))
    return User.objects.get(pk=made.pk)


def test_a_run_waits_until_somebody_approves(refund, seen):
    refund(question="Refund 12.50?")
    run = played()
    asked = Approval.objects.pending().get()
    assert (asked.question, asked.key, str(asked.run_id)) == ("Refund 12.50?", "refund", run.id)
    decide(asked.pk, True, by=user("ada"), comment="fine")
    drain()
    assert again(run).result is True
    assert seen == [Decision(approved=True, by="ada", at=seen[0].at, comment="fine", data={})]
    assert abs(seen[0].at - clock.now()) < timedelta(minutes=1)
    assert not Approval.objects.pending().exists()


def test_or_rejects(refund):
    refund()
    run = played()
    decide(Approval.objects.get().pk, False, by="the night shift")
    drain()
    assert again(run).result is False


def test_after_the_timeout_there_is_no_decision(refund):
    refund()
    run = played()
    advance("7 days")
    assert again(run).result is None
    with pytest.raises(ApprovalClosed, match="was to be decided by"):
        decide(Approval.objects.get().pk, True, by="late")


def test_a_decision_is_part_of_the_callers_transaction(refund):
    refund()
    run = played()
    with transaction.atomic():
        decide(Approval.objects.get().pk, True, by="ada")
        transaction.set_rollback(True)
    drain()
    assert again(run).state == "started"
    decide(Approval.objects.get().pk, True, by="ada")
    drain()
    assert again(run).result is True


def test_of_two_decisions_the_first_one_stands(refund):
    refund()
    run = played()
    asked = Approval.objects.get()
    decide(asked.pk, True, by="ada")
    with pytest.raises(ApprovalClosed, match="decided by somebody else"):
        decide(asked.pk, False, by="bob")
    drain()
    assert again(run).result is True
    with pytest.raises(ApprovalClosed, match="has been decided"):
        decide(asked.pk, False, by="bob")


def test_who_lacks_the_permission_may_not(refund):
    refund(permission="durable_flows.cancel_run")
    played()
    asked = Approval.objects.get()
    with pytest.raises(NotAllowed, match=r"bob needs the permission 'durable_flows\.cancel_run'"):
        decide(asked.pk, True, by=user("bob"))
    decide(asked.pk, True, by=user("ada", "cancel_run"))


def test_who_is_not_among_the_assignees_may_not(refund):
    refund(assignees=["ada", "cid"])
    played()
    asked = Approval.objects.get()
    with pytest.raises(NotAllowed, match="bob is not among those who decide"):
        decide(asked.pk, True, by=user("bob"))
    decide(asked.pk, True, by=user("cid"))


def test_a_form_is_filled_in_and_its_data_come_with_the_decision(refund, seen):
    refund(form=RefundForm)
    played()
    asked = Approval.objects.get()
    with pytest.raises(InvalidDecision) as refused:
        decide(asked.pk, True, by="ada", data={"amount": 101})
    assert refused.value.errors == {"amount": ["Ensure this value is less than or equal to 100."]}
    decide(asked.pk, True, by="ada", data={"amount": "99", "on": date(2026, 1, 2)})
    drain()
    assert seen[0].data == {"amount": 99, "on": "2026-01-02"}


def test_a_rejection_needs_no_form(refund, seen):
    refund(form=f"{__name__}.RefundForm")
    played()
    decide(Approval.objects.get().pk, False, by="ada")
    drain()
    assert (seen[0].approved, seen[0].data) == (False, {})


def test_data_without_a_form_are_refused(refund):
    refund()
    played()
    with pytest.raises(InvalidDecision, match="has no form"):
        decide(Approval.objects.get().pk, True, by="ada", data={"amount": 1})


def test_a_run_that_has_ended_asks_no_more(refund):
    refund()
    run = played()
    cancel(run.id)
    drain()
    assert not Approval.objects.pending().exists()
    with pytest.raises(ApprovalClosed, match="went on without"):
        decide(Approval.objects.get().pk, True, by="ada")


@pytest.mark.parametrize("id", ["x", "01a1fedf-7e2f-8879-8926-02bee0c34c06"])
def test_an_unknown_approval_is_a_named_error(id):
    with pytest.raises(UnknownApproval, match=id):
        decide(id, True, by="ada")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"permission": "cancel_run"}, "permission= is 'app_label.codename'"),
        ({"assignees": "ada"}, "assignees= is a list of user names"),
        ({"form": "nowhere.Form"}, "cannot"),
        ({"form": "datetime.date"}, "form= is a form of Django's"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(asked, message, refund):
    refund(**asked)
    run = played()
    advance("1 day")
    assert message in again(run).reason
    assert not Approval.objects.exists()


@pytest.mark.parametrize("place", ["signature_written", "wait_registered"])
def test_a_worker_that_dies_while_it_asks_asks_once(place, refund):
    refund()
    with crash_at(place) as crash:
        run = played()
        advance("1m")
    assert crash.happened
    decide(Approval.objects.get().pk, True, by="ada")
    drain()
    assert again(run).result is True


def test_a_race_that_is_decided_otherwise_asks_no_more():
    @flow("refund", on="go")
    async def refund(step):
        found = await step.race(
            step.later.wait_for_approval("boss", timeout="7 days"),
            step.later.sleep("patience", "1 day"),
        )
        await step.sleep("on", "1 day")
        return found

    run = played()
    assert Approval.objects.pending().count() == 1
    advance("1 day")
    assert Approval.objects.pending().count() == 0
    advance("1 day")
    assert again(run).state == "completed"
