"""From the expense to the money, by way of a person."""

from __future__ import annotations

from django.core.mail import send_mail

from durable_flows import Event, Step, flow
from example_project.approvals.models import Expense

SMALL = 50
MANAGER, BOARD = "manager@approvals.example", "board@approvals.example"


@flow("settle-expense", on="expense/filed")
def settle_expense(event: Event, step: Step) -> str:
    """Small ones are paid at once, others when a person has approved them."""
    expense_id = event.data["expense_id"]
    if event.data["amount"] > SMALL:
        decision = ask_people(step, expense_id)
        step.run("tell", mail, event.data["email"], f"Your expense was {decision}")
        if decision != "approved":
            return decision
    step.run("pay", pay, expense_id, atomic=True)
    return "paid"


def ask_people(step: Step, expense_id: int) -> str:
    """What they have decided, or that nobody has."""
    for who, patience in ((MANAGER, "3 days"), (BOARD, "4 days")):
        step.run("ask", mail, who, f"Please decide on expense {expense_id}")
        if step.wait_for_event(
            "decided", event="expense/decided", match="data.expense_id", timeout=patience
        ):
            break
    # The row tells, not the event: whoever decides in the very last moment has decided.
    return step.run("close", close, expense_id, atomic=True)


def close(expense_id: int) -> str:
    undecided = Expense.objects.filter(pk=expense_id, decision="")
    undecided.update(decision="declined", decided_by="nobody")
    return Expense.objects.get(pk=expense_id).decision


def pay(expense_id: int) -> None:
    Expense.objects.filter(pk=expense_id).update(paid=True)


def mail(to: str, subject: str) -> int:
    return send_mail(subject, "", None, [to])
