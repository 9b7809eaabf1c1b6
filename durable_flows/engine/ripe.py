"""What may be purged: old enough, and of no use to anything that is kept.

It is decided in two statements. The first finds rows by what stands in themselves, and locks them: whoever
wants to take one up again (a retry, a rerun, a sender of the same id, one who joins a run) locks it too.
The second, which sees whatever was committed before the lock, asks who needs them.

What is never purged, and by whom it is needed:

* a run that is not at its end; one whose parent is not, which may read what became of it late; one that
  somebody waits for; one that a command is about which has not been carried out; one of which another, that
  is kept, has taken over steps: the files with large results are the same;
* an event that is not routed; the trigger of a run that is kept;
* what was routed after the oldest unfinished run's trigger: that run may look back to there. A wait with
  ``since=`` may look back further, and a run that has been parked since a wait of its ended may have yet to
  read the event which ended it. For these the moment of the oldest such event is noted, and what came
  after it is kept, whatever it is;
* a signal until it expires, and as long as somebody waits for it;
* an id of a sender's own for a day at least.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from durable_flows import conf
from durable_flows.engine import insert, sql, stored
from durable_flows.rules import clock, keys, retention, signals
from durable_flows.rules.events import SIGNALLED, Event
from durable_flows.rules.retention import Bounds, Keep, Needs

SLACK = timedelta(minutes=1)  # clocks differ, and so do the moments of one transaction

#: Of a run ``r``: it ended long enough ago. Whoever has joined it may have yet to read what it came to.
RUN = (
    "(r.state = 'completed' AND r.ended_at <= %(completed)s::timestamptz "
    "OR r.state = 'failed' AND r.ended_at <= %(failed)s::timestamptz "
    "OR r.state = 'cancelled' AND r.ended_at <= %(cancelled)s::timestamptz) "
    "AND (NOT r.awaited OR r.ended_at < %(joined_since)s::timestamptz)"
)
#: Nobody who is kept needs it.
RUN_IS_FREE = (
    "NOT EXISTS (SELECT 1 FROM durable_flows_run p WHERE p.id = r.parent_id AND p.ended_at IS NULL) "
    "AND NOT EXISTS (SELECT 1 FROM durable_flows_wait w "
    "WHERE w.match = r.id AND w.settled_at IS NULL) "
    "AND NOT EXISTS (SELECT 1 FROM durable_flows_run n WHERE n.origin = r.id AND n.since IS NOT NULL)"
)
#: Of an event ``e``: it was routed long enough ago, and nobody may look back to it.
EVENT = (
    "e.routed_at <= CASE WHEN e.quarantined THEN %(aside)s::timestamptz "
    "WHEN e.key <> '' THEN %(keyed)s::timestamptz ELSE %(events)s::timestamptz END "
    "AND coalesce(e.routed, 0) <= %(horizon)s AND e.received_at < %(received_since)s::timestamptz"
)
EVENT_IS_FREE = "NOT EXISTS (SELECT 1 FROM durable_flows_run r WHERE r.event_id = e.id)"

#: Waits of unfinished runs that no step row has the end of yet.
_UNRECORDED = (
    "durable_flows_due d JOIN durable_flows_wait w ON w.run_id = d.run_id "
    "AND NOT EXISTS (SELECT 1 FROM durable_flows_step s WHERE s.run_id = w.run_id AND s.key = w.key)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """An event that may go: what else goes with it is found by this.

    Attributes:
        key: the id of the row that keeps its sender's own id taken, if it has one.
    """

    id: uuid.UUID
    name: str
    key: uuid.UUID | None


def keep() -> Keep:
    """For how long things are kept, as the settings are now."""
    limits = conf.settings()
    return Keep(
        events=limits.KEEP_EVENTS_DAYS,
        completed=limits.KEEP_COMPLETED_DAYS,
        failed=limits.KEEP_FAILED_DAYS,
        cancelled=limits.KEEP_CANCELLED_DAYS,
    )


def bounds(now: datetime) -> Bounds:
    """Up to where rows may go now. Reads all due rows."""
    return Bounds.of(keep(), _needs(now), now)


def params(bounds: Bounds) -> dict[str, Any]:
    """What `RUN` and `EVENT` ask for."""
    names = ("completed", "failed", "cancelled", "events", "keyed", "aside", "horizon")
    return {name: getattr(bounds, name) for name in (*names, "received_since", "joined_since")}


def _needs(now: datetime) -> Needs:
    horizon = _first(
        "SELECT min(coalesce(r.since, r.mark)) FROM durable_flows_due d "
        "JOIN durable_flows_run r ON r.id = d.run_id"
    )
    looked_back = _first(
        f"SELECT min(w.received_since) FROM {_UNRECORDED} WHERE w.kind = 'step' AND w.outcome = ''"
    )
    taken = _first(
        f"SELECT min(e.received_at) FROM {_UNRECORDED} "
        "JOIN durable_flows_event e ON e.id = w.event_id "
        "WHERE w.kind = 'step' AND w.outcome = 'event' AND w.eligible_from = 0"
    )
    joined = _first(
        f"SELECT min(r.ended_at) FROM {_UNRECORDED} JOIN durable_flows_run r ON r.id = w.match "
        "WHERE w.kind = 'child' AND w.settled_at IS NOT NULL "
        "AND (r.parent_id IS NULL OR r.parent_id <> w.run_id)"
    )
    received = [sql.moment(found) for found in (looked_back, taken) if found is not None]
    unrouted = stored.oldest_unrouted(now)
    return Needs(
        horizon=retention.NO_NUMBER if horizon is None else horizon,
        received_since=min(received, default=retention.NEVER),
        joined_since=retention.NEVER if joined is None else sql.moment(joined),
        unrouted_since=retention.NEVER if unrouted is None else unrouted - SLACK,
    )


def _first(question: str) -> Any:
    return sql.execute(question)[0][0]


# -- runs ------------------------------------------------------------------------------------


def span_of_runs(
    bounds: Bounds, after: uuid.UUID, most: int
) -> tuple[list[uuid.UUID], uuid.UUID | None]:
    """Looks at the next runs, in the order of ids.

    Returns:
        Those that are old enough, and the last that was looked at; None: there are no more.
    """
    rows = sql.execute(
        f"SELECT r.id, {RUN} FROM durable_flows_run r "
        "WHERE r.id > %(after)s AND r.id < %(end)s ORDER BY r.id LIMIT %(most)s",
        {**params(bounds), "after": after, "end": bounds.runs_end, "most": most},
    )
    return _span(rows)


def _span(rows: Sequence[sql.Row]) -> tuple[list[uuid.UUID], uuid.UUID | None]:
    last = sql.uid(rows[-1][0]) if rows else None
    return [sql.uid(id_) for id_, is_ripe in rows if is_ripe], last


def runs(bounds: Bounds, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """Lock those of these runs that may go. Returns each with its trigger."""
    rows = sql.execute(
        f"SELECT r.id, r.event_id FROM durable_flows_run r WHERE {sql.among('r.id', 'ids')} "
        f"AND {RUN} ORDER BY r.id FOR UPDATE SKIP LOCKED",
        {**params(bounds), "ids": list(ids)},
    )
    locked = {sql.uid(run): sql.uid(trigger) for run, trigger in rows}
    busy = _busy_triggers(list(locked.values()))
    locked = {run: trigger for run, trigger in locked.items() if trigger not in busy}
    if not locked:
        return {}
    rows = sql.execute(
        f"SELECT r.id FROM durable_flows_run r WHERE {sql.among('r.id', 'ids')} AND {RUN_IS_FREE}",
        {"ids": list(locked)},
    )
    free = {sql.uid(run) for (run,) in rows} - _asked_for(list(locked))
    return {run: trigger for run, trigger in locked.items() if run in free}


def _busy_triggers(triggers: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Those whose sender's own id somebody uses at this moment: he may be joining their runs."""
    if not triggers:
        return set()
    rows = sql.execute(
        "SELECT e.id, e.name, e.target, e.key FROM durable_flows_event e "
        f"WHERE {sql.among('e.id', 'ids')} AND e.key <> ''",
        {"ids": list(triggers)},
    )
    found = {insert.key_id(name, target, key): sql.uid(id_) for id_, name, target, key in rows}
    return {found[key] for key in found.keys() - _lock_keys(list(found))}


def _lock_keys(ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Lock these event keys. Returns those that nobody else has locked, or that are not there."""
    if not ids:
        return set()
    among = sql.among("id", "ids")
    known = sql.execute(
        f"SELECT id FROM durable_flows_eventkey WHERE {among}", {"ids": sorted(ids)}
    )
    locked = sql.execute(
        f"SELECT id FROM durable_flows_eventkey WHERE {among} ORDER BY id FOR UPDATE SKIP LOCKED",
        {"ids": sorted(ids)},
    )
    return set(ids) - {sql.uid(row[0]) for row in known} | {sql.uid(row[0]) for row in locked}


def _asked_for(runs: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Those that a command is about which has not been carried out."""
    rows = sql.execute(
        "SELECT target FROM durable_flows_event WHERE routed_at IS NULL "
        f"AND deliver_at <= %(soon)s::timestamptz AND {sql.among('target', 'targets')}",
        {"soon": clock.now() + SLACK, "targets": [str(run) for run in runs]},
    )
    return {uuid.UUID(target) for (target,) in rows}


# -- events ----------------------------------------------------------------------------------


def span_of_events(
    bounds: Bounds, after: uuid.UUID, most: int
) -> tuple[list[uuid.UUID], uuid.UUID | None]:
    """As `span_of_runs`."""
    rows = sql.execute(
        f"SELECT e.id, {EVENT} FROM durable_flows_event e "
        "WHERE e.id > %(after)s AND e.id < %(end)s ORDER BY e.id LIMIT %(most)s",
        {**params(bounds), "after": after, "end": bounds.events_end, "most": most},
    )
    return _span(rows)


def events(bounds: Bounds, ids: Sequence[uuid.UUID]) -> list[Doomed]:
    """Lock those of these events that may go, and their senders' own ids."""
    rows = sql.execute(
        f"SELECT e.id, e.name, e.target, e.key FROM durable_flows_event e "
        f"WHERE {sql.among('e.id', 'ids')} AND {EVENT} ORDER BY e.id FOR UPDATE SKIP LOCKED",
        {**params(bounds), "ids": sorted(ids)},
    )
    locked = [
        Doomed(id=sql.uid(id_), name=name, key=insert.key_id(name, target, key) if key else None)
        for id_, name, target, key in rows
    ]
    mine = _lock_keys([event.key for event in locked if event.key])
    locked = [event for event in locked if event.key is None or event.key in mine]
    if not locked:
        return []
    rows = sql.execute(
        f"SELECT e.id FROM durable_flows_event e WHERE {sql.among('e.id', 'ids')} AND {EVENT_IS_FREE}",
        {"ids": [event.id for event in locked]},
    )
    free = {sql.uid(row[0]) for row in rows}
    free -= wanted_signals(bounds, [event.id for event in locked if event.name == SIGNALLED])
    return [event for event in locked if event.id in free]


def wanted_signals(bounds: Bounds, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Those that have not expired long enough ago, or that somebody waits for."""
    found = stored.events_by_id(ids)
    asked = _awaited([_match(event) for event in found.values()])
    return {
        id_
        for id_, event in found.items()
        if not signals.is_expired(event, bounds.expired) or _match(event) in asked
    }


def _match(signal: Event) -> uuid.UUID:
    return keys.match_hash(SIGNALLED, signals.PATHS, [signal.data["signal"]])


def _awaited(matches: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    if not matches:
        return set()
    rows = sql.execute(
        "SELECT w.match FROM durable_flows_wait w "
        f"WHERE {sql.among('w.match', 'matches')} AND w.settled_at IS NULL",
        {"matches": list(matches)},
    )
    return {sql.uid(row[0]) for row in rows}
