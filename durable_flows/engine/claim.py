"""Claims due runs: one statement, in index order, under a new lease each."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from durable_flows import conf, signals
from durable_flows.engine import failpoints, floors, leases, observed, sql, stored
from durable_flows.engine.history import Claim
from durable_flows.engine.subjects import Subject
from durable_flows.rules import clock

#: FOR UPDATE SKIP LOCKED: two claims never take the same run. MATERIALIZED: never more than asked for.
#: A suspect, whose last claim did not end, is taken alone when it comes first, and otherwise left.
_NEXT = (
    "WITH seen AS MATERIALIZED (SELECT run_id, wake_at, claims FROM durable_flows_due "
    f"WHERE queue = %(queue)s AND {floors.above('wake_at', 'queue')} AND wake_at <= %(now)s "
    "AND (claims = 0 OR %(suspects)s) ORDER BY wake_at LIMIT %(most)s FOR UPDATE SKIP LOCKED), "
    "first AS (SELECT run_id, claims FROM seen ORDER BY wake_at LIMIT 1), "
    "next AS (SELECT seen.run_id FROM seen, first "
    "WHERE CASE WHEN first.claims > 0 THEN seen.run_id = first.run_id ELSE seen.claims = 0 END)"
)
_TAKE = (
    "UPDATE durable_flows_due SET lease = lease + 1, claims = claims + 1, nudged = false, "
    "wake_at = %(until)s::timestamptz, "
    "state = CASE WHEN state = 'cancelling' THEN 'cancelling' ELSE 'running' END "
    "FROM next WHERE durable_flows_due.run_id = next.run_id "
    "RETURNING durable_flows_due.run_id, lease, state, due_since, claims, deadline_at"
)
_START = (
    "UPDATE durable_flows_run SET state = 'started', "
    "started_at = coalesce(started_at, %(now)s::timestamptz) "
)
COLUMNS = (
    "r.id, r.flow, r.version, r.generation, r.mark, r.since, r.created_at, r.started_at, r.depth, "
    "r.subject_type_id, r.subject_id, "
    f"{stored.columns('e')}"
)
EVENT = "JOIN durable_flows_event e ON e.id = r.event_id"
#: Where a statement can do it all: one round trip and one plan.
_AT_ONCE = (
    f"{_NEXT}, taken AS ({_TAKE}), "
    f"begun AS ({_START} FROM taken WHERE durable_flows_run.id = taken.run_id "
    "AND durable_flows_run.state = 'queued') "
    f"SELECT taken.*, {COLUMNS} FROM taken JOIN durable_flows_run r ON r.id = taken.run_id {EVENT}"
)


def claim(queue: str, most: int, *, suspects: bool = True) -> list[Claim]:
    """Take up to ``most`` due runs of this queue, the longest due first.

    Args:
        queue: of which queue.
        most: how many. A run whose last claim did not end is the only one of its batch.
        suspects: whether to take such a run.
    """
    now = clock.now()
    params = {
        "queue": queue,
        "now": now,
        "most": most,
        "ever": floors.EVER,
        "suspects": suspects,
        "until": now + clock.real(conf.settings().LEASE_SECONDS),
    }
    rows = sql.execute(_AT_ONCE, params) if sql.postgres() else _one_by_one(params)
    if not rows:
        return []
    failpoints.reach("claimed")
    rows.sort(key=lambda row: sql.moment(row[DUE_SINCE]))
    claims = [read_claim(queue, row, now) for row in rows]
    failpoints.reach("claim_read")
    leases.hold({claimed.run_id: claimed.lease for claimed in claims})
    if signals.run_started.receivers:
        began = zip(claims, rows, strict=True)
        observed.starts(claimed for claimed, row in began if row[STARTED_AT] is None)
    return claims


DUE_SINCE = 3  # its place in a row
STARTED_AT = 13  # as it was before this claim


def _one_by_one(params: dict[str, Any]) -> list[sql.Row]:
    """For SQLite, whose common table expressions cannot write."""
    with sql.atomic():
        taken = {row[0]: row for row in sql.execute(f"{_NEXT} {_TAKE}", params)}
        runs = {"runs": list(taken), "now": params["now"]}
        found = sql.execute(
            f"SELECT {COLUMNS} FROM durable_flows_run r {EVENT} WHERE {sql.among('r.id', 'runs')}",
            runs,
        )
        sql.execute(f"{_START} WHERE {sql.among('id', 'runs')} AND state = 'queued'", runs)
    return [(*taken[row[0]], *row) for row in found]


def read_claim(queue: str, row: sql.Row, now: datetime) -> Claim:
    """The claim behind what a taken due row returns, and `COLUMNS`."""
    _, lease, state, _, claims, deadline, run_id, flow_id, *rest = row
    version, generation, mark, since, created_at, started_at, depth, *rest = rest
    subject_type, subject_id, *event = rest
    found = stored.event(event)
    return Claim(
        run_id=sql.uid(run_id),
        flow_id=flow_id,
        version=version,
        queue=queue,
        lease=lease,
        unended=claims - 1,
        generation=generation,
        mark=mark,
        since=since,
        cancelling=state == "cancelling",
        created_at=sql.moment(created_at),
        started_at=sql.moment(started_at) if started_at else now,  # by this very statement
        deadline_at=deadline and sql.moment(deadline),
        event=found,
        event_id=stored.event_id(found),
        depth=depth,
        subject=Subject.read(subject_type, subject_id),
    )
