"""One expense is too small to ask for; others are approved, declined by the board, and forgotten."""

from __future__ import annotations

from durable_flows.testing import advance
from example_project.approvals.models import Expense


def play() -> None:
    """Eight days with four expenses."""
    _, approved, declined, _ = (file(amount) for amount in (20, 120, 900, 80))
    advance("1 day")
    approved.decide(True, by="the manager")
    advance("4 days")
    declined.decide(False, by="the board")
    advance("3 days")


def file(amount: int) -> Expense:
    """What the page does that expenses are filed on."""
    expense = Expense(email="nora@approvals.example", amount=amount)
    expense.file()
    return expense


ENDED = [
    "settle-expense completed (pay)",
    "settle-expense completed (ask, decision, note, tell, pay)",
    *["settle-expense completed (ask, decision, ask#2, decision#2, note, tell)"] * 2,
]
