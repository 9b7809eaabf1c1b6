"""What arrives where."""

from __future__ import annotations

from django.db import models


class Contact(models.Model):
    """A copy of somebody, kept up to date by events."""

    person_id = models.CharField(max_length=40, unique=True)
    name = models.CharField(max_length=80)

    def __str__(self) -> str:
        return self.name


class Entry(models.Model):
    """A line in the journal."""

    desk = models.CharField(max_length=20)
    about = models.CharField(max_length=80)

    def __str__(self) -> str:
        return f"{self.desk}: {self.about}"
