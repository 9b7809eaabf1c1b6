"""A wait for a signal whose time is over, and whose run does not say so: it is parked, or in a long line.

Whoever wants the name next ends it, as a slice of that run would: by a signal that came in time, and else
by the timeout; under the run's due row, so that a slice of it may do the same just then.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from durable_flows.engine import settle, sql, stored
from durable_flows.engine.history import WAIT_COLUMNS, Waiting, waiting
from durable_flows.errors import LeaseLost
from durable_flows.rules.events import Event


@dataclass(frozen=True, slots=True)
class _Holder:
    """The run that waits, as it stands: if somebody else claims it, that one goes on with the wait."""

    run_id: uuid.UUID
    lease: int
    event: Event
    event_id: uuid.UUID


def end(wait_id: uuid.UUID) -> bool:
    """End this wait. False: not yet, for what came in time is to be routed, or its run was taken over."""
    found = _read(wait_id)
    if found is None:
        return True
    holder, wait = found
    try:
        return bool(settle.last_look(holder, wait).outcome)
    except LeaseLost:
        return False


def _read(wait_id: uuid.UUID) -> tuple[_Holder, Waiting] | None:
    """The wait, and whose it is; None if it has ended meanwhile."""
    rows = sql.execute(
        f"SELECT w.run_id, d.lease, e.id, {WAIT_COLUMNS}, {stored.columns('e')} "
        "FROM durable_flows_wait w JOIN durable_flows_due d ON d.run_id = w.run_id "
        "JOIN durable_flows_run r ON r.id = w.run_id "
        "JOIN durable_flows_event e ON e.id = r.event_id "
        "WHERE w.id = %(id)s AND w.settled_at IS NULL",
        {"id": wait_id},
    )
    if not rows:
        return None
    run_id, lease, event_id, *row = rows[0]
    count = len(stored.COLUMNS)
    wait, event = row[:-count], row[-count:]
    holder = _Holder(sql.uid(run_id), lease, stored.event(event), sql.uid(event_id))
    return holder, waiting("", [*wait, *[None] * count])
