"""Cancels runs that have missed a deadline, whatever they do or wait for.

A due row holds the next one: until when the run must have begun, and from its first slice on until
when it must have ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime

from durable_flows.engine import cancel, failpoints, sql
from durable_flows.engine.history import Claim
from durable_flows.flows import Flow
from durable_flows.models import Due
from durable_flows.registry import registry
from durable_flows.rules import clock, deadlines

AT_ONCE = 100  # runs cancelled by one transaction


def begin(claimed: Claim, flow: Flow) -> str:
    """At the begin of a slice: which deadline the run has missed; if none, see that the next is noted."""
    timeouts = flow.timeouts
    if timeouts is None and claimed.deadline_at is None:
        return ""
    missed = deadlines.missed_at_slice(
        timeouts,
        deadline=claimed.deadline_at,
        started_at=claimed.started_at,
        now=clock.now(),
    )
    wanted = deadlines.to_end(timeouts, claimed.started_at)
    if not missed and wanted != claimed.deadline_at:
        sql.execute(
            "UPDATE durable_flows_due SET deadline_at = %(wanted)s::timestamptz "
            "WHERE run_id = %(run)s AND lease = %(lease)s AND state = 'running'",
            {"wanted": wanted, "run": claimed.run_id, "lease": claimed.lease},
        )
        failpoints.reach("deadline_noted", claimed.flow_id)
    return missed


def serve() -> int:
    """Cancel the runs whose deadline has passed. Returns how many were looked at."""
    count = 0
    while True:
        with sql.atomic():
            looked_at = _serve_some()
            failpoints.reach("before_deadlines_commit")
        count += looked_at
        if looked_at < AT_ONCE:
            return count


def _serve_some() -> int:
    """The locks come first, and what is decided on is read under them. What is held is put off."""
    now = clock.now()
    rows = sql.execute(
        "SELECT run_id FROM durable_flows_due WHERE deadline_at <= %(now)s AND run_id IN ("
        "SELECT run_id FROM durable_flows_due WHERE deadline_at <= %(now)s "
        "ORDER BY deadline_at LIMIT %(most)s) ORDER BY run_id FOR UPDATE SKIP LOCKED",
        {"now": now, "most": AT_ONCE},
    )
    if not rows:
        return 0
    found = sql.execute(
        f"SELECT id, flow, version, started_at FROM durable_flows_run WHERE {sql.among('id', 'runs')}",
        {"runs": [sql.uid(row[0]) for row in rows]},
    )
    missed: dict[uuid.UUID, str] = {}
    wanted: dict[uuid.UUID, datetime | None] = {}
    for run_id, flow_id, version, started_at in found:
        started = started_at and sql.moment(started_at)
        flow = registry.find(flow_id, version)
        timeouts = flow.timeouts if flow else None
        reason = deadlines.missed_at_rest(timeouts, started_at=started, now=now)
        if reason:
            missed[sql.uid(run_id)] = reason
        wanted[sql.uid(run_id)] = None if reason else deadlines.to_end(timeouts, started)
    _note(wanted)
    cancel.ask(missed)
    return len(rows)


def _note(wanted: Mapping[uuid.UUID, datetime | None]) -> None:
    """None: there is no further deadline; also of a run that executes and is told to stop."""
    source, columns = sql.table(
        Due, "t", {"run_id": list(wanted), "deadline_at": list(wanted.values())}
    )
    sql.execute(
        f"UPDATE durable_flows_due SET deadline_at = t.deadline_at FROM {source} "
        "WHERE durable_flows_due.run_id = t.run_id",
        columns,
    )
