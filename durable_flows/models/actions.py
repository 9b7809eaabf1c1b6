"""What is done to many runs at once, piece by piece."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from durable_flows.models.choices import choices
from durable_flows.rules.states import BulkKind, BulkState


class BulkAction(models.Model):
    """The same command for all runs that fit. The ticks carry it out, a batch at a time."""

    id = models.UUIDField(primary_key=True, editable=False, help_text="That of its command.")
    kind = models.CharField(max_length=10, choices=choices(BulkKind))
    filters = models.TextField(help_text="JSON text: which runs.")
    reason = models.TextField(default="")
    created_by = models.TextField(default="", help_text="Who asks, for people.")
    rate = models.FloatField(null=True, help_text="Runs a second at most, on the average.")
    state = models.CharField(max_length=10, choices=choices(BulkState), default=BulkState.RUNNING)
    total = models.BigIntegerField(default=0, help_text="Runs that fitted, as far as counted.")
    counted = models.UUIDField(null=True, help_text="The last run that was counted; null: all are.")
    seen = models.BigIntegerField(default=0, help_text="How many of them it has looked at.")
    done = models.BigIntegerField(default=0, help_text="For how many it has asked.")
    place = models.UUIDField(help_text="The last run that it has looked at.")
    next_at = models.DateTimeField(help_text="When it may go on.")
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["next_at"], condition=Q(state=BulkState.RUNNING), name="bulk_next")
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="bulk_action_ends_when_it_is_over",
                condition=Q(state=BulkState.RUNNING, ended_at__isnull=True)
                | (~Q(state=BulkState.RUNNING) & Q(ended_at__isnull=False)),
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"
