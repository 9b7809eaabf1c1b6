"""The facts. The engine writes them; nobody else does."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from django.db import models
from django.db.models import Q

from durable_flows import querysets
from durable_flows.rules.states import (
    BulkKind,
    BulkState,
    DueState,
    RunState,
    StepKind,
    StepState,
    Verdict,
    WaitKind,
    WaitOutcome,
)


def _choices(enum: type[StrEnum]) -> list[tuple[str, str]]:
    return [(member.value, member.value) for member in enum]


class Event(models.Model):
    """Something that happened, or a command. Stored in the sender's transaction, then routed."""

    id = models.UUIDField(primary_key=True, editable=False)
    arrival = models.BigIntegerField(help_text="Its place in the order of arrival.")
    mark = models.BigIntegerField(help_text="The routing counter when it was stored.")
    name = models.CharField(max_length=256)
    data = models.TextField(help_text="JSON text.")
    user = models.TextField(null=True, help_text="JSON text.")
    key = models.CharField(max_length=255, default="", help_text="The sender's own id.")
    ts = models.DateTimeField()
    received_at = models.DateTimeField()
    deliver_at = models.DateTimeField(help_text="Routed from then on.")
    v = models.CharField(max_length=64, default="")
    target = models.CharField(max_length=255, default="", help_text="A command's flow or run.")
    sender = models.UUIDField(null=True, help_text="The run that sent it.")
    depth = models.IntegerField(default=0, help_text="How many runs deep it was sent.")
    routed = models.BigIntegerField(null=True, help_text="Its number in the order of routing.")
    routed_at = models.DateTimeField(null=True, help_text="When everything it asked for was done.")
    error = models.TextField(default="", help_text="Why it was refused or set aside.")
    shard = models.SmallIntegerField(default=0, db_default=0, help_text="Which router takes it.")
    attempts = models.SmallIntegerField(
        default=0, db_default=0, help_text="How often its routing was begun; negative: in pieces."
    )
    quarantined = models.BooleanField(
        default=False, db_default=False, help_text="Set aside, since its routing failed twice."
    )
    withdrawn = models.BooleanField(
        default=False, db_default=False, help_text="Taken back before it was delivered."
    )

    class Meta:
        permissions: ClassVar = [("reroute_event", "Can have an event routed again")]
        indexes: ClassVar = [
            models.Index(
                fields=["deliver_at", "arrival"],
                condition=Q(routed_at__isnull=True),
                name="event_unrouted",
            ),
            models.Index(
                fields=["deliver_at"],
                condition=Q(routed_at__isnull=True, attempts__lt=0),
                name="event_in_pieces",
            ),
            models.Index(fields=["name", "routed"], name="event_name_routed"),
            models.Index(
                fields=["-routed_at"], condition=Q(quarantined=True), name="event_quarantined"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.id}"


class EventKey(models.Model):
    """A sender's own id of an event: the primary key, a hash of name and id, makes it unique."""

    id = models.UUIDField(primary_key=True)
    event = models.ForeignKey(Event, models.DO_NOTHING, db_constraint=False, db_index=False)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return str(self.event_id)


class Run(models.Model):
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
    awaited = models.BooleanField(
        default=False, db_default=False, help_text="Somebody is to be told of its end."
    )
    state = models.CharField(max_length=10, choices=_choices(RunState), default=RunState.QUEUED)
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
    state = models.CharField(max_length=10, choices=_choices(DueState), default=DueState.QUEUED)
    lease = models.BigIntegerField(default=0, help_text="The fencing token; it never goes down.")
    claims = models.IntegerField(default=0, help_text="Claims in a row that did not end.")
    nudged = models.BooleanField(default=False, help_text="Woken while it was running.")
    parked_by = models.CharField(
        max_length=64, default="", db_default="", help_text="Which code could not go on with it."
    )

    class Meta:
        verbose_name_plural = "due"
        indexes: ClassVar = [
            models.Index(
                fields=["queue", "wake_at"], condition=Q(wake_at__isnull=False), name="due_next"
            ),
            models.Index(fields=["run"], condition=Q(wake_at__isnull=True), name="due_parked"),
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
    kind = models.CharField(max_length=10, choices=_choices(StepKind))
    state = models.CharField(max_length=10, choices=_choices(StepState))
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


class Wait(models.Model):
    """A row that asks for a future event: to resume a run, or to cancel it.

    A step's wait may be ended by what was routed after number ``eligible_from``, not before
    ``routed_since``, and received not before ``received_since``. A cancel rule's wait is ended by an
    event that is newer, by (delivery time, arrival), than (``received_since``, ``eligible_from``).
    A wait for a child is ended by the end of the run ``match``.
    """

    id = models.UUIDField(primary_key=True)
    run = models.ForeignKey(Run, models.DO_NOTHING, db_constraint=False, related_name="waits")
    key = models.CharField(max_length=255, help_text="The step's key, or the rule's number.")
    kind = models.CharField(max_length=10, choices=_choices(WaitKind))
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
    outcome = models.CharField(max_length=10, choices=_choices(WaitOutcome), default="")
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


class Signature(models.Model):
    """The paths that some wait for an event name compares; the router hashes each event by them.

    Events routed after number ``complete_from`` have an `EventMatch` for it, for certain.
    """

    id = models.UUIDField(primary_key=True)
    event_name = models.CharField(max_length=256, db_index=True)
    paths = models.TextField(help_text="JSON text: a list of paths.")
    complete_from = models.BigIntegerField(null=True)

    def __str__(self) -> str:
        return f"{self.event_name} {self.paths}"


class EventMatch(models.Model):
    """What a routed event matches, so that a wait finds it however many events there are."""

    pk = models.CompositePrimaryKey("match", "routed")
    match = models.UUIDField()
    routed = models.BigIntegerField()
    event = models.ForeignKey(Event, models.DO_NOTHING, db_constraint=False, db_index=False)

    def __str__(self) -> str:
        return str(self.event_id)


class Admission(models.Model):
    """Why an event did not start a flow that listens to it."""

    pk = models.CompositePrimaryKey("event_id", "flow")
    event = models.ForeignKey(
        Event, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="admissions"
    )
    flow = models.CharField(max_length=255)
    verdict = models.CharField(max_length=10, choices=_choices(Verdict))
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


class BulkAction(models.Model):
    """The same command for all runs that fit. The ticks carry it out, a batch at a time."""

    id = models.UUIDField(primary_key=True, editable=False, help_text="That of its command.")
    kind = models.CharField(max_length=10, choices=_choices(BulkKind))
    filters = models.TextField(help_text="JSON text: which runs.")
    reason = models.TextField(default="")
    created_by = models.TextField(default="", help_text="Who asks, for people.")
    rate = models.FloatField(null=True, help_text="Runs a second at most, on the average.")
    state = models.CharField(max_length=10, choices=_choices(BulkState), default=BulkState.RUNNING)
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


class Deployment(models.Model):
    """A set of flows that processes have loaded. The newest that is alive routes."""

    digest = models.CharField(max_length=64, primary_key=True)
    flows = models.TextField(help_text="JSON text: the flows, their versions and triggers.")
    first_seen_at = models.DateTimeField()
    alive_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.digest[:12]


class Audience(models.Model):
    """Until when somebody listens to the events of this name, which tell of the ends of runs.

    Ends that nobody hears of are not told. Of every end since ``since``, if that is known, it was told.
    """

    event_name = models.CharField(max_length=256, primary_key=True)
    until = models.DateTimeField()
    since = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.event_name


class Floor(models.Model):
    """Below this moment there is nothing to look for: spares scans the entries of what is done.

    The name is that of a queue, for its due rows, or of the events.
    """

    name = models.CharField(max_length=255, primary_key=True)
    moment = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} {self.moment}"


class Counter(models.Model):
    """SQLite's stand-in for sequences."""

    name = models.CharField(max_length=32, primary_key=True)
    value = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.name} {self.value}"


class Tick(models.Model):
    """The one row that keeps two ticks from doing the same work."""

    id = models.SmallIntegerField(primary_key=True)
    ticked_at = models.DateTimeField()

    def __str__(self) -> str:
        return str(self.ticked_at)
