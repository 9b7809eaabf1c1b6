"""Who listens to the events that tell of the ends of runs: what nobody hears is not written.

Listeners are flows of this process, flows of deployments that are alive, which say so with each tick,
and waits. The last two are rows of one tiny table, which the statement that ends runs asks.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta

from durable_flows.engine import native, sql
from durable_flows.models import Audience
from durable_flows.registry import registry
from durable_flows.rules import clock, endings

logger = logging.getLogger(__name__)

SLACK = timedelta(minutes=1)  # what ends so soon has ended: clocks differ
LOOK = 0.01  # real seconds between two looks at who is still at work
LONGEST = 10.0  # real seconds: whoever ends runs takes milliseconds

#: Whether anybody listens to the two events about the run that the statement ends.
HEARD = (
    f"EXISTS (SELECT 1 FROM durable_flows_audience a WHERE a.event_name = '{endings.FINISHED}' "
    "AND a.until > %(now)s::timestamptz), "
    "EXISTS (SELECT 1 FROM durable_flows_audience a "
    f"WHERE a.event_name = '{endings.particular('')}' || durable_flows_run.state "
    "AND a.until > %(now)s::timestamptz)"
)


def hearing(state: str, finished: bool, particular: bool) -> list[str]:
    """The events about an end of this kind that somebody listens to; the flags are `HEARD`'s."""
    flags = {endings.FINISHED: finished, endings.particular(state): particular}
    return [name for name in endings.names(state) if flags[name] or registry.hears(name)]


def expect(names: Iterable[str], until: datetime) -> None:
    """Somebody listens to these until then, at least."""
    wanted = sorted(names)
    if not wanted:
        return
    now = clock.now()
    source, columns = sql.table(
        Audience, "t", {"event_name": wanted, "until": [until] * len(wanted)}
    )
    sql.execute(
        "INSERT INTO durable_flows_audience AS known (event_name, until) "
        f"SELECT t.event_name, t.until FROM {source} WHERE true "
        "ON CONFLICT (event_name) DO UPDATE SET "
        "until = CASE WHEN known.until < excluded.until THEN excluded.until ELSE known.until END, "
        # For a while nobody listened: what ended meanwhile was not told.
        "since = CASE WHEN known.until > %(soon)s::timestamptz THEN known.since END",
        {"soon": now + SLACK, **columns},
    )


def is_told(name: str, since: datetime, until: datetime) -> bool:
    """Whether every end from then to then is told by the event of this name."""
    return bool(
        sql.execute(
            "SELECT 1 FROM durable_flows_audience WHERE event_name = %(name)s "
            "AND since <= %(since)s::timestamptz AND until >= %(until)s::timestamptz",
            {"name": name, "since": since, "until": until},
        )
    )


def note_told_since(name: str, since: datetime) -> None:
    """Every end since then was told."""
    sql.execute(
        "UPDATE durable_flows_audience SET since = %(since)s::timestamptz "
        "WHERE event_name = %(name)s AND (since IS NULL OR since > %(since)s::timestamptz)",
        {"name": name, "since": since},
    )


def await_deaf() -> None:
    """Wait until whoever is ending runs now, and may not know of a listener yet, has committed.

    A statement takes its snapshot when it holds the locks on its tables, and keeps these until the end
    of its transaction: who does not hold them now will see what is committed now.
    """
    if not sql.postgres():
        return  # whoever ends runs is the only writer meanwhile
    deaf = _ending_now()
    until = time.monotonic() + LONGEST
    while deaf:
        native.sleep(LOOK)
        deaf &= _ending_now()
        if deaf and time.monotonic() > until:
            logger.warning("somebody has been ending runs for %g s: not waited for", LONGEST)
            return


def _ending_now() -> set[tuple[str, int]]:
    """Transactions that read this table and write due rows: only the ends of runs do."""
    rows = sql.execute(
        "SELECT heard.virtualtransaction, heard.pid FROM pg_locks heard "
        "JOIN pg_locks ended ON ended.pid = heard.pid "
        "AND ended.relation = 'durable_flows_due'::regclass AND ended.mode = 'RowExclusiveLock' "
        "WHERE heard.relation = 'durable_flows_audience'::regclass "
        "AND heard.mode = 'AccessShareLock' AND heard.pid <> pg_backend_pid() "
        "AND heard.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return {(transaction, pid) for transaction, pid in rows}


def ended_since(name: str, since: datetime) -> list[uuid.UUID]:
    """The runs of whose ends since then the event of this name tells, or would have told."""
    rows = sql.execute(
        f"SELECT id FROM durable_flows_run WHERE {sql.among('state', 'states')} "
        "AND ended_at >= %(since)s::timestamptz",
        {"states": endings.states(name), "since": since},
    )
    return [sql.uid(row[0]) for row in rows]
