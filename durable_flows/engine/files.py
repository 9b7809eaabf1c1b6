"""Large results in files, in the storage ``STORAGES["durable_flows"]``: put there, fetched, and forgotten.

A file is written before the row that names it, and removed before that row. So a row may name a file that
is gone, where its run is being purged; and a file may be left over that no row names.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import Storage, storages

from durable_flows import conf
from durable_flows.engine import sql
from durable_flows.errors import ResultGone, StorageUnavailable
from durable_flows.rules import envelopes

ALIAS = "durable_flows"
FOLDER = "runs"


def longest() -> int | None:
    """Bytes of the longest result that is kept in its row; None if all are."""
    return conf.settings().STORE_OVER_BYTES if ALIAS in settings.STORAGES else None


def put(text: str, run_id: uuid.UUID, key: str) -> str:
    """Write a result to a file of its own.

    Args:
        text: the result.
        run_id: its run.
        key: its step; empty for the run's own.

    Returns:
        What is kept of it in its row.

    Raises:
        StorageUnavailable: it could not be written.
    """
    name = f"{folder_of(run_id)}{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    return _written(name, text, _what(key))


def folder_of(run_id: uuid.UUID) -> str:
    """What the names of a run's files begin with."""
    return f"{FOLDER}/{run_id}/"


def is_own(text: str, run_id: uuid.UUID) -> bool:
    """Whether the file that this text names was written for this run, not for one before it."""
    return (envelopes.file_of(text) or "").startswith(folder_of(run_id))


def put_again(envelope: str, text: str) -> str:
    """Write another text beside the file that the envelope names. Returns what is kept of it.

    The name is another one, also where a storage would write over what is there, and begins alike: whoever
    has read the row before finds it by that.

    Raises:
        StorageUnavailable: it could not be written.
    """
    name = envelopes.file_of(envelope) or ""
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return _written(f"{_stem(name)}-{mark}.json", text, f"file {name!r}")


def _stem(name: str) -> str:
    """What the names of a step's files have in common."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{re.split('[-_.]', last)[0]}"


def _written(name: str, text: str, what: str) -> str:
    content = text.encode()
    try:
        saved = _storage().save(name, ContentFile(content, name))
    except Exception as error:
        raise StorageUnavailable(f"{what} could not be written to {_where(error)}") from error
    return envelopes.filed(saved, len(content))


def fetch(text: str) -> str:
    """A result, wherever it is.

    Args:
        text: what its row has.

    Raises:
        StorageUnavailable: its file could not be read.
        ResultGone: there is no such file any more.
    """
    name = envelopes.file_of(text)
    if name is None:
        return text
    found = _read(name)
    if found is None:
        moved = _moved(name)
        found = moved and _read(moved)
    if found is None:
        raise ResultGone(
            f"file {name!r}, which holds a result, is no more in storage {ALIAS!r}; if it cannot be "
            "restored, rerun the run from the step"
        )
    return found


def _read(name: str) -> str | None:
    try:
        with _storage().open(name) as file:
            content: bytes = file.read()
    except FileNotFoundError:
        return None
    except Exception as error:
        raise StorageUnavailable(f"file {name!r} could not be read from {_where(error)}") from error
    return content.decode()


def _moved(name: str) -> str | None:
    """The file in which that is now what was in this one: it may have been renewed since its row was read.

    The rows of the run tell that it was written for; it is kept as long as another has taken over steps.
    """
    with suppress(ValueError, IndexError):
        run_id = uuid.UUID(name.split("/")[1])
        rows = sql.execute(
            "SELECT output FROM durable_flows_step WHERE run_id = %(run)s AND output LIKE %(like)s "
            "UNION ALL "
            "SELECT result FROM durable_flows_run WHERE id = %(run)s AND result LIKE %(like)s",
            {"run": run_id, "like": f"{envelopes.FILE}%{_stem(name)}%"},
        )
        names = [envelopes.file_of(text) for (text,) in rows]
        return next(
            (one for one in names if one and one != name and _stem(one) == _stem(name)), None
        )
    return None


def forget(texts: Iterable[str]) -> None:
    """Remove the files that these texts name, before the rows are deleted that hold them.

    Raises:
        StorageUnavailable: one could not be removed; the rows are to stay.
    """
    for text in texts:
        name = envelopes.file_of(text)
        if name is not None:
            remove(name)


def remove(name: str) -> None:
    """Remove a file; none is left, whether or not it was there.

    Raises:
        StorageUnavailable: it could not be removed.
    """
    try:
        _storage().delete(name)
    except FileNotFoundError:
        return
    except Exception as error:
        raise StorageUnavailable(
            f"file {name!r} could not be removed from {_where(error)}"
        ) from error


def of_runs() -> Iterator[tuple[uuid.UUID, list[str]]]:
    """The runs that have files, each with the names of these.

    Raises:
        StorageUnavailable: they could not be listed.
    """
    try:
        if not _storage().exists(FOLDER):
            return
        folders, _ = _storage().listdir(FOLDER)
        for folder in folders:
            _, names = _storage().listdir(f"{FOLDER}/{folder}")
            with suppress(ValueError):  # somebody else's folder
                yield uuid.UUID(folder), [f"{FOLDER}/{folder}/{name}" for name in names]
    except Exception as error:
        raise StorageUnavailable(f"the files could not be listed in {_where(error)}") from error


def _storage() -> Storage:
    return storages[ALIAS]


def _what(key: str) -> str:
    return f"the result of step {key!r}" if key else "the run's result"


def _where(error: Exception) -> str:
    return f"storage {ALIAS!r}: {type(error).__name__}: {error}"
