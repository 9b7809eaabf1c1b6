"""From the expense to the money, by way of a person."""

from __future__ import annotations

from django.core.mail import send_mail

from durable_flows import Decision, Event, Step, flow
from example_project.approvals.models import Expense

SMALL = 50
MANAGER, BOARD = "manager@approvals.example", "board@approvals.example"


@flow("settle-expense", on="expense/filed")
def settle_expense(event: Event, step: Step) -> str:
    """Small ones are paid at once, others when a person has approved them."""
    expense_id, amount = event.data["expense_id"], event.data["amount"]
    if amount > SMALL:
        decision = ask_people(step, f"Pay {amount} to {event.data['email']}?")
        verdict = "approved" if decision and decision.approved else "declined"
        by = decision.by if decision else "nobody"
        step.run("note", note, expense_id, verdict, by, atomic=True)
        step.run("tell", mail, event.data["email"], f"Your expense was {verdict}")
        if verdict == "declined":
            return verdict
    step.run("pay", pay, expense_id, atomic=True)
    return "paid"


def ask_people(step: Step, question: str) -> Decision | None:
    """What they have decided; None if nobody has."""
    for who, patience in ((MANAGER, "3 days"), (BOARD, "4 days")):
        step.run("ask", mail, who, question)
        decision = step.wait_for_approval(
            "decision", timeout=patience, question=question, permission="approvals.change_expense"
        )
        if decision:
            return decision
    return None


def note(expense_id: str, decision: str, by: str) -> None:
    Expense.objects.filter(pk=expense_id).update(decision=decision, decided_by=by)


def pay(expense_id: str) -> None:
    Expense.objects.filter(pk=expense_id).update(paid=True)


def mail(to: str, subject: str) -> int:
    return send_mail(subject, "", None, [to])
