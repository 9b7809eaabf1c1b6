"""``model_event``: each change of a row sends an event, in the transaction that changes the row.

Django tells of changes by signals: `pre_save`, `post_save`, `pre_delete` and `post_delete`, with the class
of the instance as the sender. What a row was, and what it has become, is read from the database both times:
what an instance says of itself may be stale, deferred, or an expression that the database works out.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, Literal, get_args

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import FieldDoesNotExist
from django.db import models, router, transaction
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from django.utils.duration import duration_iso_string

from durable_flows import conf
from durable_flows.engine import ingest
from durable_flows.engine.subjects import ID_LENGTH, Subject
from durable_flows.errors import InvalidEvent, InvalidOption, WrongDatabase
from durable_flows.rules import names
from durable_flows.rules.events import Event

Verb = Literal["created", "updated", "deleted"]
Model = type[models.Model]
Row = dict[str, Any]  # field → its value, for JSON
Fields = tuple[str, ...]

VERBS = get_args(Verb)
PLACEHOLDERS = ("verb", "model", "app")
#: Where an instance keeps, between two signals, what its row was.
_BEFORE = "_durable_flows_before"

#: Model → verb → the name of an event → the fields whose values it tells.
_told: dict[Model, dict[str, dict[str, Fields]]] = {}
#: The models of which Django's signals are listened to; their saves are transactions.
_heard: set[Model] = set()


def model_event(
    model: Model,
    *,
    on: Verb | Collection[Verb] = VERBS,
    fields: str | Collection[str] = (),
    name: str = "{app}/{model}.{verb}",
) -> None:
    """From now on, let changes of a model's rows send events, each in the transaction of its change.

    An event's data are ``model`` ("shop.order"), ``pk``, ``verb``, ``before`` and ``after``, the values of
    the fields, or null where there is no row, and ``changed``, those fields that have another value now.
    Its subject is the row.

    Args:
        model: whose instances are saved or deleted. Those of proxies and of multi-table children are not:
            Django's signals tell of them as of models of their own.
        on: of which changes.
        fields: whose values are told. An update that changes none of them sends nothing; without
            fields each save does.
        name: of the event, with ``{verb}``, ``{model}`` and ``{app}`` in it. The same name of the same
            model and verb again takes the place of what was said before.

    Raises:
        InvalidOption: there is no such model, verb, field or placeholder, or no such event name.
    """
    what = f"model_event({getattr(model, '__name__', model)!s})"
    _check_model(what, model)
    verbs = _verbs(what, on)
    chosen = tuple(_field(what, model, field) for field in _listed(fields))
    resolved = {verb: _name(what, name, verb, model) for verb in verbs}
    told = _told.setdefault(model, {})
    for verb, event_name in resolved.items():
        told.setdefault(verb, {})[event_name] = chosen
    _hear(model)


@contextmanager
def isolated() -> Iterator[None]:
    """Forget, at the end of the block, what was registered inside it; for tests."""
    before = {
        model: {verb: dict(events) for verb, events in verbs.items()}
        for model, verbs in _told.items()
    }
    try:
        yield
    finally:
        _told.clear()
        _told.update(before)


# -- what was said ---------------------------------------------------------------------------


def _check_model(what: str, model: object) -> None:
    if not isinstance(model, type) or not issubclass(model, models.Model):
        raise InvalidOption(f"{what}: this takes a model, not {model!r}")
    if model._meta.abstract:
        raise InvalidOption(f"{what}: an abstract model has no rows; name the models that have")
    if len(model._meta.pk_fields) > 1:
        raise InvalidOption(f"{what}: a model with a composite primary key cannot be a subject")


def _verbs(what: str, on: str | Collection[str]) -> tuple[str, ...]:
    verbs = _listed(on)
    unknown = [verb for verb in verbs if verb not in VERBS]
    if unknown or not verbs:
        raise InvalidOption(f"{what}: on= is some of {', '.join(VERBS)}, not {on!r}")
    return verbs


def _field(what: str, model: Model, name: str) -> str:
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        known = ", ".join(field.name for field in model._meta.concrete_fields)
        raise InvalidOption(
            f"{what}: {model.__name__} has no field {name!r}; it has {known}"
        ) from None
    if not getattr(field, "concrete", False) or field.many_to_many:
        raise InvalidOption(
            f"{what}: {name!r} has no value in the row itself; listen to the model that has it"
        )
    if isinstance(field, models.BinaryField):
        raise InvalidOption(f"{what}: {name!r} is binary, which an event cannot tell")
    return field.name


def _name(what: str, name: str, verb: str, model: Model) -> str:
    if not isinstance(name, str):
        raise InvalidOption(f"{what}: name= is an event's name, not {name!r}")
    try:
        parts = list(string.Formatter().parse(name))
    except ValueError as error:
        raise InvalidOption(f"{what}: name={name!r}: {error}") from error
    for _, placeholder, spec, conversion in parts:
        if placeholder is not None and (placeholder not in PLACEHOLDERS or spec or conversion):
            shown = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise InvalidOption(
                f"{what}: name={name!r} has the placeholder {{{placeholder}}}; there are {shown}"
            )
    meta = model._meta
    resolved = name.format(verb=verb, model=meta.model_name, app=meta.app_label)
    try:
        return names.check_sent(resolved, "/name")
    except InvalidEvent as error:
        raise InvalidOption(f"{what}: name={name!r}: {error.problem}") from error


def _listed(said: str | Iterable[str]) -> tuple[str, ...]:
    return (said,) if isinstance(said, str) else tuple(dict.fromkeys(said))


# -- what rows are -----------------------------------------------------------------------------


def told_of(model: Model, verb: Verb) -> Mapping[str, Fields]:
    """The events that tell of such a change, each with the fields whose values it tells."""
    return _told.get(model, {}).get(verb, {})


def all_fields(told: Mapping[str, Fields]) -> Fields:
    """The fields that any of these events tells."""
    return tuple(dict.fromkeys(field for fields in told.values() for field in fields))


def check_database(model: Model, using: str) -> None:
    """Raise `WrongDatabase` unless the rows are where their events are stored."""
    own = conf.settings().DATABASE
    if using != own:
        raise WrongDatabase(
            f"a row of {model._meta.label} is to be written to database {using!r}, its events to "
            f"{own!r}: a rollback of the one would not undo the other; keep both on one database, or "
            "do not let model_event() listen to this model"
        )


def read(rows: models.QuerySet[Any], fields: Fields) -> dict[Any, Row]:
    """These rows as the database has them: primary key → the values of the fields."""
    columns = {name: rows.model._meta.get_field(name).attname for name in fields}
    return {
        row["pk"]: {name: _plain(row[column]) for name, column in columns.items()}
        for row in rows.values("pk", *columns.values())
    }


def _plain(value: Any) -> Any:
    """A value that the rules of payloads know."""
    return duration_iso_string(value) if isinstance(value, timedelta) else value


def events_of(
    model: Model, verb: Verb, pk: Any, before: Row | None, after: Row | None
) -> Iterator[Event]:
    """What tells of the change of a row."""
    for name, fields in told_of(model, verb).items():
        old, new = (
            None if row is None else {field: row[field] for field in fields}
            for row in (before, after)
        )
        changed = [field for field in fields if not _is_same(old, new, field)]
        if verb == "updated" and fields and not changed:
            continue
        data = {
            "model": model._meta.label_lower,
            "pk": pk,
            "verb": verb,
            "before": old,
            "after": new,
            "changed": changed,
        }
        yield Event(name, data, subject=_subject(model, pk))


def _is_same(before: Row | None, after: Row | None, field: str) -> bool:
    return before is not None and after is not None and before[field] == after[field]


def _subject(model: Model, pk: Any) -> Subject | None:
    """The row as a subject, also one that is gone; none, if its key is too long for that."""
    types = ContentType.objects.db_manager(conf.settings().DATABASE)
    key = str(pk)
    return Subject(types.get_for_model(model).pk, key) if len(key) <= ID_LENGTH else None


# -- Django's signals --------------------------------------------------------------------------


def _hear(model: Model) -> None:
    if model in _heard:
        return
    _heard.add(model)
    for signal, receiver in (
        (pre_save, _before_save),
        (post_save, _after_save),
        (pre_delete, _before_delete),
        (post_delete, _after_delete),
    ):
        signal.connect(receiver, sender=model, weak=False, dispatch_uid="durable_flows.model_event")
    # Django sends post_save when the row's own transaction is over: make it one with the event.
    setattr(model, "save_base", _in_one_transaction(model.save_base))  # noqa: B010


def _in_one_transaction(save_base: Callable[..., None]) -> Callable[..., None]:
    @wraps(save_base)
    def save(
        self: models.Model,
        raw: bool = False,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Sequence[str] | None = None,
    ) -> None:
        model = type(self)
        if raw or not (told_of(model, "created") or told_of(model, "updated")):
            return save_base(self, raw, force_insert, force_update, using, update_fields)
        using = using or router.db_for_write(model, instance=self)
        check_database(model, using)
        with transaction.atomic(using=using, savepoint=False):
            return save_base(self, raw, force_insert, force_update, using, update_fields)

    return save


def _before_save(sender: Model, *, instance: models.Model, raw: bool, using: str, **_: Any) -> None:
    fields = all_fields(told_of(sender, "updated"))
    if raw or not fields or _is_inserted(instance):
        return
    rows = _own(sender, instance, using).select_for_update(no_key=True)
    instance.__dict__[_BEFORE] = _only(read(rows, fields))


def _is_inserted(instance: models.Model) -> bool:
    """Whether Django does not even look whether the row is there."""
    (field,) = instance._meta.pk_fields
    by_default = field.has_default() or field.has_db_default()
    return instance.pk is None or (instance._state.adding and by_default)


def _after_save(
    sender: Model, *, instance: models.Model, created: bool, raw: bool, using: str, **_: Any
) -> None:
    verb: Verb = "created" if created else "updated"
    before = instance.__dict__.pop(_BEFORE, None)
    told = told_of(sender, verb)
    if raw or not told:
        return
    fields = all_fields(told)
    after = _only(read(_own(sender, instance, using), fields)) if fields else Row()
    if created:
        before = None
    elif not fields:
        before = Row()
    ingest.store(list(events_of(sender, verb, _key(instance), before, after)))


def _before_delete(sender: Model, *, instance: models.Model, using: str, **_: Any) -> None:
    told = told_of(sender, "deleted")
    if told:
        check_database(sender, using)
        rows = _own(sender, instance, using).select_for_update()
        instance.__dict__[_BEFORE] = _only(read(rows, all_fields(told)))


def _after_delete(sender: Model, *, instance: models.Model, using: str, **_: Any) -> None:
    before = instance.__dict__.pop(_BEFORE, None)
    if before is not None:  # else somebody has deleted it before
        ingest.store(list(events_of(sender, "deleted", _key(instance), before, None)))


def _key(instance: models.Model) -> Any:
    """The primary key as the database has it: code may have put "7" for 7."""
    return instance._meta.pk.to_python(instance.pk)


def _only(found: Mapping[Any, Row]) -> Row | None:
    """The one row that was found, if it was."""
    return next(iter(found.values()), None)


def _own(model: Model, instance: models.Model, using: str) -> models.QuerySet[Any]:
    """The row of an instance."""
    return model._base_manager.using(using).filter(pk=instance.pk)
