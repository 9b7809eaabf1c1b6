"""Expenses, and who decided on them."""

from __future__ import annotations

from django.db import models, transaction

from durable_flows import send


class Expense(models.Model):
    """What somebody wants back."""

    email = models.EmailField()
    amount = models.PositiveIntegerField()
    decision = models.CharField(max_length=10, blank=True)
    decided_by = models.CharField(max_length=150, blank=True)
    paid = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"expense {self.pk} of {self.amount}"

    @transaction.atomic
    def file(self) -> None:
        """Hand it in: the row and the event are one commit."""
        self.save()
        facts = {"expense_id": self.pk, "email": self.email, "amount": self.amount}
        send("expense/filed", facts)

    @transaction.atomic
    def decide(self, decision: str, by: str) -> bool:
        """Approve or decline it; whoever is first decides. Returns whether it was decided by this."""
        undecided = Expense.objects.filter(pk=self.pk, decision="")
        if not undecided.update(decision=decision, decided_by=by):
            return False
        send("expense/decided", {"expense_id": self.pk})
        return True
