"""Sets events aside whose routing fails, or kills its router, so that those behind them go on.

``event.attempts`` tells them apart: 0, nobody has begun; 1, a router had it in hand together with
others; 2 and more, one less than the number of routers that had it in hand alone. It is raised by the
transaction that numbers the event, and put back by a router that lives to tell of a failure. So what is
found raised was, as far as anybody can know, in the hand of a router that died: it is taken alone, and
only what was in hand alone can be found guilty. For what is settled in pieces the number is negative; see
`broadcast`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from itertools import takewhile

from durable_flows.engine import failpoints, ring, sql
from durable_flows.engine.stored import Routed
from durable_flows.models import Event
from durable_flows.rules import clock, outcomes

logger = logging.getLogger(__name__)

MOST_FAILURES = 2  # of an event in hand alone
_KILLED = "the router died twice while it routed this event and nothing else"


def first_innocent(events: Sequence[Routed]) -> Sequence[Routed]:
    """The events to take together: up to the first that may have killed a router, or that one alone."""
    if events and events[0].attempts:
        return events[:1]
    return list(takewhile(lambda event: not event.attempts, events))


def begun(event: Routed, *, alone: bool) -> int:
    """The value of ``attempts`` for an event that is now taken in hand."""
    return max(event.attempts, 1) + alone


def is_guilty(event: Routed) -> bool:
    """Whether routers died of it, or it failed, so often that it is not to be taken again."""
    return abs(event.attempts) > MOST_FAILURES


def give_back(events: Sequence[Routed]) -> None:
    """This router lives: whatever it had in hand has not killed it."""
    source, columns = sql.table(
        Event,
        "t",
        {"id": [event.id for event in events], "attempts": [event.attempts for event in events]},
    )
    sql.execute(
        f"UPDATE durable_flows_event SET attempts = t.attempts FROM {source} "
        "WHERE durable_flows_event.id = t.id AND routed_at IS NULL",
        columns,
    )


def count_failure(event: Routed, error: Exception) -> None:
    """Note that the routing of this event, alone, has failed; at the second time set it aside."""
    _count(event, begun(event, alone=True), error)


def count_failure_in_pieces(event: Routed, error: Exception) -> None:
    """The same for an event that is settled in pieces; that it was begun has been counted."""
    _count(event, min(event.attempts, -2), error)


def _count(event: Routed, attempts: int, error: Exception) -> None:
    described = outcomes.describe(error)
    last = abs(attempts) > MOST_FAILURES
    failpoints.reach("before_quarantine", event.name)
    sql.execute(
        "UPDATE durable_flows_event SET attempts = %(attempts)s, error = %(error)s, "
        "quarantined = %(last)s, "
        "routed_at = CASE WHEN %(last)s THEN %(now)s::timestamptz END "
        "WHERE id = %(id)s AND routed_at IS NULL",
        {
            "id": event.id,
            "attempts": attempts,
            "last": last,
            "now": clock.now(),
            "error": f"{described['name']}: {described['message']}\n\n{described['stack']}",
        },
    )
    logger.error(
        "event %s %s could not be routed, %s",
        *(event.name, event.id),
        "and is set aside" if last else "and is tried once more",
        exc_info=error,
    )


def set_aside(events: Sequence[Routed]) -> None:
    """Quarantine what is guilty; inside the router's transaction."""
    if not events:
        return
    sql.execute(
        "UPDATE durable_flows_event SET quarantined = true, routed_at = %(now)s::timestamptz, "
        "error = CASE WHEN error = '' THEN %(error)s ELSE error END "
        f"WHERE {sql.among('id', 'ids')} AND routed_at IS NULL",
        {"now": clock.now(), "error": _KILLED, "ids": [event.id for event in events]},
    )
    for event in events:
        logger.error("event %s %s is set aside: %s", event.name, event.id, _KILLED)


def lift(event_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Take back what was thought of routers that live: those that have these events in hand.

    Between its two transactions a router holds no lock. Others that come meanwhile cannot know that it
    lives; it does. Inside a transaction, under the router's lock.

    Returns:
        Those that had been set aside, and ask for something again.
    """
    rows = sql.execute(
        "UPDATE durable_flows_event SET quarantined = false, routed_at = NULL, error = '' "
        f"WHERE {sql.among('id', 'ids')} AND quarantined AND error = %(error)s RETURNING id",
        {"ids": list(event_ids), "error": _KILLED},
    )
    return {sql.uid(row[0]) for row in rows}


def reroute(event_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Let quarantined events be routed again, as if for the first time; joins the caller's transaction.

    They keep their place in the order of delivery, so they come before everything that waits now. It is
    a tick that finds them.

    Returns:
        Those that were in quarantine.
    """
    rows = sql.execute(
        "UPDATE durable_flows_event SET quarantined = false, routed_at = NULL, routed = NULL, "
        f"attempts = 0, error = '' WHERE {sql.among('id', 'ids')} AND quarantined RETURNING id",
        {"ids": list(event_ids)},
    )
    if rows:
        sql.on_commit(ring.tick)  # they are older than what a router looks at
    return [sql.uid(row[0]) for row in rows]
