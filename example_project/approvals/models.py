"""Expenses, and who decided on them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from django.db import models, transaction

from durable_flows import decide, send
from durable_flows.models import Approval


class Expense(models.Model):
    """What somebody wants back."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    event_id = models.UUIDField(editable=False, help_text="What has started its flow.")
    email = models.EmailField()
    amount = models.PositiveIntegerField()
    decision = models.CharField(max_length=10, blank=True)
    decided_by = models.CharField(max_length=150, blank=True)
    paid = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.amount} for {self.email}"

    @transaction.atomic
    def file(self) -> None:
        """Hand it in: the row and the event are one commit."""
        facts = {"expense_id": str(self.pk), "email": self.email, "amount": self.amount}
        (self.event_id,) = send("expense/filed", facts)
        self.save()

    def decide(self, approved: bool, by: Any) -> None:
        """Say what the flow that it has started waits for.

        Raises:
            Approval.DoesNotExist: nobody waits for a decision, or not any more.
            NotAllowed, ApprovalClosed: as `durable_flows.decide` does.
        """
        approval = Approval.objects.pending().get(run__event_id=self.event_id)
        decide(approval.pk, approved, by=by)
