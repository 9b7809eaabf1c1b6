"""Changes of many rows by one statement, which Django's signals do not tell of; with their events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from django.db import models, router, transaction

from durable_flows.engine import ingest
from durable_flows.errors import InvalidOption
from durable_flows.model_events import (
    Fields,
    Row,
    all_fields,
    check_database,
    events_of,
    read,
    told_of,
)

M = TypeVar("M", bound=models.Model)
Rows = models.QuerySet[M] | models.Manager[M]

PIECE = 500  # rows that are changed by one statement, and whose events are stored by one


def flows_update(rows: Rows[Any], /, **values: Any) -> int:
    """``rows.update(**values)``, with the events that `model_event` has promised; in one transaction.

    The rows are locked, in the order of their keys, and updated in pieces.

    Args:
        rows: a queryset or a manager; not one that is sliced or combined.
        values: as for ``update()``.

    Returns:
        How many rows matched.

    Raises:
        WrongDatabase: the rows are not beside the app's tables; nothing was changed.
        InvalidEvent: what changed cannot be told; nothing was changed.
    """
    queryset = rows.all()
    told = told_of(queryset.model, "updated")
    if not told:
        return int(queryset.update(**values))
    using = _database(queryset)
    check_database(queryset.model, using)
    queryset = queryset.using(using)
    queryset.none().update(**values)  # says what is wrong with them, also if there are no rows
    with transaction.atomic(using=using):
        return sum(
            _update(queryset, before, values) for before in _locked(queryset, all_fields(told))
        )


def _update(queryset: models.QuerySet[Any], before: dict[Any, Row], values: dict[str, Any]) -> int:
    model, keys = queryset.model, list(before)
    count = int(queryset.filter(pk__in=keys).order_by().update(**values))
    after = read(_rows(queryset, keys), all_fields(told_of(model, "updated")))
    ingest.store_all(
        event
        for key in keys
        for event in events_of(model, "updated", key, before[key], after.get(key))
    )
    return count


def _locked(queryset: models.QuerySet[Any], fields: Fields) -> Iterator[dict[Any, Row]]:
    """The rows, piece by piece, in the order of their keys, each locked as an UPDATE would lock it.

    Whether a row matches is asked again once it is locked: somebody else may have had it in hand.
    """
    ordered = queryset.order_by("pk").values_list("pk", flat=True)
    keys = list(ordered[:PIECE])
    while keys:
        found = read(_rows(queryset, keys).order_by("pk").select_for_update(no_key=True), fields)
        matching = set(ordered.filter(pk__in=keys))
        yield {key: row for key, row in found.items() if key in matching}
        keys = list(ordered.filter(pk__gt=keys[-1])[:PIECE])


def _rows(queryset: models.QuerySet[Any], keys: Iterable[Any]) -> models.QuerySet[Any]:
    every: models.QuerySet[Any] = queryset.model._base_manager.using(queryset.db)
    return every.filter(pk__in=list(keys))


def flows_bulk_create(rows: Rows[M], objs: Iterable[M], /, **options: Any) -> Sequence[M]:
    """``rows.bulk_create(objs, **options)``, with the events that `model_event` has promised.

    In one transaction.

    Args:
        rows: a manager or a queryset.
        objs: what is to be created.
        options: as for ``bulk_create()``, but none that makes it pass over rows that are there.

    Returns:
        The rows.

    Raises:
        InvalidOption: by an option, it could not be told which rows are new.
        WrongDatabase: the rows are not beside the app's tables; nothing was created.
        InvalidEvent: a row cannot be told; nothing was created.
    """
    model = rows.model
    told = told_of(model, "created")
    if not told:
        return rows.bulk_create(objs, **options)
    for option in ("ignore_conflicts", "update_conflicts"):
        if options.get(option):
            raise InvalidOption(
                f"flows_bulk_create({model.__name__}): with {option}= it cannot be told which rows are new"
            )
    using = _database(rows.all())
    check_database(model, using)
    with transaction.atomic(using=using):
        made = rows.bulk_create(objs, **options)
        for start in range(0, len(made), PIECE):
            keys = [row.pk for row in made[start : start + PIECE]]
            found = read(model._base_manager.using(using).filter(pk__in=keys), all_fields(told))
            ingest.store_all(
                event
                for key in keys
                for event in events_of(model, "created", key, None, found.get(key))
            )
    return made


def _database(queryset: models.QuerySet[Any]) -> str:
    """Where the rows are written."""
    hints: dict[str, Any] = getattr(queryset, "_hints", {})
    return getattr(queryset, "_db", None) or router.db_for_write(queryset.model, **hints)
