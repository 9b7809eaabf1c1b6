"""The words in which the rest of the package asks for rows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Self

from django.db import models

from durable_flows.rules.states import RunState

if TYPE_CHECKING:
    from durable_flows.models import Event, Run, Wait  # noqa: F401


class EventQuerySet(models.QuerySet["Event"]):
    """Words for events."""

    def unrouted(self, now: datetime) -> Self:
        """Events whose time has come and that still ask for something, in order of delivery."""
        return self.filter(routed_at__isnull=True, deliver_at__lte=now).order_by(
            "deliver_at", "arrival"
        )


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
