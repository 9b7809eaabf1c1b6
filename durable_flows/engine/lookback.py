"""Looks back, by reading only: what came before that which it would have ended was there.

A wait's candidates are found by its hash, or by name while its signature is young; what its paths cannot
say is asked of them one by one.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from durable_flows.engine import failpoints, notes, signatures, sql, stored
from durable_flows.engine.conditions import Judge
from durable_flows.engine.history import Waiter, Waiting
from durable_flows.rules import signals
from durable_flows.rules.events import SIGNALLED, Event

AT_ONCE = 100  # candidates read by one statement
_FIELDS = 3  # columns before those of the event

#: Events that a cancel wait ``w`` of run ``r`` would have taken, had it been there when they came.
_EARLIER = (
    "durable_flows_eventmatch m JOIN durable_flows_event e ON e.id = m.event_id "
    "WHERE m.match = w.match AND m.routed > t.mark "
    "AND e.deliver_at <= w.expires_at "
    "AND (e.deliver_at, e.arrival) > (w.received_since, w.eligible_from)"
)


# -- for a step's wait -----------------------------------------------------------------------


def candidates(claim: Waiter, wait: Waiting, judge: Judge) -> list[Event]:
    """Routed events that may end the wait, oldest first, without locks.

    Up to the number from which its signature is complete they are found by name, above it by hash.
    """
    complete = signatures.complete_from(wait.event_name, wait.paths)
    found: list[Event] = []
    if complete > wait.eligible_from:
        found = _by_name(claim, wait, complete, judge)
    return found or _by_hash(claim, wait, max(complete, wait.eligible_from), judge)


def _by_hash(claim: Waiter, wait: Waiting, above: int, judge: Judge) -> list[Event]:
    """Where very many of them may be refused, in the order of the index: page by page."""
    is_particular = wait.expression or wait.is_for_signal
    while True:
        rows = _read_candidates(
            claim,
            wait,
            "durable_flows_eventmatch m JOIN durable_flows_event e ON e.id = m.event_id "
            "WHERE m.match = %(match)s::uuid AND m.routed > %(above)s",
            number="m.routed",
            order="m.routed" if is_particular else "e.deliver_at, e.arrival",
            above=above,
        )
        found = _accepted(claim, wait, sorted(rows, key=_place), judge)
        if found or len(rows) < AT_ONCE or not is_particular:
            return found
        above = rows[-1][0]


def _place(row: sql.Row) -> tuple[Any, Any]:
    """Its place in the order of delivery."""
    return row[1], row[2]


def _by_name(claim: Waiter, wait: Waiting, most: int, judge: Judge) -> list[Event]:
    """For the first waits of a signature: events routed before it was known have no hash."""
    above = wait.eligible_from
    while True:
        rows = _read_candidates(
            claim,
            wait,
            "durable_flows_event e WHERE e.name = %(name)s "
            "AND e.routed > %(above)s AND e.routed <= %(up_to)s",
            number="e.routed",
            order="e.routed",
            above=above,
            up_to=most,
            name=wait.event_name,
        )
        matching = [row for row in rows if _matches(wait, stored.event(row[_FIELDS:]))]
        found = _accepted(claim, wait, matching, judge)
        if found or len(rows) < AT_ONCE:
            return found
        above = rows[-1][0]


def _matches(wait: Waiting, event: Event) -> bool:
    return signatures.hash_of(event.as_dict(), wait.paths) == wait.match


def _accepted(claim: Waiter, wait: Waiting, rows: Sequence[sql.Row], judge: Judge) -> list[Event]:
    """The candidates that the wait's expression accepts; the first is enough where there is one."""
    found = (stored.event(row[_FIELDS:]) for row in rows)
    events = (event for event in found if not signals.is_expired(event, wait.created_at))
    if not wait.expression:
        return list(events)
    asked = judge.of(claim.run_id, wait.key, wait.expression, claim.event)
    return list(filter(asked, events))


def _read_candidates(
    claim: Waiter, wait: Waiting, source: str, *, number: str, order: str, **params: Any
) -> list[sql.Row]:
    """The first candidates of a source, each after its places in the orders of routing and delivery."""
    return sql.execute(
        f"SELECT {number}, e.deliver_at, e.arrival, {stored.columns('e')} FROM {source} "
        "AND e.id <> %(trigger)s AND e.deliver_at <= %(expires)s "
        "AND (%(routed_since)s::timestamptz IS NULL OR e.routed_at IS NULL "
        "OR e.routed_at >= %(routed_since)s::timestamptz) "
        "AND (%(received_since)s::timestamptz IS NULL "
        "OR e.received_at >= %(received_since)s::timestamptz) "
        "AND NOT EXISTS (SELECT 1 FROM durable_flows_wait used WHERE used.run_id = %(run)s "
        "AND used.match = %(match)s::uuid AND used.expression = %(expression)s "
        "AND used.kind = 'step' AND used.event_id = e.id) "
        f"{not_taken('%(match)s::uuid', 'e.id') if wait.is_for_signal else ''}"
        f"ORDER BY {order} LIMIT {AT_ONCE}",
        {
            "run": claim.run_id,
            "trigger": claim.event_id,
            "match": wait.match,
            "expression": wait.expression,
            "routed_since": wait.routed_since,
            "received_since": wait.received_since,
            "expires": wait.expires_at,
            **params,
        },
    )


def not_taken(match: str, event_id: str) -> str:
    """A condition: if this is a signal, no step has got it, of whichever run."""
    return (
        f"AND NOT EXISTS (SELECT 1 FROM durable_flows_wait taken WHERE taken.match = {match} "
        f"AND taken.event_name = '{SIGNALLED}' AND taken.event_id = {event_id}) "
    )


# -- for a cancel rule -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CancelHit:
    """An event that matches a run's cancel rule."""

    run_id: uuid.UUID
    wait_id: uuid.UUID
    event_name: str
    event_id: uuid.UUID


def for_cancels(triggers: Sequence[uuid.UUID], judge: Judge) -> list[CancelHit]:
    """Events newer than their trigger that were routed before these triggers' runs were there.

    Asked of the tables and not of memory: the router that admitted the runs may be dead.
    """
    if not triggers:
        return []
    rows = sql.execute(
        "SELECT run_id, wait_id, event_name, expression, event_id FROM ("
        "SELECT w.run_id, w.id AS wait_id, w.event_name, w.expression, "
        f"(SELECT e.id FROM {_EARLIER} ORDER BY m.routed LIMIT 1) AS event_id "
        "FROM durable_flows_run r JOIN durable_flows_event t ON t.id = r.event_id "
        "JOIN durable_flows_wait w ON w.run_id = r.id "
        f"WHERE {sql.among('r.event_id', 'triggers')} "
        "AND w.kind = 'cancel' AND w.settled_at IS NULL) hits WHERE event_id IS NOT NULL",
        {"triggers": list(triggers)},
    )
    failpoints.reach("looked_back_for_cancels")
    hits = [
        CancelHit(sql.uid(run_id), sql.uid(wait_id), name, sql.uid(event_id))
        for run_id, wait_id, name, expression, event_id in rows
        if not expression
    ]
    return hits + _accepted_cancels([sql.uid(row[1]) for row in rows if row[3]], judge)


def _accepted_cancels(wait_ids: list[uuid.UUID], judge: Judge) -> list[CancelHit]:
    """For cancel waits with an expression: the first event that it accepts."""
    if not wait_ids:
        return []
    rows = sql.execute(
        f"SELECT w.run_id, w.id, w.key, w.expression, t.id, {stored.columns('e')} "
        "FROM durable_flows_wait w JOIN durable_flows_run r ON r.id = w.run_id "
        "JOIN durable_flows_event t ON t.id = r.event_id "
        f", {_EARLIER} AND {sql.among('w.id', 'waits')} ORDER BY m.routed",
        {"waits": wait_ids},
    )
    own = stored.events_by_id({sql.uid(row[4]) for row in rows})
    hits: dict[uuid.UUID, CancelHit] = {}
    for run_id, wait_id, key, expression, trigger, *event in rows:
        run, wait, candidate = sql.uid(run_id), sql.uid(wait_id), stored.event(event)
        accepts = judge.of(run, notes.cancel_rule(key), expression, own[sql.uid(trigger)])
        if wait not in hits and accepts(candidate):
            hits[wait] = CancelHit(run, wait, candidate.name, stored.event_id(candidate))
    return list(hits.values())
