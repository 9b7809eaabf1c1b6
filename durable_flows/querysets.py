"""The words in which the rest of the package asks for rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db import models

from durable_flows.rules.selection import Selection
from durable_flows.rules.states import RunState

if TYPE_CHECKING:
    from durable_flows.models import Approval, Run, Wait  # noqa: F401


class RunQuerySet(models.QuerySet["Run"]):
    """Words for runs."""

    def unfinished(self) -> Self:
        """Runs that have not ended."""
        return self.filter(state__in=[RunState.QUEUED, RunState.STARTED])

    def selected(self, selection: Selection) -> Self:
        """Runs that fit, as far as their columns say."""
        named = {
            "flow": selection.flow,
            "state__in": selection.states,
            "created_at__gte": selection.after,
            "created_at__lt": selection.before,
            "reason__contains": selection.reason_contains,
        }
        return self.filter(**{name: value for name, value in named.items() if value})


class ApprovalQuerySet(models.QuerySet["Approval"]):
    """Words for approvals."""

    def pending(self) -> Self:
        """Approvals that nobody has decided yet, and that are still waited for."""
        from durable_flows.models import Wait

        return self.filter(pk__in=Wait.objects.pending().values("pk"))


class WaitQuerySet(models.QuerySet["Wait"]):
    """Words for waits."""

    def pending(self) -> Self:
        """Waits that nothing has ended yet."""
        return self.filter(settled_at__isnull=True)
