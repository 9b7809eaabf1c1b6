"""send(), start() and what all commands do: validate, and let INSERT: nothing else.

Everything here happens on the caller's connection and in the caller's transaction. The only row that
another sender may have to wait for is the key of an event that carries the same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack, overload

from asgiref.sync import sync_to_async
from uuid_utils.compat import uuid7

from durable_flows import conf, installed
from durable_flows.engine import clocksync, insert, keeping, ring, senders, sql
from durable_flows.engine.insert import RunOf
from durable_flows.engine.senders import Sender
from durable_flows.errors import InvalidEvent
from durable_flows.flows import Flow, provide
from durable_flows.registry import registry
from durable_flows.rules import clock, events, keys, payload
from durable_flows.rules.event_types import EventType
from durable_flows.rules.events import Encoded, Event
from durable_flows.rules.payload import Limits
from durable_flows.rules.values import Object

D = TypeVar("D")


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
    sender = sender or senders.here()
    leaving = [_leaving(event, sender) for event in batch]
    encoded = events.encode_all(leaving, limits=limits.event_limits, seal=keeping.sealing())
    if (size := sum(event.size for event in encoded)) > limits.MAX_SEND_BYTES:
        raise InvalidEvent(
            f"the events of one call have {size:,} bytes together, the limit is "
            f"{limits.MAX_SEND_BYTES:,} ({conf.shown('MAX_SEND_BYTES')}); send them in several calls"
        )
    return insert.new(encoded, sender=sender)


def _leaving(event: Event[Any], sender: Sender | None) -> Event[Any]:
    """An event, with what is captured where it is sent."""
    if sender is None:
        return installed.chain().sent(event)
    if sender.context:
        event = replace(event, context={**sender.context, **event.context})
    return installed.chain(sender.middleware).sent(event)


def store_all(batch: Iterable[Event[Any]]) -> None:
    """As `store`, however many there are: by several statements, each as large as a call may be."""
    limits, sender, seal = conf.settings(), senders.here(), keeping.sealing()
    piece: list[Encoded] = []
    size = 0
    for event in batch:
        leaving = [_leaving(event, sender)]
        (encoded,) = events.encode_all(leaving, limits=limits.event_limits, seal=seal)
        if len(piece) >= limits.MAX_EVENTS or size + encoded.size > limits.MAX_SEND_BYTES:
            insert.new(piece, sender=sender)
            piece, size = [], 0
        piece.append(encoded)
        size += encoded.size
    insert.new(piece, sender=sender)


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
    sender, type_ = senders.here(), _type(events.START, flow.id)
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
    return insert.new(delayed, sender=sender, run_of=partial(keys.flow_run_id, flow_id))


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
    insert.under(encoded, ids, clock.now(), senders, None)
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
    return insert.new([encoded], sender=sender or senders.here(), run_of=run_of, shard=shard)[0]


def store_for_one_run(encoded: Encoded, *, depth: int, sent_by: uuid.UUID | None) -> uuid.UUID:
    """Store an event that is never routed: the run that is made for it finds it, and nobody else.

    Its number in the order of routing is that of nothing: no look-back finds it.

    Args:
        encoded: the event; its target is the run that is done again with it.
        depth: how many runs deep it stands.
        sent_by: the run that sent the event that this one is an edition of.
    """
    insert.check_database()
    clocksync.synchronise()
    now, event_id = clock.now(), uuid7()
    sender = None if sent_by is None else Sender(run_id=sent_by, depth=depth)
    insert.under([encoded], [event_id], now, [sender], None, delivered=True)
    return event_id


def command_all(name: str, data: Mapping[uuid.UUID, dict[str, Any]]) -> None:
    """Store commands, each about the run that it is addressed to: run → what it carries."""
    limits = conf.settings().event_limits
    insert.new(
        [
            events.encode_command(name, str(target), carried, limits=limits)
            for target, carried in data.items()
        ]
    )
