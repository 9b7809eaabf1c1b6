"""Claims due runs: one statement, in index order, under a new lease each."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from durable_flows import conf
from durable_flows.engine import failpoints, leases, sql, stored
from durable_flows.engine.history import Claim
from durable_flows.rules import clock

#: FOR UPDATE SKIP LOCKED: two claims never take the same run. MATERIALIZED: never more than asked for.
_CLAIM = (
    "WITH next AS MATERIALIZED (SELECT run_id FROM durable_flows_due "
    "WHERE queue = %(queue)s AND wake_at <= %(now)s ORDER BY wake_at LIMIT %(most)s "
    "FOR UPDATE SKIP LOCKED) "
    "UPDATE durable_flows_due SET lease = lease + 1, claims = claims + 1, nudged = false, "
    "wake_at = %(until)s::timestamptz, "
    "state = CASE WHEN state = 'cancelling' THEN 'cancelling' ELSE 'running' END "
    "FROM next WHERE durable_flows_due.run_id = next.run_id "
    "RETURNING durable_flows_due.run_id, lease, state, due_since"
)


def claim(queue: str, most: int) -> list[Claim]:
    """Take up to ``most`` due runs of this queue, the longest due first."""
    now = clock.now()
    rows = sql.execute(
        _CLAIM,
        {
            "queue": queue,
            "now": now,
            "most": most,
            "until": now + clock.real(conf.settings().LEASE_SECONDS),
        },
    )
    if not rows:
        return []
    failpoints.reach("claimed")
    taken = {sql.uid(run_id): (lease, state) for run_id, lease, state, _ in rows}
    _mark_started(list(taken))
    order = {sql.uid(row[0]): sql.moment(row[3]) for row in rows}
    claims = sorted(_read(queue, taken), key=lambda claimed: order[claimed.run_id])
    failpoints.reach("claim_read")
    leases.hold({claimed.run_id: claimed.lease for claimed in claims})
    return claims


def _mark_started(run_ids: Sequence[uuid.UUID]) -> None:
    sql.execute(
        "UPDATE durable_flows_run SET state = 'started', "
        "started_at = coalesce(started_at, %(now)s::timestamptz) "
        f"WHERE {sql.among('id', 'runs')} AND state = 'queued'",
        {"now": clock.now(), "runs": list(run_ids)},
    )


def _read(queue: str, taken: dict[uuid.UUID, tuple[int, str]]) -> list[Claim]:
    rows = sql.execute(
        f"SELECT r.id, r.flow, r.generation, r.mark, r.created_at, e.depth, {stored.columns('e')} "
        "FROM durable_flows_run r JOIN durable_flows_event e ON e.id = r.event_id "
        f"WHERE {sql.among('r.id', 'runs')}",
        {"runs": list(taken)},
    )
    return [_claim(queue, taken[sql.uid(row[0])], row) for row in rows]


def _claim(queue: str, held: tuple[int, str], row: Sequence[Any]) -> Claim:
    run_id, flow_id, generation, mark, created_at, depth, *event = row
    found = stored.event(event)
    lease, state = held
    return Claim(
        run_id=sql.uid(run_id),
        flow_id=flow_id,
        queue=queue,
        lease=lease,
        generation=generation,
        mark=mark,
        cancelling=state == "cancelling",
        created_at=sql.moment(created_at),
        event=found,
        event_id=stored.event_id(found),
        depth=depth,
    )
