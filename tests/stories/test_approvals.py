"""A person decides, in the admin, or nobody does."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client
from django.urls import reverse

from durable_flows.testing import RunView, advance, crash_after, drain, run_of, sent
from example_project.approvals.models import Expense
from example_project.approvals.story import file

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def the_run() -> RunView:
    (event,) = sent("expense/filed")
    return run_of(event.public_id)


def asked() -> list[str]:
    return [message.to[0] for message in mail.outbox if "decide" in message.subject]


def act(client: Client, action: str, *expenses: Expense) -> str:
    url = reverse("admin:approvals_expense_changelist")
    facts = {"action": action, "_selected_action": [expense.pk for expense in expenses]}
    return str(client.post(url, facts, follow=True).content.decode())


def test_a_small_expense_is_paid_without_a_word() -> None:
    expense = file(50)
    drain()
    expense.refresh_from_db()
    assert (expense.paid, the_run().result, mail.outbox) == (True, "paid", [])


@pytest.mark.parametrize(
    ("action", "result", "paid"), [("approve", "paid", True), ("decline", "declined", False)]
)
def test_a_person_decides_in_the_admin(
    admin_client: Client, action: str, result: str, paid: bool
) -> None:
    expense = file(51)
    advance("2 days")
    assert (the_run().activity, asked()) == ("waiting", ["manager@approvals.example"])
    assert f"1 {action}" in act(admin_client, action, expense)
    drain()
    expense.refresh_from_db()
    assert (the_run().result, expense.paid, expense.decided_by) == (result, paid, "admin")


def test_whoever_may_not_change_expenses_decides_nothing(client: Client) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    client.force_login(user)
    expense = file(51)
    act(client, "approve", expense)
    expense.refresh_from_db()
    assert expense.decision == ""
    assert not sent("expense/decided")


def test_whoever_is_second_decides_nothing() -> None:
    expense = file(51)
    drain()
    assert expense.decide("declined", by="manager")
    assert not expense.decide("approved", by="board")
    drain()
    assert the_run().result == "declined"
    assert len(sent("expense/decided")) == 1


def test_after_three_days_the_board_is_asked_and_after_seven_nobody_any_more() -> None:
    expense = file(51)
    advance("3 days")
    assert asked() == ["manager@approvals.example", "board@approvals.example"]
    advance("4 days")
    assert the_run().result == "declined"
    expense.refresh_from_db()
    assert (expense.decided_by, expense.paid) == ("nobody", False)
    assert not expense.decide("approved", by="board")


def test_a_decision_in_the_last_moment_counts_though_its_event_is_late() -> None:
    expense = file(51)
    advance("3 days")
    advance("4 days", play=False)
    with crash_after("decided#2") as crash:
        drain()
    Expense.objects.update(decision="approved", decided_by="board")  # its event is on its way
    drain()
    expense.refresh_from_db()
    assert crash.happened
    assert (the_run().result, expense.paid) == ("paid", True)
