"""What happened: events, their keys, and what they match."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from durable_flows.models.about import HasSubject


class Event(HasSubject):
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
    context = models.TextField(
        default="", db_default="", help_text="JSON text: what middleware has captured."
    )
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
