"""``manage.py flows rotate-keys``: whatever is encrypted with an older key is encrypted with the newest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import groupby
from typing import Any

from django.core.management.base import CommandError, OutputWrapper
from django.db import models as fields
from django.db.models import Q

from durable_flows import conf, installed, models
from durable_flows.engine import files
from durable_flows.errors import DecryptionFailed, ResultGone, StorageUnavailable
from durable_flows.middleware import Sealing
from durable_flows.rules import envelopes, events, payload
from durable_flows.rules.envelopes import FILE, SEALED, each_sealed, has_sealed

Renew = Callable[[str], str]

AT_ONCE = 200  # rows that are read by one statement
MOST_SHOWN = 5  # values that cannot be renewed
_AGAIN = "What was renewed so far stays so; say it again when that is mended."

#: What holds stored values, and in which columns.
_COLUMNS: dict[type[fields.Model], tuple[str, ...]] = {
    models.Event: ("data", "user"),
    models.Step: ("output", "error"),
    models.Attempt: ("error",),
    models.Run: ("result", "error"),
}
#: Commands in which nothing is encrypted; a reason may look as if it were.
_PLAIN = (
    *(events.CANCEL, events.RETRY, events.SKIP, events.WITHDRAW),
    *(events.BEGIN_BULK, events.STOP_BULK),
)
#: What a command to do a run again has as JSON text inside of its JSON.
_TEXTS = ("input", "output")


@dataclass(slots=True)
class Count:
    """What was gone through.

    Attributes:
        seen: how many values have something encrypted in them.
        renewed: how many of these were encrypted with an older key.
        gone: what is to be said of files that are no more.
        lost: what is to be said of values that none of the keys opens.
    """

    seen: int = 0
    renewed: int = 0
    gone: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def rotate(*, dry_run: bool, out: OutputWrapper) -> None:
    """Encrypt everything with the newest key, and say how much there was.

    Each value is replaced by a statement of its own, and only if it is what was read: runs go on beside it.

    Raises:
        CommandError: nothing is encrypted here, or something with a key that is missing.
    """
    renew, lost = _renewal(), []
    try:
        for what, count in _counts(renew, out, dry_run=dry_run):
            _tell(out, what, count, dry_run=dry_run)
            lost += count.lost
    except StorageUnavailable as error:
        raise CommandError(f"{error}. {_AGAIN}") from error
    if lost:
        more = f"; and {len(lost) - MOST_SHOWN:,} more" if len(lost) > MOST_SHOWN else ""
        raise CommandError(f"{'; '.join(lost[:MOST_SHOWN])}{more}. {_AGAIN}")


def _counts(renew: Renew, out: OutputWrapper, *, dry_run: bool) -> Iterator[tuple[str, Count]]:
    for model, columns in _COLUMNS.items():
        count = Count()
        for row in _rows(model, columns, out):
            _renew(row, columns, renew, count, dry_run=dry_run)
        yield str(model._meta.verbose_name_plural), count
    if files.longest() is not None:
        yield "files", _renew_files(renew, dry_run=dry_run)


def _renewal() -> Renew:
    """What renews a stored text: the last of those that encrypt has the outermost say."""
    sealing = [one for one in installed.chain().members if isinstance(one, Sealing)]
    if not sealing:
        raise CommandError(
            f"{conf.shown('MIDDLEWARE')} lists no durable_flows.encryption.Encryption: nothing is encrypted"
        )
    first: Renew = sealing[0].renewed
    return reduce(lambda inner, outer: partial(_by_either, outer, inner), sealing[1:], first)


def _by_either(outer: Sealing, inner: Renew, text: str) -> str:
    """Each value by the one that it was encrypted by: what is older than the outer has only the inner's."""

    def renewed(value: str) -> str:
        try:
            return outer.renewed(value, inner)
        except DecryptionFailed as error:
            try:
                return inner(value)
            except DecryptionFailed:
                raise error from None

    return each_sealed(text, renewed)


def _rows(
    model: type[fields.Model], columns: tuple[str, ...], out: OutputWrapper
) -> Iterator[fields.Model]:
    """The rows in which something is encrypted, in the order of their primary key."""
    sealed = Q()
    for column in columns:
        sealed |= Q(**{f"{column}__contains": SEALED})
    rows = (
        model._default_manager.using(conf.settings().DATABASE)
        .order_by("pk")
        .only(*columns, *_also(model))
    )
    last: Any = None
    read = 0
    while page := list(
        (rows if last is None else rows.filter(pk__gt=last)).filter(sealed)[:AT_ONCE]
    ):
        yield from page
        last, read = page[-1].pk, read + len(page)
        if out.isatty():
            out.write(f"\r{model._meta.verbose_name_plural}: {read:,}", ending="")
    if read and out.isatty():
        out.write("\r", ending="")


def _also(model: type[fields.Model]) -> tuple[str, ...]:
    """What else is to be known of a row."""
    return ("name",) if model is models.Event else ()


def _renew(
    row: fields.Model, columns: tuple[str, ...], renew: Renew, count: Count, *, dry_run: bool
) -> None:
    for column in columns:
        text = getattr(row, column)
        parts = _parts(row, text)
        if not any(map(has_sealed, parts)):
            continue
        count.seen += 1
        try:
            renewed = [renew(part) for part in parts]
        except DecryptionFailed as error:
            where = f"{column} of {row._meta.verbose_name} {_shown(row.pk)}"
            count.lost.append(f"{where}: {error}")
            continue
        if renewed == parts:
            continue
        count.renewed += 1
        if not dry_run:
            rows = type(row)._default_manager.using(conf.settings().DATABASE)
            rows.filter(pk=row.pk, **{column: text}).update(**{column: _whole(row, text, renewed)})


def _parts(row: fields.Model, text: str | None) -> list[str]:
    """The JSON texts of a column."""
    if text is None or SEALED not in text:
        return []
    if not isinstance(row, models.Event) or row.name != events.RERUN:
        return [] if isinstance(row, models.Event) and row.name in _PLAIN else [text]
    asked = payload.loads(text)
    return [asked[name] for name in _TEXTS if asked.get(name)]


def _whole(row: fields.Model, text: str, parts: list[str]) -> str:
    """The inverse of `_parts`."""
    if not isinstance(row, models.Event) or row.name != events.RERUN:
        return parts[0]
    asked = payload.loads(text)
    names = [name for name in _TEXTS if asked.get(name)]
    return json.dumps(asked | dict(zip(names, parts, strict=True)), ensure_ascii=False)


def _shown(pk: Any) -> str:
    return " ".join(map(str, pk)) if isinstance(pk, tuple) else str(pk)


def _renew_files(renew: Renew, *, dry_run: bool) -> Count:
    """A file is written anew under another name, which takes the place of the old in its rows."""
    count = Count()
    for model, column in ((models.Step, "output"), (models.Run, "result")):
        rows = model._default_manager.using(conf.settings().DATABASE)
        named = rows.filter(**{f"{column}__startswith": FILE}).order_by(column, "pk")
        found = groupby(named.values_list(column, "pk"), key=lambda row: row[0])
        for envelope, group in found:  # runs that have taken over steps share their files
            moved = _renewed_file(envelope, renew, count, dry_run=dry_run)
            if moved is None:
                continue
            for _, pk in group:
                rows.filter(pk=pk, **{column: envelope}).update(**{column: moved})
            files.forget([envelope])
    return count


def _renewed_file(envelope: str, renew: Renew, count: Count, *, dry_run: bool) -> str | None:
    """What names the renewed file; None if there is nothing to renew, or nothing is to be done."""
    try:
        text = files.fetch(envelope)
    except ResultGone as error:
        count.gone.append(str(error))
        return None
    count.seen += has_sealed(text)
    try:
        renewed = renew(text)
    except DecryptionFailed as error:
        count.lost.append(f"file {envelopes.file_of(envelope)!r}: {error}")
        return None
    if renewed == text:
        return None
    count.renewed += 1
    return None if dry_run else files.put_again(envelope, renewed)


def _tell(out: OutputWrapper, what: str, count: Count, *, dry_run: bool) -> None:
    verb = "to be renewed" if dry_run else "renewed"
    out.write(f"{what}: {count.renewed:,} {verb} of {count.seen:,} that are encrypted")
    for gone in count.gone:
        out.write(f"not there: {gone}")
