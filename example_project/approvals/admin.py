"""Where people decide."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from durable_flows.errors import ApprovalClosed
from durable_flows.models import Approval
from example_project.approvals.models import Expense


@admin.register(Expense)
class ExpenseAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Expenses, and two buttons for those who may change them."""

    list_display = ["__str__", "email", "decision", "decided_by", "paid"]
    list_filter = ["decision"]
    readonly_fields = ["decision", "decided_by", "paid"]
    actions = ["approve", "decline"]

    @admin.action(description="Approve selected expenses", permissions=["change"])
    def approve(self, request: HttpRequest, expenses: QuerySet[Expense]) -> None:
        self._decide(request, expenses, approved=True)

    @admin.action(description="Decline selected expenses", permissions=["change"])
    def decline(self, request: HttpRequest, expenses: QuerySet[Expense]) -> None:
        self._decide(request, expenses, approved=False)

    def _decide(self, request: HttpRequest, expenses: QuerySet[Expense], *, approved: bool) -> None:
        for expense in expenses:
            try:
                expense.decide(approved, by=request.user)
            except (Approval.DoesNotExist, ApprovalClosed):
                self.message_user(request, f"{expense} is decided already.", messages.WARNING)
            else:
                self.message_user(request, f"{expense} is decided.", messages.SUCCESS)
