"""Events as they are stored: which columns are read, and what they mean to a handler."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from durable_flows.engine import floors, sql
from durable_flows.engine.subjects import Subject
from durable_flows.rules import clock, payload
from durable_flows.rules.events import Event

AT_ONCE = 500  # events read by one statement where there may be very many
COLUMNS = ("id", "name", "data", "user", "key", "ts", "v", "context")


@dataclass(frozen=True, kw_only=True)
class Routed:
    """An event on its way through the router.

    Attributes:
        routed: its number there, 0 before it has one.
        attempts: as it was before this router took it; see `quarantine`.
    """

    id: uuid.UUID
    name: str
    routed: int
    received_at: datetime
    deliver_at: datetime
    arrival: int
    mark: int
    target: str
    depth: int
    sender: uuid.UUID | None
    attempts: int
    subject: Subject | None
    row: tuple[Any, ...] = field(repr=False)

    @property
    def place(self) -> tuple[datetime, int]:
        """Its place in the order of delivery."""
        return self.deliver_at, self.arrival

    @property
    def key(self) -> str:
        """The sender's own id."""
        return str(self.row[COLUMNS.index("key")])

    @cached_property
    def event(self) -> Event:
        """The event, decoded when it is first asked for: most events only start a flow."""
        return event(self.row)


def columns(alias: str) -> str:
    """What a SELECT must list so that `event` can read it."""
    return ", ".join(f'{alias}."{column}"' for column in COLUMNS)


def event(row: Sequence[Any]) -> Event:
    """The event behind the values of `columns`."""
    id_, name, data, user, key, ts, v, context = row
    public_id = str(sql.uid(id_))
    return Event(
        name=name,
        data=payload.loads(data),
        user=None if user is None else payload.loads(user),
        id=key or public_id,
        ts=sql.moment(ts),
        v=v or None,
        public_id=public_id,
        context=payload.loads(context) if context else {},
    )


def events_by_id(ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Event]:
    """The events of these ids that are still kept; no statement if none is asked for."""
    if not ids:
        return {}
    rows = sql.execute(
        f"SELECT {columns('e')} FROM durable_flows_event e WHERE {sql.among('e.id', 'ids')}",
        {"ids": sorted(ids)},
    )
    return {sql.uid(row[0]): event(row) for row in rows}


def event_id(found: Event) -> uuid.UUID:
    """The primary key of a stored event."""
    return uuid.UUID(found.public_id)


_ROUTED = (
    "e.routed, e.received_at, e.deliver_at, e.arrival, e.mark, e.target, e.depth, "
    "e.sender, e.attempts, e.subject_type_id, e.subject_id"
)


#: One unrouted event. In order, or a planner that remembers a burst would scan the table for it.
FIRST = "ORDER BY deliver_at, arrival LIMIT 1"

Condition = tuple[str, Mapping[str, Any]]  # SQL, and its parameters


EVERY: Condition = ("true", {})


def all_of(*conditions: Condition) -> Condition:
    """All of these conditions."""
    params: dict[str, Any] = {}
    for _, some in conditions:
        params.update(some)
    return " AND ".join(f"({clause})" for clause, _ in conditions), params


_FLOOR = {"floor": floors.EVENTS, "ever": floors.EVER}
#: Above the floor, to spare the entries of what is routed; what is below it a tick finds.
_OPEN = (
    f"e.routed_at IS NULL AND e.deliver_at <= %(now)s AND {floors.above('e.deliver_at', 'floor')}"
)


def unrouted(condition: Condition, *, now: datetime, most: int) -> list[Routed]:
    """Events whose time has come and that still ask for something, in order of delivery.

    Args:
        condition: a further condition on the event ``e``.
        now: events of later delivery are left out.
        most: of how many.
    """
    clause, params = condition
    rows = sql.execute(
        f"SELECT {_ROUTED}, {columns('e')} FROM durable_flows_event e "
        f"WHERE {_OPEN} AND {clause} ORDER BY e.deliver_at, e.arrival LIMIT %(most)s",
        {"now": now, "most": most, **_FLOOR, **params},
    )
    return [_routed(row) for row in rows]


def any_unrouted(
    now: datetime, condition: Condition = EVERY, *, of: Condition = EVERY
) -> bool | None:
    """Whether an event whose time has come still asks for something: None if there is none.

    Args:
        now: events of later delivery are left out.
        condition: that it must fulfil; False if there is one that does not.
        of: which events.
    """
    (clause, params), (which, more) = condition, of
    rows = sql.execute(
        f"SELECT {clause} FROM durable_flows_event e WHERE {_OPEN} AND {which} {FIRST}",
        {"now": now, **_FLOOR, **params, **more},
    )
    return bool(rows[0][0]) if rows else None


def oldest_unrouted(now: datetime) -> datetime | None:
    """The delivery time of the first event that still asks for something, looked for without a floor."""
    rows = sql.execute(
        "SELECT min(deliver_at) FROM durable_flows_event "
        "WHERE routed_at IS NULL AND deliver_at <= %(now)s",
        {"now": now},
    )
    (oldest,) = rows[0]
    return None if oldest is None else sql.moment(oldest)


def still_unrouted(ids: Sequence[uuid.UUID], of: Condition) -> set[uuid.UUID]:
    """Those of these events that still ask for something, and all that are settled in pieces.

    Args:
        ids: of events.
        of: which of those in pieces.
    """
    clause, params = of
    rows = sql.execute(
        f"SELECT id FROM durable_flows_event WHERE {sql.among('id', 'ids')} AND routed_at IS NULL "
        "UNION ALL SELECT e.id FROM durable_flows_event e "
        f"WHERE e.routed_at IS NULL AND e.attempts < 0 AND {clause}",
        {"ids": list(ids), **params},
    )
    return {sql.uid(row[0]) for row in rows}


def mark_routed(ids: Sequence[uuid.UUID]) -> None:
    """Everything that these events asked for is done."""
    sql.execute(
        "UPDATE durable_flows_event SET routed_at = %(now)s::timestamptz, error = '' "
        f"WHERE {sql.among('id', 'ids')}",
        {"now": clock.now(), "ids": list(ids)},
    )


def by_id(ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Routed]:
    """These events, as far as they are still kept."""
    rows = sql.execute(
        f"SELECT {_ROUTED}, {columns('e')} FROM durable_flows_event e "
        f"WHERE {sql.among('e.id', 'ids')}",
        {"ids": list(ids)},
    )
    return {event.id: event for event in map(_routed, rows)}


def routed_between(name: str, above: int, up_to: int) -> Iterator[list[Routed]]:
    """Events of this name with numbers in this part of the order of routing, some at a time."""
    while True:
        rows = sql.execute(
            f"SELECT {_ROUTED}, {columns('e')} FROM durable_flows_event e "
            "WHERE e.name = %(name)s AND e.routed > %(above)s AND e.routed <= %(up_to)s "
            f"ORDER BY e.routed LIMIT {AT_ONCE}",
            {"name": name, "above": above, "up_to": up_to},
        )
        found = [_routed(row) for row in rows]
        if found:
            yield found
        if len(found) < AT_ONCE:
            return
        above = found[-1].routed


def _routed(row: Sequence[Any]) -> Routed:
    routed, received_at, deliver_at, arrival, mark, target, depth, sender, attempts, *rest = row
    subject_type, subject_id, *rest = rest
    return Routed(
        id=sql.uid(rest[0]),
        name=rest[1],
        routed=routed or 0,
        received_at=sql.moment(received_at),
        deliver_at=sql.moment(deliver_at),
        arrival=arrival,
        mark=mark,
        target=target,
        depth=depth,
        sender=sender and sql.uid(sender),
        attempts=attempts,
        subject=Subject.read(subject_type, subject_id),
        row=tuple(rest),
    )
