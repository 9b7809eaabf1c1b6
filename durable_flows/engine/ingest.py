"""send(), start() and what all commands do: validate, dedupe, INSERT, and nothing else.

Everything here happens on the caller's connection and in the caller's transaction. The only row that
another sender may have to wait for is the key of an event that carries the same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack, overload

from asgiref.sync import sync_to_async
from django.db import connections
from uuid_utils.compat import uuid7

from durable_flows import conf, installed, models, signals
from durable_flows.engine import clocksync, keeping, observed, ring, shards, sql, subjects
from durable_flows.engine.subjects import Subject
from durable_flows.errors import InvalidEvent, WrongDatabase
from durable_flows.flows import Flow, provide
from durable_flows.middleware import Middleware
from durable_flows.registry import registry
from durable_flows.rules import clock, events, keys, names, payload
from durable_flows.rules.event_types import EventType
from durable_flows.rules.events import Encoded, Event
from durable_flows.rules.payload import Limits
from durable_flows.rules.values import Object

D = TypeVar("D")

RunOf = Callable[[uuid.UUID], uuid.UUID]

NEVER = 0  # the number, in the order of routing, of what is not routed: they begin at 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The run that sends an event.

    Attributes:
        depth: how deep what it sends stands in a chain of runs and events.
        subject: what it is about, and what it sends, unless that says otherwise.
        context: what was captured where its own event was sent; what it sends has that, too.
        middleware: of its flow: has its say about what it sends, after that of the settings.
    """

    run_id: uuid.UUID
    depth: int
    subject: Subject | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    middleware: tuple[Middleware, ...] = ()


_here: ContextVar[Sender | None] = ContextVar("durable_flows_sender", default=None)


def sender() -> Sender | None:
    """The run that sends what is sent here, if one does."""
    return _here.get()


@contextmanager
def sending_as(sender: Sender) -> Iterator[None]:
    """Inside the block, what is sent or asked for here is sent by this run, whatever sends it."""
    token = _here.set(sender)
    try:
        yield
    finally:
        _here.reset(token)


class Fields(TypedDict, total=False):
    """What may be said of an event beside its name and data."""

    user: dict[str, Any] | None
    id: str | None
    ts: datetime | int | None
    v: str | None
    subject: Any


@overload
def send(
    name: EventType[D], data: D | Mapping[str, Any] | None = None, **fields: Unpack[Fields]
) -> list[str]: ...
@overload
def send(name: str, data: dict[str, Any] | None = None, **fields: Unpack[Fields]) -> list[str]: ...
@overload
def send(name: Event[Any] | Sequence[Event[Any]]) -> list[str]: ...
def send(
    name: str | Event[Any] | Sequence[Event[Any]],
    data: Any = None,
    *,
    user: dict[str, Any] | None = None,
    id: str | None = None,
    ts: datetime | int | None = None,
    v: str | None = None,
    subject: Any = ...,
) -> list[str]:
    """Send one event or a list of them, all or none; joins the caller's transaction.

    Args:
        name: the event's name or `EventType`, an `Event`, or a list of `Event`.
        data: a JSON object; of an event with a type also an instance of its model.
        user: a JSON object about the person concerned.
        id: the sender's own id: a second event of this name and id is dropped.
        ts: when it happened; in the future it delays the event until then.
        v: version of the shape of ``data``; default that of the `EventType`.
        subject: the row that it is about, a saved instance of a model. Runs that it starts are about
            the same. By default what the run is about that sends it; None: nothing.

    Returns:
        The public ids, in order. For a duplicate, that of the event that came first.

    Raises:
        InvalidEvent: one of them is not valid; nothing was stored.
        WrongDatabase: the caller's transaction is on another database than the app's tables.
    """
    if isinstance(name, str):
        data = {} if data is None else data
        batch = [Event(name, data, user=user, id=id, ts=ts, v=v, subject=subject)]
    else:
        batch = events.as_list(name, "send() takes a name and data; without them it")
        if subject is not ... or (data, user, id, ts, v) != (None,) * 5:
            raise TypeError(
                "send(Event(...)) takes no further fields: say data, user, id, ts, v and subject in the "
                "Event"
            )
    return [str(public_id) for public_id in store(batch)]


@overload
async def asend(
    name: EventType[D], data: D | Mapping[str, Any] | None = None, **fields: Unpack[Fields]
) -> list[str]: ...
@overload
async def asend(
    name: str, data: dict[str, Any] | None = None, **fields: Unpack[Fields]
) -> list[str]: ...
@overload
async def asend(name: Event[Any] | Sequence[Event[Any]]) -> list[str]: ...
async def asend(*args: Any, **kwargs: Any) -> list[str]:
    """`send` for async code: the same arguments, result and errors."""
    return await sync_to_async(send)(*args, **kwargs)


def store(batch: Sequence[Event[Any]], *, sender: Sender | None = None) -> list[uuid.UUID]:
    """Validate all events, then insert all that are no duplicates. Returns the public ids."""
    limits = conf.settings()
    if len(batch) > limits.MAX_EVENTS:
        raise InvalidEvent(
            f"{len(batch):,} events in one call, the limit is {limits.MAX_EVENTS:,} "
            f"({conf.shown('MAX_EVENTS')}); send them in several calls"
        )
    sender = sender or _here.get()
    leaving = [_leaving(event, sender) for event in batch]
    encoded = events.encode_all(leaving, limits=limits.event_limits, seal=keeping.sealing())
    if (size := sum(event.size for event in encoded)) > limits.MAX_SEND_BYTES:
        raise InvalidEvent(
            f"the events of one call have {size:,} bytes together, the limit is "
            f"{limits.MAX_SEND_BYTES:,} ({conf.shown('MAX_SEND_BYTES')}); send them in several calls"
        )
    return _insert(encoded, sender=sender)


def _leaving(event: Event[Any], sender: Sender | None) -> Event[Any]:
    """An event, with what is captured where it is sent."""
    if sender is None:
        return installed.chain().sent(event)
    if sender.context:
        event = replace(event, context={**sender.context, **event.context})
    return installed.chain(sender.middleware).sent(event)


def store_all(batch: Iterable[Event[Any]]) -> None:
    """As `store`, however many there are: by several statements, each as large as a call may be."""
    limits, sender, seal = conf.settings(), _here.get(), keeping.sealing()
    piece: list[Encoded] = []
    size = 0
    for event in batch:
        leaving = [_leaving(event, sender)]
        (encoded,) = events.encode_all(leaving, limits=limits.event_limits, seal=seal)
        if len(piece) >= limits.MAX_EVENTS or size + encoded.size > limits.MAX_SEND_BYTES:
            _insert(piece, sender=sender)
            piece, size = [], 0
        piece.append(encoded)
        size += encoded.size
    _insert(piece, sender=sender)


def start(
    flow: Flow,
    data: Object | None = None,
    *,
    user: dict[str, Any] | None = None,
    key: str | None = None,
    subject: Any = ...,
) -> str:
    """The verb behind `Flow.start`."""
    run_of = partial(keys.flow_run_id, flow.id)
    sender, type_ = _here.get(), _type(events.START, flow.id)
    carried: Any = {} if data is None else data
    asked = _leaving(Event(events.START, carried, user=user, subject=subject), sender)
    return str(run_of(_command_to_run(asked, flow.id, run_of, key=key, sender=sender, type_=type_)))


provide(start=start)


def invoke(
    flow_id: str,
    data: Object,
    *,
    user: dict[str, Any] | None,
    v: str | None,
    key: str | None,
    subject: Any,
    sender: Sender,
) -> uuid.UUID:
    """Ask for a run whose end the sender is told. Returns the id of the command that starts it.

    Of a flow that was started or invoked with the same key before it is that command's id.
    """
    run_of = partial(keys.flow_run_id, flow_id)
    carried: Any = data
    asked = _leaving(Event(events.INVOKE, carried, user=user, v=v, subject=subject), sender)
    type_ = _type(events.INVOKE, flow_id)
    return _command_to_run(asked, flow_id, run_of, key=key, sender=sender, type_=type_)


def _command_to_run(
    asked: Event[Any],
    flow_id: str,
    run_of: RunOf,
    *,
    key: str | None,
    sender: Sender | None,
    type_: EventType[Any] | None,
) -> uuid.UUID:
    """Store a command that starts a run. Returns its id."""
    return command(
        asked.name,
        flow_id,
        asked.data,
        run_of,
        sender=sender,
        user=asked.user,
        key=key,
        v=asked.v,
        subject=asked.subject,
        context=asked.context,
        type_=type_,
        seal=keeping.sealing(),
    )


def _type(name: str, flow_id: str) -> EventType[Any] | None:
    """As what a flow that is started, or invoked, gets its data."""
    flow = registry.find(flow_id)
    return None if flow is None else flow.type_of(name)


def invoke_all(
    flow_id: str,
    items: Sequence[Mapping[str, Any] | Object],
    *,
    later: Sequence[bool],
    sender: Sender,
) -> list[uuid.UUID]:
    """Ask for a run for each of these data, or prepare to. Returns the ids of the commands.

    Args:
        flow_id: of which flow.
        items: what each finds in ``event.data``.
        later: whether a command is not delivered before somebody brings it forward.
        sender: the run that asks, which is told of their ends.
    """
    limits, type_ = conf.settings().event_limits, _type(events.INVOKE, flow_id)
    asked = [_leaving(_asking(data), sender) for data in items]
    encoded = [
        events.encode_command(
            events.INVOKE,
            flow_id,
            one.data,
            context=one.context,
            limits=limits,
            pointer=f"/{n}",
            type_=type_,
            seal=keeping.sealing(),
        )
        for n, one in enumerate(asked)
    ]
    delayed = [
        replace(one, ts=events.LATEST) if wait else one
        for one, wait in zip(encoded, later, strict=True)
    ]
    return _insert(delayed, sender=sender, run_of=partial(keys.flow_run_id, flow_id))


def _asking(data: Any) -> Event[Any]:
    """For a run with these data."""
    return Event(events.INVOKE, dict(data) if isinstance(data, Mapping) else data)


def decide(approval_id: uuid.UUID, said: dict[str, Any], *, run_id: uuid.UUID) -> bool:
    """Store the decision on an approval. Returns whether it is the first."""
    event_id = command(events.DECIDED, str(run_id), said, lambda _: run_id, key=str(approval_id))
    rows = sql.execute("SELECT data FROM durable_flows_event WHERE id = %(id)s", {"id": event_id})
    return bool(payload.loads(rows[0][0]) == said)


def tell_ends(run_ids: Sequence[uuid.UUID]) -> None:
    """Say, in the transaction that ends them, that these runs have ended."""
    command_all(events.ENDED, {run_id: {} for run_id in run_ids})


def cancel_all(reasons: Mapping[uuid.UUID, str]) -> None:
    """Ask for these runs to be cancelled, each for its reason."""
    command_all(events.CANCEL, {run_id: {"reason": why} for run_id, why in reasons.items()})


def tell_of_ends(told: Sequence[tuple[uuid.UUID, Encoded, Sender]]) -> None:
    """Store events of the engine's own under these ids; those that are there already stay as they are."""
    if not told:
        return
    ids, encoded, senders = zip(*told, strict=True)
    _insert_rows(encoded, ids, clock.now(), senders, None)
    sql.on_commit(ring.route)


def command(
    name: str,
    target: str,
    data: Object,
    run_of: RunOf | None = None,
    *,
    sender: Sender | None = None,
    shard: int | None = None,
    limits: Limits | None = None,
    **fields: Any,
) -> uuid.UUID:
    """Store a command. Returns its id.

    Args:
        name: what is asked.
        target: the flow's, the run's or the event's id.
        data: what it carries.
        run_of: tells the run that it is about from its own id; by default it is the target.
        sender: the run that asks.
        shard: which router takes it, if that is not the run's.
        limits: what it may carry, if that is not what an event may.
        fields: `encode_command` knows them.

    Raises:
        InvalidEvent: it carries what cannot be stored.
    """
    limits = limits or conf.settings().event_limits
    encoded = events.encode_command(name, target, data, limits=limits, **fields)
    return _insert([encoded], sender=sender or _here.get(), run_of=run_of, shard=shard)[0]


def store_for_one_run(encoded: Encoded, *, depth: int, sent_by: uuid.UUID | None) -> uuid.UUID:
    """Store an event that is never routed: the run that is made for it finds it, and nobody else.

    Its number in the order of routing is that of nothing: no look-back finds it.

    Args:
        encoded: the event; its target is the run that is done again with it.
        depth: how many runs deep it stands.
        sent_by: the run that sent the event that this one is an edition of.
    """
    check_database()
    clocksync.synchronise()
    now, event_id = clock.now(), uuid7()
    sender = None if sent_by is None else Sender(run_id=sent_by, depth=depth)
    _insert_rows([encoded], [event_id], now, [sender], None, delivered=True)
    return event_id


def command_all(name: str, data: Mapping[uuid.UUID, dict[str, Any]]) -> None:
    """Store commands, each about the run that it is addressed to: run → what it carries."""
    limits = conf.settings().event_limits
    _insert(
        [
            events.encode_command(name, str(target), carried, limits=limits)
            for target, carried in data.items()
        ]
    )


def _insert(
    encoded: Sequence[Encoded],
    *,
    sender: Sender | None = None,
    run_of: RunOf | None = None,
    shard: int | None = None,
) -> list[uuid.UUID]:
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
            _insert_rows(encoded, ids, now, [sender] * len(ids), run_of, shard=shard)
    else:
        _insert_rows(encoded, ids, now, [sender] * len(ids), run_of, shard=shard)
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
        known |= _take_keys({hash_: first[hash_] for hash_ in left}, now)
        if len(known) < len(first):
            known |= _taken_keys([hash_ for hash_ in left if hash_ not in known])
    return [known[hashes[index]] if index in hashes else own for index, own in enumerate(ids)]


def _take_keys(wanted: Mapping[uuid.UUID, uuid.UUID], now: datetime) -> dict[uuid.UUID, uuid.UUID]:
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


def _taken_keys(hashes: list[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
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


def _insert_rows(
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
