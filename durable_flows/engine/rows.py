"""References to model rows inside results: written in place of the rows, and fetched when they are read.

An object with the key ``$row`` stands for a row. An object of the handler's own that has such a key is
kept in one with the key ``$data``, so that no result can name a row by itself.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import models

from durable_flows.errors import InvalidPayload, RowGone

_ROW = "$row"
_DATA = "$data"


def named(value: Any) -> tuple[Any, bool]:
    """The value with a reference for each row in it, and whether there was one.

    Raises:
        InvalidPayload: a row is not saved.
    """
    if not _has_rows(value):
        return value, False
    return _named(value), True


def _has_rows(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_rows, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_rows, value))
    return isinstance(value, models.Model)


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        copy = {key: _named(item) for key, item in value.items()}
        return {_DATA: copy} if _ROW in value or _DATA in value else copy
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    return {_ROW: _reference(value)} if isinstance(value, models.Model) else value


def _reference(row: models.Model) -> dict[str, str]:
    if row.pk is None or row._state.adding:
        raise InvalidPayload(f"{row!r} is not saved, so it cannot be fetched again; save it first")
    return {
        "model": row._meta.label_lower,
        "pk": row._meta.pk.value_to_string(row),
        "using": row._state.db or "default",
    }


def escaped(value: Any) -> Any:
    """A value that names no rows, as it stands among others that do."""
    return _named(value)


def fetched(value: Any) -> Any:
    """The value with the rows, as they are now, in place of their references.

    Raises:
        RowGone: one of them, or its model, is not there any more.
    """
    if isinstance(value, list):
        return [fetched(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _ROW in value:
        return _row(**value[_ROW])
    return {key: fetched(item) for key, item in value.get(_DATA, value).items()}


def _row(model: str, pk: str, using: str) -> models.Model:
    try:
        kind = apps.get_model(model)
    except LookupError as error:
        raise RowGone(
            f"a result names a row of {model}, a model that is no more: {error}"
        ) from error
    row: models.Model | None = kind._base_manager.using(using).filter(pk=pk).first()
    if row is None:
        raise RowGone(
            f"a result names {model} {pk}, and there is no such row any more; return what is needed of a "
            "row that may be deleted, instead of the row"
        )
    return row
