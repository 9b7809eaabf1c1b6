"""What came of events: runs, what the scheduler knows of them, and what they recorded."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.contenttypes.fields import GenericForeignKey
from django.db import models
from django.db.models import Q

from durable_flows import querysets
from durable_flows.models.about import HasSubject
from durable_flows.models.choices import choices
from durable_flows.models.events import Event
from durable_flows.rules.states import DueState, RunState, StepKind, StepState, Verdict


class Run(HasSubject):
    """One execution of a flow. Written at admission, at its start and at its end only."""

    id = models.UUIDField(primary_key=True, editable=False)
    flow = models.CharField(max_length=255)
    event = models.ForeignKey(
        Event, models.DO_NOTHING, db_constraint=False, related_name="runs", help_text="Its trigger."
    )
    parent = models.ForeignKey(
        "self",
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="children",
        help_text="The run that invoked it.",
    )
    origin = models.UUIDField(null=True, help_text="The run that it does again.")
    subject = GenericForeignKey("subject_type", "subject_id")
    awaited = models.BooleanField(
        default=False, db_default=False, help_text="Somebody is to be told of its end."
    )
    state = models.CharField(max_length=10, choices=choices(RunState), default=RunState.QUEUED)
    version = models.IntegerField(
        null=True, help_text="Of its flow; 0 if that has none, null until some process knows it."
    )
    queue = models.CharField(max_length=255)
    mark = models.BigIntegerField(help_text="Its trigger's number in the order of routing.")
    since = models.BigIntegerField(
        null=True, help_text="The mark of the run whose first steps it has taken over."
    )
    generation = models.IntegerField(default=0, help_text="How often it was retried.")
    depth = models.IntegerField(
        default=0, db_default=0, help_text="How many runs deep it is, one soon after the other."
    )
    lease = models.BigIntegerField(
        default=0, help_text="The last fencing token, once it has ended."
    )
    result = models.TextField(null=True, help_text="JSON text.")
    error = models.TextField(null=True, help_text="JSON text.")
    reason = models.TextField(default="", help_text="Why it failed or was cancelled.")
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    objects = querysets.RunQuerySet.as_manager()

    class Meta:
        permissions: ClassVar = [
            ("cancel_run", "Can cancel run"),
            ("retry_run", "Can retry run"),
            ("rerun_run", "Can rerun run"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["flow", "-id"], name="run_flow"),
            # None on what its start and its end write: these updates stay off the indexes.
            models.Index(fields=["parent"], condition=Q(parent__isnull=False), name="run_parent"),
            models.Index(
                # Of those that have taken over steps, which are few: a purge asks for it.
                fields=["origin"],
                condition=Q(since__isnull=False),
                name="run_taken_over",
            ),
            models.Index(
                fields=["subject_type", "subject_id", "-id"],
                condition=Q(subject_id__isnull=False),
                name="run_subject",
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="run_ends_when_it_has_ended",
                condition=Q(state__in=[RunState.QUEUED, RunState.STARTED], ended_at__isnull=True)
                | Q(
                    state__in=[RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED],
                    ended_at__isnull=False,
                ),
            )
        ]

    def __str__(self) -> str:
        return f"{self.flow} {self.id}"


class Due(models.Model):
    """What the scheduler knows of an unfinished run. Narrow, hot, and gone when the run has ended."""

    run = models.OneToOneField(
        Run, models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="due"
    )
    queue = models.CharField(max_length=255)
    wake_at = models.DateTimeField(null=True)
    deadline_at = models.DateTimeField(
        null=True, help_text="When it is cancelled, whatever it does or waits for."
    )
    due_since = models.DateTimeField(
        help_text="Since when it could go on, for the age of a backlog."
    )
    state = models.CharField(max_length=10, choices=choices(DueState), default=DueState.QUEUED)
    lease = models.BigIntegerField(default=0, help_text="The fencing token; it never goes down.")
    claims = models.IntegerField(default=0, help_text="Claims in a row that did not end.")
    nudged = models.BooleanField(default=False, help_text="Woken while it was running.")
    parked_by = models.CharField(
        max_length=64,
        default="",
        db_default="",
        help_text="Which code could not go on with it, or which flow nobody knew.",
    )

    class Meta:
        verbose_name_plural = "due"
        indexes: ClassVar = [
            models.Index(
                fields=["queue", "wake_at"], condition=Q(wake_at__isnull=False), name="due_next"
            ),
            models.Index(
                # A tick finds those that it lets go on, however many others there are.
                fields=["parked_by", "run"],
                condition=Q(wake_at__isnull=True),
                name="due_parked",
            ),
            models.Index(
                fields=["deadline_at"], condition=Q(deadline_at__isnull=False), name="due_deadline"
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="due_only_the_parked_have_no_wake_time",
                condition=Q(state=DueState.PARKED, wake_at__isnull=True)
                | (~Q(state=DueState.PARKED) & Q(wake_at__isnull=False)),
            )
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.state}"


class Step(models.Model):
    """A unit of work inside a run, recorded once and replayed after that. Written by the journal."""

    pk = models.CompositePrimaryKey("run_id", "key")
    run = models.ForeignKey(
        Run, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="steps"
    )
    key = models.CharField(max_length=255)
    seq = models.IntegerField(help_text="Its place among the run's recorded steps.")
    kind = models.CharField(max_length=10, choices=choices(StepKind))
    state = models.CharField(max_length=10, choices=choices(StepState))
    output = models.TextField(null=True, help_text="JSON text.")
    error = models.TextField(null=True, help_text="JSON text.")
    until = models.DateTimeField(null=True, help_text="The end of a sleep, fixed when it began.")
    mark = models.BigIntegerField(help_text="The routing counter when it was recorded.")
    lease = models.BigIntegerField(help_text="The fencing token of the slice that recorded it.")
    attempt = models.IntegerField(default=1, help_text="The attempt that was recorded.")
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                name="step_fails_with_an_error",
                condition=Q(state__in=[StepState.DONE, StepState.SKIPPED], error__isnull=True)
                | Q(state=StepState.FAILED, error__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return self.key


class Attempt(models.Model):
    """A failed attempt of a step, or of the code after one (key ``after:<last key>``)."""

    pk = models.CompositePrimaryKey("run_id", "key", "n")
    run = models.ForeignKey(
        Run, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="attempts"
    )
    key = models.CharField(max_length=255)
    n = models.IntegerField()
    generation = models.IntegerField(help_text="Each retry of the run has attempts of its own.")
    error = models.TextField(help_text="JSON text.")
    failed_at = models.DateTimeField()
    next_at = models.DateTimeField(null=True, help_text="When the next one may begin.")

    def __str__(self) -> str:
        return f"{self.key} #{self.n}"


class Admission(models.Model):
    """Why an event did not start a flow that listens to it."""

    pk = models.CompositePrimaryKey("event_id", "flow")
    event = models.ForeignKey(
        Event, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="admissions"
    )
    flow = models.CharField(max_length=255)
    verdict = models.CharField(max_length=10, choices=choices(Verdict))
    reason = models.TextField()
    run = models.ForeignKey(
        Run,
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="+",
        help_text="The run that it joined.",
    )
    decided_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.flow} {self.verdict}"


class RunWarning(models.Model):
    """Something about a run that went otherwise than its author may think; noted once for each cause."""

    pk = models.CompositePrimaryKey("run_id", "about")
    run = models.ForeignKey(
        Run, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="warnings"
    )
    about = models.CharField(max_length=255, help_text="The step or option concerned.")
    message = models.TextField()
    warned_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.about}: {self.message}"
