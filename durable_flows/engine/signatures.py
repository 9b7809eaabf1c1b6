"""Which paths the waits for an event name compare, so that an event is matched by a few index probes.

An event's hash by a signature equals the hash of every wait that it matches, however many there are.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from durable_flows.engine import sql
from durable_flows.models import Signature
from durable_flows.rules import keys, signals
from durable_flows.rules.equalities import Condition
from durable_flows.rules.events import SIGNALLED, Event

Paths = tuple[str, ...]
Signatures = Mapping[str, Sequence[Paths]]  # event name → the signatures in use

#: In use from the beginning, without a row: signals are kept for whoever comes, be it long after them.
BUILT_IN: Signatures = {SIGNALLED: [signals.PATHS]}


def is_built_in(event_name: str, paths: Paths) -> bool:
    """Whether every event of this name has been matched by this signature."""
    return paths in BUILT_IN.get(event_name, ())


def signature_id(event_name: str, paths: Paths) -> uuid.UUID:
    """The primary key of a signature."""
    return keys.match_hash("flows/signature", ["name", "paths"], [event_name, list(paths)])


def write(wanted: Iterable[tuple[str, Paths]]) -> None:
    """See to it that routers look for these: in the wait's own transaction, or before it."""
    new = {(name, paths) for name, paths in wanted if not is_built_in(name, paths)}
    rows = sorted((signature_id(name, paths), name, json.dumps(paths)) for name, paths in new)
    sql.insert(
        Signature,
        {
            "id": [row[0] for row in rows],
            "event_name": [row[1] for row in rows],
            "paths": [row[2] for row in rows],
        },
    )


def read(event_names: Iterable[str]) -> Signatures:
    """The signatures in use for these names, as of this statement: never cached."""
    names = set(event_names)
    rows = sql.execute(
        "SELECT event_name, paths FROM durable_flows_signature "
        f"WHERE {sql.among('event_name', 'names')}",
        {"names": sorted(names)},
    )
    found: dict[str, list[Paths]] = defaultdict(list)
    for name in names & BUILT_IN.keys():
        found[name] += BUILT_IN[name]
    for name, text in rows:
        paths = tuple(json.loads(text))
        if not is_built_in(name, paths):
            found[name].append(paths)
    return found


def complete() -> None:
    """Note from which number on every event has been matched by the signatures that are committed.

    Whoever draws a higher number reads the signatures later, and so has seen them. To be called in a
    later transaction than the one that wrote them.
    """
    sql.execute(
        f"UPDATE durable_flows_signature SET complete_from = {sql.counter('routed')} "
        "WHERE complete_from IS NULL"
    )


def complete_from(event_name: str, paths: Paths) -> int:
    """The number from which on every event has been matched by this committed signature."""
    if is_built_in(event_name, paths):
        return 0
    question = "SELECT complete_from FROM durable_flows_signature WHERE id = %(id)s"
    params = {"id": signature_id(event_name, paths)}
    rows = sql.execute(question, params)
    if rows and rows[0][0] is None:
        complete()
        rows = sql.execute(question, params)
    number: int = rows[0][0]
    return number


def young(event_names: Iterable[str], since: int) -> list[tuple[str, Paths, int]]:
    """Committed signatures by which not every event after number ``since`` has been matched.

    Returns:
        Event name, paths, and the number from which on every event has been.
    """
    question = (
        "SELECT event_name, paths, complete_from FROM durable_flows_signature "
        f"WHERE {sql.among('event_name', 'names')} "
        "AND (complete_from IS NULL OR complete_from > %(since)s)"
    )
    params = {"names": sorted(set(event_names)), "since": since}
    rows = sql.execute(question, params)
    if any(number is None for _, _, number in rows):
        complete()
        rows = sql.execute(question, params)
    return [(name, tuple(json.loads(paths)), number) for name, paths, number in rows]


def hash_of(document: Mapping[str, Any], paths: Paths) -> uuid.UUID | None:
    """What an event matches by a signature; None if it lacks a value: missing equals nothing."""
    values = [keys.read(document, keys.parse_path(path)) for path in paths]
    if any(value is keys.MISSING for value in values):
        return None
    return keys.match_hash(document["name"], paths, values)


def hash_for(event_name: str, asked: Condition, own: Mapping[str, Any]) -> uuid.UUID | None:
    """What an event of this name must match; None if the run's own event lacks a value it is to have."""
    values = asked.values(own)
    if any(value is keys.MISSING for value in values):
        return None
    return keys.match_hash(event_name, asked.paths, values)


def hashes_of(event: Event, signatures: Signatures) -> list[uuid.UUID]:
    """Everything that an event matches."""
    document = event.as_dict()
    found = (hash_of(document, paths) for paths in signatures.get(event.name, ()))
    return [hash_ for hash_ in found if hash_ is not None]
