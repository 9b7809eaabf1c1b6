"""INSERTs events, with the keys that make a sender's own ids unique: the only creator of events.

On the caller's connection and in the caller's transaction. The only row that another sender may have to
wait for is the key of an event that carries the same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db import connections
from uuid_utils.compat import uuid7

from durable_flows import models, signals
from durable_flows.engine import clocksync, observed, ring, shards, sql, subjects
from durable_flows.engine.senders import Sender
from durable_flows.engine.subjects import Subject
from durable_flows.errors import WrongDatabase
from durable_flows.rules import clock, events, keys, names
from durable_flows.rules.events import Encoded

RunOf = Callable[[uuid.UUID], uuid.UUID]

NEVER = 0  # the number, in the order of routing, of what is not routed: they begin at 2


def new(
    encoded: Sequence[Encoded],
    *,
    sender: Sender | None = None,
    run_of: RunOf | None = None,
    shard: int | None = None,
) -> list[uuid.UUID]:
    """Insert events, but for duplicates.

    Args:
        encoded: the events.
        sender: the run that sends them.
        run_of: tells the run that a command is about from the command's id; by default it is its target.
        shard: which router takes them, if that is not told by what they are.

    Returns:
        The ids under which they are known: that of the first of its id, for a duplicate.

    Raises:
        WrongDatabase: the open transaction is on another database than the tables.
        InvalidEvent: the row that one of them is about cannot be named.
    """
    if not encoded:
        return []
    check_database()
    encoded = _with_subjects(encoded)
    clocksync.synchronise()
    now = clock.now()
    ids = [uuid7() for _ in encoded]
    if any(event.key for event in encoded):
        with sql.atomic():  # a key without its event would drop the event for good
            ids = _dedupe(encoded, ids, now)
            under(encoded, ids, now, [sender] * len(ids), run_of, shard=shard)
    else:
        under(encoded, ids, now, [sender] * len(ids), run_of, shard=shard)
    sql.on_commit(ring.route)
    return ids


def _with_subjects(encoded: Sequence[Encoded]) -> Sequence[Encoded]:
    """The events, with the rows that they are about as these are stored."""
    alone = len(encoded) == 1
    given = {
        index: subjects.of(event.subject, "/subject" if alone else f"/{index}/subject")
        for index, event in enumerate(encoded)
        if event.subject is not ... and event.subject is not None
    }
    if not given:
        return encoded
    return [
        replace(event, subject=given[index]) if index in given else event
        for index, event in enumerate(encoded)
    ]


def _subject_of(event: Encoded, sender: Sender | None) -> Subject | None:
    """What an event is about: what it says, or else its sender."""
    if event.subject is ...:
        return sender.subject if sender else None
    subject: Subject | None = event.subject
    return subject


def _dedupe(encoded: Sequence[Encoded], ids: list[uuid.UUID], now: datetime) -> list[uuid.UUID]:
    """The ids under which the events are or will be known: the first sender's, for a duplicate."""
    hashes = {
        index: key_id(event.name, event.target, event.key)
        for index, event in enumerate(encoded)
        if event.key
    }
    first = {hash_: ids[index] for index, hash_ in reversed(hashes.items())}
    known: dict[uuid.UUID, uuid.UUID] = {}
    while left := sorted(first.keys() - known.keys()):
        known |= take_keys({hash_: first[hash_] for hash_ in left}, now)
        if len(known) < len(first):
            known |= taken_keys([hash_ for hash_ in left if hash_ not in known])
    return [known[hashes[index]] if index in hashes else own for index, own in enumerate(ids)]


def take_keys(wanted: Mapping[uuid.UUID, uuid.UUID], now: datetime) -> dict[uuid.UUID, uuid.UUID]:
    """Insert the keys that are not there: key → event. Returns these."""
    rows = sql.insert(
        models.EventKey,
        {
            "id": list(wanted),
            "event_id": list(wanted.values()),
            "created_at": [now] * len(wanted),
        },
        suffix="ON CONFLICT DO NOTHING RETURNING id, event_id",
    )
    return {sql.uid(hash_): sql.uid(event_id) for hash_, event_id in rows}


def taken_keys(hashes: list[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """Keys that were there, and that no purge takes away before this transaction has ended.

    What one has taken away meanwhile is missing among them: that id is free again.
    """
    rows = sql.execute(
        f"SELECT id, event_id FROM durable_flows_eventkey WHERE {sql.among('id', 'ids')} "
        "ORDER BY id FOR KEY SHARE",
        {"ids": hashes},
    )
    return {sql.uid(hash_): sql.uid(event_id) for hash_, event_id in rows}


def key_id(name: str, target: str, key: str) -> uuid.UUID:
    """The id of the row that keeps a sender's own id taken.

    It is unique for an event's name, or a signal's; for what starts a flow, for the flow.
    """
    if name == events.SIGNALLED:
        return keys.event_key_hash(f"{name} {target}", key)
    return keys.event_key_hash(f"{events.START} {target}" if target else name, key)


def under(
    encoded: Sequence[Encoded],
    ids: Sequence[uuid.UUID],
    now: datetime,
    senders: Sequence[Sender | None],
    run_of: RunOf | None,
    *,
    shard: int | None = None,
    delivered: bool = False,
) -> None:
    """Insert the events that are not there; each has a sender, or none."""
    by = dict(zip(ids, senders, strict=True))
    rows = _fresh(encoded, ids)
    about = [_subject_of(event, by[id_]) for id_, event in rows]
    columns: dict[str, list[Any]] = {
        "id": [id_ for id_, _ in rows],
        "name": [event.name for _, event in rows],
        "data": [event.data for _, event in rows],
        "user": [event.user for _, event in rows],
        "key": [event.key for _, event in rows],
        "ts": [event.ts or now for _, event in rows],
        "received_at": [now] * len(rows),
        "deliver_at": [max(event.ts or now, now) for _, event in rows],
        "v": [event.v for _, event in rows],
        "target": [event.target for _, event in rows],
        "context": [event.context for _, event in rows],
        "sender": [sender and sender.run_id for sender in (by[id_] for id_, _ in rows)],
        "depth": [sender.depth if sender else 0 for sender in (by[id_] for id_, _ in rows)],
        "subject_type_id": [subject and subject.type_id for subject in about],
        "subject_id": [subject and subject.id for subject in about],
        "error": [""] * len(rows),
        "shard": [
            shards.number_of(str(run_of(id_)) if run_of else event.target or event.name)
            if shard is None
            else shard
            for id_, event in rows
        ],
    }
    if delivered:
        columns |= {"routed": [NEVER] * len(rows), "routed_at": [now] * len(rows)}
    computed = {"mark": sql.counter("routed")}
    if sql.postgres():
        computed["arrival"] = f"nextval('{sql.SEQUENCES['arrival']}')"
    elif rows:
        columns["arrival"] = sql.draw("arrival", len(rows))
    sql.insert(models.Event, columns, computed=computed)
    if signals.event_received.receivers and not delivered:
        _tell_of(columns)


def _tell_of(columns: Mapping[str, Sequence[Any]]) -> None:
    """Tell observers of what was inserted, but for what is the engine's own."""
    facts = zip(*(columns[name] for name in ("id", "name", "sender", "deliver_at")), strict=True)
    told = [row for row in facts if not row[1].startswith(names.RESERVED)]
    if told:
        observed.events(told, columns["received_at"][0])


def _fresh(encoded: Sequence[Encoded], ids: Sequence[uuid.UUID]) -> list[tuple[uuid.UUID, Encoded]]:
    """The events to insert: not those whose id belongs to an event that came before."""
    seen = _stored([id_ for id_, event in zip(ids, encoded, strict=True) if event.key])
    fresh = []
    for id_, event in zip(ids, encoded, strict=True):
        if id_ not in seen:
            fresh.append((id_, event))
            seen.add(id_)
    return fresh


def _stored(ids: list[uuid.UUID]) -> set[uuid.UUID]:
    if not ids:
        return set()
    rows = sql.execute(
        f"SELECT id FROM durable_flows_event WHERE {sql.among('id', 'ids')}", {"ids": ids}
    )
    return {sql.uid(row[0]) for row in rows}


def check_database() -> None:
    """A send beside the caller's transaction would not be undone with it: say so."""
    own = sql.connection()
    if own.in_atomic_block:
        return
    for other in connections.all(initialized_only=True):
        if other.alias != own.alias and other.in_atomic_block:
            raise WrongDatabase(
                f"the open transaction is on database {other.alias!r}, the tables of durable_flows "
                f"are on {own.alias!r}: a rollback would not undo this; open "
                f"transaction.atomic(using={own.alias!r}) around both"
            )
