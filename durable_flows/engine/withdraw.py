"""Takes back events that lie in the future, before they are delivered.

The router does it, in the order of delivery: whoever asks comes before the event's own time, and is in
the same shard. So what is withdrawn has started nothing, and what has started something is not withdrawn.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from durable_flows.engine import failpoints, insert, sql
from durable_flows.engine.stored import Routed
from durable_flows.errors import AlreadyDelivered, UnknownEvent
from durable_flows.models import Event
from durable_flows.rules import clock, events


def take_back(hand: Sequence[Routed]) -> Sequence[Routed]:
    """Take back what commands among these ask for; inside the router's first transaction.

    Only what nobody has taken in hand, and what comes after the command. Doing it again adds nothing.

    Returns:
        The others.
    """
    asked = [event for event in hand if event.name == events.WITHDRAW]
    if not asked:
        return hand
    source, columns = sql.table(
        Event,
        "t",
        {
            "id": [uuid.UUID(command.target) for command in asked],
            "deliver_at": [command.deliver_at for command in asked],
            "arrival": [command.arrival for command in asked],
        },
    )
    rows = sql.execute(
        "UPDATE durable_flows_event SET withdrawn = true, routed = %(never)s, "
        f"routed_at = %(now)s::timestamptz FROM {source} "
        "WHERE durable_flows_event.id = t.id AND durable_flows_event.routed_at IS NULL "
        "AND durable_flows_event.routed IS NULL "
        "AND (durable_flows_event.deliver_at, durable_flows_event.arrival) > (t.deliver_at, t.arrival) "
        "RETURNING durable_flows_event.id",
        {"now": clock.now(), "never": insert.NEVER, **columns},
    )
    gone = {sql.uid(row[0]) for row in rows}
    if gone:
        failpoints.reach("events_withdrawn")
    return [event for event in hand if event.id not in gone]


def check(event_id: uuid.UUID) -> None:
    """Raise `AlreadyDelivered` or `UnknownEvent` unless this event has been taken back."""
    rows = sql.execute(
        "SELECT withdrawn FROM durable_flows_event WHERE id = %(id)s", {"id": event_id}
    )
    if not rows:
        raise UnknownEvent(f"there is no event {event_id}; was it purged?")
    if not rows[0][0]:
        raise AlreadyDelivered(f"event {event_id} was delivered before this was carried out")
