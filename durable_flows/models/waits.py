"""What runs wait for."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from durable_flows import querysets
from durable_flows.models.choices import choices
from durable_flows.models.events import Event
from durable_flows.models.runs import Run
from durable_flows.rules import events
from durable_flows.rules.states import WaitKind, WaitOutcome


class Wait(models.Model):
    """A row that asks for a future event: to resume a run, or to cancel it.

    A step's wait may be ended by what was routed after number ``eligible_from``, not before
    ``routed_since``, and received not before ``received_since``. A cancel rule's wait is ended by an
    event that is newer, by (delivery time, arrival), than (``received_since``, ``eligible_from``).
    A wait for a child is ended by the end of the run ``match``. A name of a signal has one wait at a time.
    """

    id = models.UUIDField(primary_key=True)
    run = models.ForeignKey(Run, models.DO_NOTHING, db_constraint=False, related_name="waits")
    key = models.CharField(max_length=255, help_text="The step's key, or the rule's number.")
    kind = models.CharField(max_length=10, choices=choices(WaitKind))
    event_name = models.CharField(max_length=256)
    paths = models.TextField(default="[]", help_text="JSON text: the paths it compares.")
    criteria = models.TextField(default="", help_text="What it matches, for people.")
    expression = models.TextField(
        default="", db_default="", help_text="What its paths cannot say, in CEL."
    )
    match = models.UUIDField(
        help_text="Hash of the event's name, the paths and their values; or the awaited run."
    )
    cascade = models.BooleanField(
        default=True, db_default=True, help_text="The awaited run is cancelled with this one."
    )
    eligible_from = models.BigIntegerField()
    routed_since = models.DateTimeField(null=True)
    received_since = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField()
    settled_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=10, choices=choices(WaitOutcome), default="")
    event = models.ForeignKey(
        Event, models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="+"
    )

    objects = querysets.WaitQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(
                # The id after it: the waits for one event are walked through in pieces.
                fields=["match", "id"],
                condition=Q(settled_at__isnull=True),
                name="wait_pending",
            ),
            models.Index(
                fields=["match", "event"],
                condition=Q(event_name=events.SIGNALLED, event__isnull=False),
                name="wait_signal_used",
            ),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["match"],
                condition=Q(event_name=events.SIGNALLED, settled_at__isnull=True),
                name="wait_signal_taken",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_name} {self.criteria}".strip()


class Fanout(models.Model):
    """How far the children of a ``step.map`` have come."""

    id = models.UUIDField(primary_key=True)
    run = models.ForeignKey(Run, models.DO_NOTHING, db_constraint=False, related_name="fanouts")
    key = models.CharField(max_length=255, help_text="The step's key.")
    generation = models.IntegerField(help_text="That of the run: a retry maps anew.")
    total = models.IntegerField(help_text="How many children there are to be.")
    started = models.IntegerField(help_text="How many have been let begin.")
    ended = models.IntegerField(help_text="How many have ended.")
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.key}: {self.ended} of {self.total}"


class Approval(models.Model):
    """What a flow asks people to decide. Its id is that of the wait which a decision ends."""

    id = models.UUIDField(primary_key=True, editable=False)
    run = models.ForeignKey(Run, models.DO_NOTHING, db_constraint=False, related_name="approvals")
    key = models.CharField(max_length=255, help_text="The step's key.")
    question = models.TextField()
    permission = models.CharField(
        max_length=255, default="", help_text="That who decides must have."
    )
    assignees = models.TextField(default="[]", help_text="JSON text: names of users.")
    form = models.CharField(max_length=255, default="", help_text="The dotted path of a form.")
    created_at = models.DateTimeField()

    objects = querysets.ApprovalQuerySet.as_manager()

    class Meta:
        permissions: ClassVar = [("decide_approval", "Can decide approvals")]

    def __str__(self) -> str:
        return self.question
