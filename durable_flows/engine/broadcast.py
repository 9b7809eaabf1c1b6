"""Settles an event that very many waits match, in pieces, each in a transaction of its own.

The event stays unrouted until its last piece is done; ``attempts`` is negative meanwhile, and what is
pending is the state: whoever goes on begins at the first wait that is still there. Later events are
routed between the pieces, and leave to this one the waits that both match.

A router notes that it begins (``attempts`` falls by one), and the first piece that is done takes that
back. So an event that fails or kills twice without getting any further is set aside, as any other.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from durable_flows.engine import cancel, conditions, quarantine, settle, sql, stored
from durable_flows.engine.stored import Routed
from durable_flows.rules import clock

MOST = 1_000  # events that are settled in pieces at one time
NOT_UNDERWAY: stored.Condition = ("e.attempts >= 0", {})
_UNDERWAY = "e.attempts < 0"


@dataclass(slots=True)
class Pieces:
    """How far this router has got.

    Attributes:
        places: event → the last wait that was looked at.
        queues: on which there is something to do now.
        routed: how many events have had their last piece.
    """

    places: dict[uuid.UUID, settle.Place] = field(default_factory=dict)
    queues: set[str] = field(default_factory=set)
    routed: int = 0


def begin(event: Routed) -> None:
    """From now on this event is settled in pieces; inside the router's transaction."""
    _note(event, min(-1, -event.attempts))


def underway(of: stored.Condition) -> list[Routed]:
    """The events that are settled in pieces now, in order."""
    return stored.unrouted(stored.all_of((_UNDERWAY, {}), of), now=clock.now(), most=MOST)


def settle_piece(pieces: Pieces, condition: stored.Condition) -> bool:
    """Settle the next piece of the oldest of them; inside a transaction, under the router's lock.

    Returns:
        False if it was only noted that this router begins: call again, in another transaction.
    """
    whole = stored.all_of((_UNDERWAY, {}), condition)
    if pieces.places:
        quarantine.lift(pieces.places)
    found = stored.unrouted(whole, now=clock.now(), most=1)
    for event in found:
        if event.id in pieces.places:
            _settle(event, pieces)
        elif quarantine.is_guilty(event):
            quarantine.set_aside([event])
        else:  # committed before any expression of the waits is evaluated
            _count_begun([event.id], -1)
            pieces.places[event.id] = settle.Place()
            return False
    return True


def leave(pieces: Pieces) -> None:
    """Take back that this router has begun, where it got no further: it lives, and others go on."""
    begun = [event_id for event_id, place in pieces.places.items() if place == settle.Place()]
    if begun:
        _count_begun(begun, 1)


def count_failure(pieces: Pieces, error: Exception, of: stored.Condition) -> None:
    """Note that a piece has failed; at the second time set the event aside."""
    for event in underway(of)[:1]:
        pieces.places.pop(event.id, None)
        quarantine.count_failure_in_pieces(event, error)


def _settle(event: Routed, pieces: Pieces) -> None:
    judge = conditions.Judge()
    found, place = settle.offer_piece(event, judge, pieces.places[event.id])
    settle.lock_due(found.run_ids)
    pieces.queues |= settle.resume(found)
    cancel.by_rules(found.cancels)
    judge.note()
    if place is None:
        stored.mark_routed([event.id])
        del pieces.places[event.id]
        pieces.routed += 1
    else:
        pieces.places[event.id] = place
        _got_further(event)


def _note(event: Routed, attempts: int) -> None:
    sql.execute(
        "UPDATE durable_flows_event SET attempts = %(attempts)s WHERE id = %(id)s",
        {"id": event.id, "attempts": attempts},
    )


def _count_begun(event_ids: list[uuid.UUID], by: int) -> None:
    """Relative, since whoever takes it back does not hold the router's lock."""
    sql.execute(
        "UPDATE durable_flows_event SET attempts = attempts + %(by)s "
        f"WHERE {sql.among('id', 'ids')} AND routed_at IS NULL "
        "AND attempts + %(by)s < 0",
        {"ids": event_ids, "by": by},
    )


def _got_further(event: Routed) -> None:
    """The router that began did not die of it; an error that was noted still counts."""
    if event.attempts < -1:
        sql.execute(
            "UPDATE durable_flows_event SET attempts = -1 WHERE id = %(id)s AND error = ''",
            {"id": event.id},
        )
