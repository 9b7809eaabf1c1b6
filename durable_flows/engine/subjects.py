"""What events and runs are about: rows of any model, by content type and primary key.

The content types are those on the app's database, and so must be the rows: a run and what it is about are
then never in two minds after a rollback.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import models, router

from durable_flows import conf
from durable_flows.errors import InvalidEvent

ID_LENGTH = 255


class Subject(NamedTuple):
    """A row, as it is stored with what is about it."""

    type_id: int
    id: str

    @classmethod
    def read(cls, type_id: int | None, id: str | None) -> Subject | None:
        """What these columns say."""
        return None if type_id is None or id is None else cls(type_id, id)


def of(row: Any, pointer: str = "/subject") -> Subject:
    """A saved row as it is stored.

    Args:
        row: an instance of a model; one of a proxy counts as one of the model that has the table.
        pointer: where it stands in what is sent.

    Raises:
        InvalidEvent: it cannot be a subject.
    """
    if isinstance(row, Subject):
        return row
    if not isinstance(row, models.Model):
        hint = "; pass an instance of it" if isinstance(row, type) else ""
        raise InvalidEvent(
            f"a subject is a row, an instance of a model, or None, not {row!r}{hint}",
            pointer=pointer,
        )
    key = "" if row.pk is None or isinstance(row.pk, tuple) else str(row.pk)
    if problem := _problem(row, key):
        raise InvalidEvent(problem, pointer=pointer)
    types = ContentType.objects.db_manager(conf.settings().DATABASE)
    return Subject(types.get_for_model(row).pk, key)


def _problem(row: models.Model, key: str) -> str:
    """What keeps this row from being a subject; empty if nothing does."""
    model = type(row).__name__
    if isinstance(row.pk, tuple):
        return f"a row of {model} has a composite primary key; a subject has one column"
    if not key or row._state.adding:
        return f"this {model} is not saved: save() it first, in the same transaction"
    if len(key) > ID_LENGTH:
        return (
            f"the primary key of this {model} has {len(key):,} characters, a subject's has at most "
            f"{ID_LENGTH}"
        )
    own, its = conf.settings().DATABASE, router.db_for_write(type(row), instance=row)
    if its != own:
        return (
            f"this {model} is on database {its!r}, the tables of durable_flows are on {own!r}, and a "
            "subject must be beside them; put its primary key into data instead"
        )
    return ""


def fetch(subject: Subject | None) -> models.Model | None:
    """The row as it stands now; None if it is gone, or its model is."""
    if subject is None:
        return None
    alias = conf.settings().DATABASE
    try:
        kind = ContentType.objects.db_manager(alias).get_for_id(subject.type_id)
    except ContentType.DoesNotExist:
        return None
    model = kind.model_class()
    if model is None:
        return None
    try:
        row: models.Model | None = model._base_manager.using(alias).filter(pk=subject.id).first()
    except (ValueError, ValidationError):  # the model's key is of another kind now
        return None
    return row
