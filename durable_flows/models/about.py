"""What a row of ours is about: a row of any model of the project."""

from __future__ import annotations

from django.contrib.contenttypes.models import ContentType
from django.db import models


class HasSubject(models.Model):
    """A row that may be about another one, of which nothing is kept but model and primary key."""

    subject_type = models.ForeignKey(
        ContentType,
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="+",
        help_text="The model of the row that it is about.",
    )
    subject_id = models.CharField(max_length=255, null=True, help_text="That row's primary key.")

    class Meta:
        abstract = True
