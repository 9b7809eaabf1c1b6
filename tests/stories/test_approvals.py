"""A person decides, in the admin, or nobody does."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client
from django.urls import reverse

from durable_flows.errors import NotAllowed
from durable_flows.models import Approval
from durable_flows.testing import RunView, advance, drain, run_of, sent
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
    return [message.to[0] for message in mail.outbox if message.subject.startswith("Pay")]


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
    assert "51 for nora@approvals.example is decided." in act(admin_client, action, expense)
    drain()
    expense.refresh_from_db()
    assert (the_run().result, expense.paid, expense.decided_by) == (result, paid, "admin")


def test_whoever_may_not_change_expenses_decides_nothing(client: Client) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    client.force_login(user)
    expense = file(51)
    drain()
    act(client, "approve", expense)
    with pytest.raises(NotAllowed):
        expense.decide(True, by=user)
    drain()
    assert the_run().activity == "waiting"


def test_whoever_is_second_decides_nothing(admin_client: Client) -> None:
    expense = file(51)
    drain()
    expense.decide(False, by="the manager")
    assert "is decided already." in act(admin_client, "approve", expense)
    drain()
    assert the_run().result == "declined"
    assert "is decided already." in act(admin_client, "approve", expense)


def test_after_three_days_the_board_is_asked_and_after_seven_nobody_any_more() -> None:
    expense = file(51)
    advance("3 days")
    assert asked() == ["manager@approvals.example", "board@approvals.example"]
    advance("4 days")
    assert the_run().result == "declined"
    expense.refresh_from_db()
    assert (expense.decided_by, expense.paid) == ("nobody", False)
    with pytest.raises(Approval.DoesNotExist):
        expense.decide(True, by="the board")


def test_a_decision_of_the_last_moment_counts_though_it_is_carried_out_later() -> None:
    expense = file(51)
    advance("6 days 23h")
    expense.decide(True, by="the board")
    advance("2h", play=False)
    drain()
    expense.refresh_from_db()
    assert (the_run().result, expense.paid) == ("paid", True)
