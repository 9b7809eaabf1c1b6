"""The words in which the rest of the package asks for rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db import models

from durable_flows.rules.states import RunState

if TYPE_CHECKING:
    from durable_flows.models import Run, Wait  # noqa: F401


class RunQuerySet(models.QuerySet["Run"]):
    """Words for runs."""

    def unfinished(self) -> Self:
        """Runs that have not ended."""
        return self.filter(state__in=[RunState.QUEUED, RunState.STARTED])


class WaitQuerySet(models.QuerySet["Wait"]):
    """Words for waits."""

    def pending(self) -> Self:
        """Waits that nothing has ended yet."""
        return self.filter(settled_at__isnull=True)
