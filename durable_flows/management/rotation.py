"""``manage.py flows rotate-keys``: whatever is encrypted with an older key is encrypted with the newest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.core.management.base import CommandError, OutputWrapper
from django.db import models as fields
from django.db.models import Q

from durable_flows import conf, installed, models
from durable_flows.engine import files
from durable_flows.errors import DecryptionFailed, StorageUnavailable
from durable_flows.middleware import Sealing
from durable_flows.rules.envelopes import FILE, SEALED

AT_ONCE = 200  # rows that are read by one statement

#: What holds stored values, and in which columns.
_COLUMNS: dict[type[fields.Model], tuple[str, ...]] = {
    models.Event: ("data", "user"),
    models.Step: ("output", "error"),
    models.Attempt: ("error",),
    models.Run: ("result", "error"),
}


@dataclass(slots=True)
class Count:
    """What was gone through.

    Attributes:
        seen: how many values have something encrypted in them.
        renewed: how many of these were encrypted with an older key.
    """

    seen: int = 0
    renewed: int = 0


def rotate(*, dry_run: bool, out: OutputWrapper) -> None:
    """Encrypt everything with the newest key, and say how much there was.

    Each value is replaced by a statement of its own, and only if it is what was read: runs go on beside it.

    Raises:
        CommandError: nothing is encrypted here, or something with a key that is missing.
    """
    encryption = _encryption()
    try:
        for model, columns in _COLUMNS.items():
            count = Count()
            for row in _rows(model, columns, out):
                _renew(row, columns, encryption, count, dry_run=dry_run)
            _tell(out, str(model._meta.verbose_name_plural), count, dry_run=dry_run)
        if files.longest() is not None:
            _tell(out, "files", _renew_files(encryption, dry_run=dry_run), dry_run=dry_run)
    except (DecryptionFailed, StorageUnavailable) as error:
        raise CommandError(
            f"{error}. What was renewed so far stays so; say it again when that is mended."
        ) from error


def _encryption() -> Sealing:
    for one in installed.chain().members:
        if isinstance(one, Sealing):
            return one
    raise CommandError(
        f"{conf.shown('MIDDLEWARE')} lists no durable_flows.encryption.Encryption: nothing is encrypted"
    )


def _rows(
    model: type[fields.Model], columns: tuple[str, ...], out: OutputWrapper
) -> Iterator[fields.Model]:
    """The rows in which something is encrypted, in the order of their primary key."""
    sealed = Q()
    for column in columns:
        sealed |= Q(**{f"{column}__contains": SEALED})
    rows = model._default_manager.using(conf.settings().DATABASE).order_by("pk").only(*columns)
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


def _renew(
    row: fields.Model, columns: tuple[str, ...], encryption: Sealing, count: Count, *, dry_run: bool
) -> None:
    for column in columns:
        text = getattr(row, column)
        if text is None or SEALED not in text:
            continue
        count.seen += 1
        renewed = encryption.renewed(text)
        if renewed == text:
            continue
        count.renewed += 1
        if not dry_run:
            rows = type(row)._default_manager.using(conf.settings().DATABASE)
            rows.filter(pk=row.pk, **{column: text}).update(**{column: renewed})


def _renew_files(encryption: Sealing, *, dry_run: bool) -> Count:
    """A file is written anew under another name, which takes the place of the old in its row."""
    count = Count()
    for model, column in ((models.Step, "output"), (models.Run, "result")):
        rows = model._default_manager.using(conf.settings().DATABASE)
        named = rows.filter(**{f"{column}__startswith": FILE}).order_by("pk")
        for pk, envelope in named.values_list("pk", column):
            text = files.fetch(envelope)
            count.seen += SEALED in text
            renewed = encryption.renewed(text)
            if renewed == text:
                continue
            count.renewed += 1
            if not dry_run:
                moved = files.put_again(envelope, renewed)
                rows.filter(pk=pk, **{column: envelope}).update(**{column: moved})
                files.forget([envelope])
    return count


def _tell(out: OutputWrapper, what: str, count: Count, *, dry_run: bool) -> None:
    verb = "to be renewed" if dry_run else "renewed"
    out.write(f"{what}: {count.renewed:,} {verb} of {count.seen:,} that are encrypted")
