"""Deletes rows that may go, with all that belongs to them. In a transaction; see `ripe` for what may."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from durable_flows.engine import files, ripe, signatures, sql, stored
from durable_flows.models import EventMatch
from durable_flows.rules import clock
from durable_flows.rules.envelopes import FILE
from durable_flows.rules.retention import Bounds

MOST_FILES = 50  # in one transaction of several runs: a storage takes its time
SILENT = timedelta(days=7)  # what was published so long ago is as good as never published
AT_ONCE = 1_000  # rows of those of which there are few

#: The text that names a file, of those in a column.
_FILED = f"CASE WHEN substr({{0}}, 1, {len(FILE)}) = '{FILE}' THEN {{0}} END"
_OF_RUNS = ("attempt", "runwarning", "wait", "fanout", "approval")


class TooMuch(Exception):
    """This cannot be done in one short transaction: it is to be rolled back, and done in smaller ones."""


def runs(bounds: Bounds, ids: Sequence[uuid.UUID]) -> Counter[str]:
    """Delete those of these runs that may go, and their triggers as far as these may.

    Returns:
        How many of each kind: ``"completed"``, ``"failed"``, ``"cancelled"`` and ``"events"``.

    Raises:
        TooMuch: nothing must be committed.
    """
    going = ripe.runs(bounds, ids)
    if not going:
        return Counter()
    own = {"runs": list(going)}
    texts = sql.execute(
        f"DELETE FROM durable_flows_step WHERE {sql.among('run_id', 'runs')} "
        f"RETURNING run_id, {_FILED.format('output')}",
        own,
    )
    for name in _OF_RUNS:
        sql.execute(f"DELETE FROM durable_flows_{name} WHERE {sql.among('run_id', 'runs')}", own)
    gone = sql.execute(
        f"DELETE FROM durable_flows_run WHERE {sql.among('id', 'runs')} "
        f"RETURNING id, {_FILED.format('result')}, state",
        own,
    )
    removed = Counter(state for _, _, state in gone) + events(bounds, list(set(going.values())))
    _forget(((sql.uid(row[0]), row[1]) for row in [*texts, *gone]), alone=len(gone) == 1)
    return removed


def _forget(texts: Iterable[tuple[uuid.UUID, str | None]], *, alone: bool) -> None:
    """Remove the files of these runs. Those that came with steps taken over are of the run before.

    Last of all: whoever dies after this leaves rows without their files, never files without rows.
    """
    found = {text for run, text in texts if text and files.is_own(text, run)}
    if len(found) > MOST_FILES and not alone:
        raise TooMuch
    if found:
        files.forget(found)


def events(bounds: Bounds, ids: Sequence[uuid.UUID]) -> Counter[str]:
    """Delete those of these events that may go. Returns how many, under ``"events"``."""
    going = ripe.events(bounds, ids)
    if not going:
        return Counter()
    _matches(going)
    own = {"events": [event.id for event in going]}
    taken = {**own, "keys": [event.key for event in going if event.key]}
    if taken["keys"]:  # an edition of an event has its id, which is still that of the event itself
        sql.execute(
            f"DELETE FROM durable_flows_eventkey WHERE {sql.among('id', 'keys')} "
            f"AND {sql.among('event_id', 'events')}",
            taken,
        )
    sql.execute(f"DELETE FROM durable_flows_admission WHERE {sql.among('event_id', 'events')}", own)
    sql.execute(f"DELETE FROM durable_flows_event WHERE {sql.among('id', 'events')}", own)
    return Counter(events=len(going))


def _matches(going: Sequence[ripe.Doomed]) -> None:
    """Delete what these events match: by what they match, as no index leads there from the event."""
    in_use = signatures.read({event.name for event in going})
    matched = [event.id for event in going if event.name in in_use]
    if not matched:
        return
    found = stored.by_id(matched)
    places = [
        (match, event.routed)
        for event in found.values()
        for match in signatures.hashes_of(event.event, in_use)
    ]
    if not places:
        return
    source, columns = sql.table(
        EventMatch,
        "t",
        {"match": [match for match, _ in places], "routed": [number for _, number in places]},
    )
    sql.execute(
        "DELETE FROM durable_flows_eventmatch "
        f"WHERE (match, routed) IN (SELECT t.match, t.routed FROM {source})",
        columns,
    )


def rest(bounds: Bounds) -> Counter[str]:
    """Delete bulk actions that are over, and deployments that are gone: there are few of either.

    Returns:
        How many, under ``"bulk actions"`` and ``"deployments"``.
    """
    actions = _some(
        "bulkaction",
        "id",
        "state = 'done' AND ended_at <= %(completed)s::timestamptz "
        "OR state = 'cancelled' AND ended_at <= %(cancelled)s::timestamptz",
        completed=bounds.completed,
        cancelled=bounds.cancelled,
    )
    gone = _some(
        "deployment",
        "digest",
        "alive_at <= %(silent)s::timestamptz",
        silent=clock.now() - SILENT,
    )
    return Counter({"bulk actions": actions, "deployments": gone})


def _some(name: str, key: str, condition: str, **moments: datetime) -> int:
    rows = sql.execute(
        f"DELETE FROM durable_flows_{name} WHERE {key} IN (SELECT {key} FROM durable_flows_{name} "
        f"WHERE {condition} ORDER BY {key} LIMIT {AT_ONCE} FOR UPDATE SKIP LOCKED) RETURNING {key}",
        moments,
    )
    return len(rows)
