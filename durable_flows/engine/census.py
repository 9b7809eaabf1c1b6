"""Counts what a purge would remove, and what is kept nevertheless, without removing anything.

In pieces, as a purge does: no statement looks at more rows than `AT_ONCE`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from durable_flows.engine import ripe, sql
from durable_flows.rules import clock, retention
from durable_flows.rules.events import SIGNALLED
from durable_flows.rules.retention import Bounds

AT_ONCE = 5_000  # rows that one statement looks at
Tell = Callable[[Counter[str], datetime], None]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that is not at its end."""

    id: uuid.UUID
    flow: str
    created_at: datetime


@dataclass(slots=True)
class Census:
    """What was counted.

    Attributes:
        gone: what would go: runs by their states, and ``"events"``.
        held: what is old enough, and kept nevertheless: ``"runs"``; ``"triggers"`` of runs that are kept;
            ``"events"`` for others.
        oldest: the unfinished run that looks back the furthest.
    """

    gone: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    oldest: Unfinished | None = None


def take(tell: Tell = lambda gone, place: None) -> Census:
    """Count. What is written meanwhile may be counted or not.

    Args:
        tell: called after each piece, with what would go so far and the time of the last row.
    """
    bounds = ripe.bounds(clock.now())
    found = Census(oldest=_oldest())
    for count, end in ((_count_runs, bounds.runs_end), (_count_events, bounds.events_end)):
        place: uuid.UUID | None = retention.NOBODY
        while place is not None:
            place = count(found, bounds, place, end)
            tell(found.gone, retention.moment_of(place or end))
    return found


def _count_runs(
    found: Census, bounds: Bounds, after: uuid.UUID, end: uuid.UUID
) -> uuid.UUID | None:
    last = _last("run", after, end)
    rows = sql.execute(
        f"SELECT r.state, {ripe.RUN_IS_FREE}, count(*) FROM durable_flows_run r "
        f"WHERE r.id > %(after)s AND r.id <= %(last)s AND {ripe.RUN} GROUP BY 1, 2",
        {**ripe.params(bounds), "after": after, "last": last or _just_before(end)},
    )
    for state, is_free, count in rows:
        if is_free:
            found.gone[state] += count
        else:
            found.held["runs"] += count
    return last


#: A run ``r`` that is the reason why its trigger is kept.
_KEPT = f"NOT ({ripe.RUN} AND {ripe.RUN_IS_FREE})"
_OLD = (
    "e.routed_at <= CASE WHEN e.quarantined THEN %(aside)s::timestamptz "
    "WHEN e.key <> '' THEN %(keyed)s::timestamptz ELSE %(events)s::timestamptz END"
)


def _count_events(
    found: Census, bounds: Bounds, after: uuid.UUID, end: uuid.UUID
) -> uuid.UUID | None:
    last = _last("event", after, end)
    span = {**ripe.params(bounds), "after": after, "last": last or _just_before(end)}
    rows = sql.execute(
        "SELECT EXISTS (SELECT 1 FROM durable_flows_run r "
        f"WHERE r.event_id = e.id AND {_KEPT}), {ripe.EVENT}, count(*) FROM durable_flows_event e "
        f"WHERE e.id > %(after)s AND e.id <= %(last)s AND {_OLD} GROUP BY 1, 2",
        span,
    )
    for is_trigger, is_ripe, count in rows:
        if is_trigger:
            found.held["triggers"] += count
        elif is_ripe:
            found.gone["events"] += count
        else:
            found.held["events"] += count
    wanted = _wanted_signals(bounds, span)
    found.gone["events"] -= wanted
    found.held["events"] += wanted
    return last


def _wanted_signals(bounds: Bounds, span: dict[str, object]) -> int:
    """Those among the ripe events of a span that have not expired, or that somebody waits for."""
    rows = sql.execute(
        "SELECT e.id FROM durable_flows_event e WHERE e.id > %(after)s AND e.id <= %(last)s "
        f"AND e.name = '{SIGNALLED}' AND {ripe.EVENT}",
        span,
    )
    return len(ripe.wanted_signals(bounds, [sql.uid(row[0]) for row in rows]))


def _just_before(end: uuid.UUID) -> uuid.UUID:
    return uuid.UUID(int=max(0, end.int - 1))


def _last(name: str, after: uuid.UUID, end: uuid.UUID) -> uuid.UUID | None:
    """The last row of the next piece; None: there are no more behind it."""
    rows = sql.execute(
        f"SELECT id FROM durable_flows_{name} WHERE id > %(after)s AND id < %(end)s "
        f"ORDER BY id LIMIT 1 OFFSET {AT_ONCE - 1}",
        {"after": after, "end": end},
    )
    return sql.uid(rows[0][0]) if rows else None


def _oldest() -> Unfinished | None:
    rows = sql.execute(
        "SELECT r.id, r.flow, r.created_at FROM durable_flows_due d "
        "JOIN durable_flows_run r ON r.id = d.run_id ORDER BY coalesce(r.since, r.mark) LIMIT 1"
    )
    return Unfinished(sql.uid(rows[0][0]), rows[0][1], sql.moment(rows[0][2])) if rows else None
