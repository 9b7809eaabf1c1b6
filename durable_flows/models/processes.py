"""What processes tell each other: who is alive, who listens, where to look, whose turn it is."""

from __future__ import annotations

from django.db import models


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


class Purge(models.Model):
    """The one row that lets one process at a time purge, and notes how far that has come."""

    id = models.SmallIntegerField(primary_key=True)
    turn = models.BigIntegerField(help_text="The fencing token of whoever purges.")
    held_until = models.DateTimeField(help_text="Until then it is somebody's turn.")
    next_at = models.DateTimeField(help_text="When there is something to do again.")
    notes = models.TextField(default="", help_text="JSON text: how far it has come.")

    def __str__(self) -> str:
        return f"turn {self.turn}"
