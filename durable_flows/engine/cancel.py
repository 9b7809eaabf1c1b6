"""Cancels runs: at once if they rest, at the next step boundary if they execute."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from durable_flows.engine import finish, ring, settle, sql
from durable_flows.engine.lookback import CancelHit
from durable_flows.rules import clock
from durable_flows.rules.states import HELD, DueState, RunState


def ask(reasons: Mapping[uuid.UUID, str]) -> None:
    """Cancel these runs, each for its reason; inside the router's transaction.

    The first reason stands. Lease and result in hand of an executing run stay: its slice records
    the result, starts no new step, undoes what its saga has done, and ends the run cancelled. A resting
    run that has something to undo is woken for that. Runs that have ended stay as they are.
    """
    due = settle.lock_due(reasons)
    resting = {run: lease for run, (state, lease) in due.items() if state not in HELD}
    undone = _with_undo(resting)
    executing = [run for run, (state, _) in due.items() if state == DueState.RUNNING]
    _mark_cancelling({run: reasons[run] for run in [*executing, *undone]})
    _wake(undone)
    finish.end(
        [
            finish.Ending(run_id=run, lease=lease, state=RunState.CANCELLED, reason=reasons[run])
            for run, lease in resting.items()
            if run not in undone
        ]
    )


def _with_undo(run_ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
    """Those of these runs that have done what is to be undone."""
    if not run_ids:
        return []
    rows = sql.execute(
        "SELECT DISTINCT run_id FROM durable_flows_step "
        f"WHERE {sql.among('run_id', 'runs')} AND kind = 'intent'",
        {"runs": list(run_ids)},
    )
    return [sql.uid(row[0]) for row in rows]


def _wake(run_ids: Collection[uuid.UUID]) -> None:
    """Let slices undo what these resting runs, which are being cancelled now, have done."""
    if not run_ids:
        return
    rows = sql.execute(
        "UPDATE durable_flows_due SET wake_at = %(now)s::timestamptz, "
        "due_since = %(now)s::timestamptz "
        f"WHERE {sql.among('run_id', 'runs')} RETURNING queue",
        {"now": clock.now(), "runs": list(run_ids)},
    )
    for (queue,) in set(rows):
        sql.on_commit(partial(ring.drain, queue))


def by_rules(hits: Sequence[CancelHit]) -> None:
    """Cancel the runs whose rules were hit; where several were, for the first reason."""
    ask({hit.run_id: f"event {hit.event_name} {hit.event_id}" for hit in reversed(hits)})
    settle.end_cancel_waits(hits)


def _mark_cancelling(reasons: Mapping[uuid.UUID, str]) -> None:
    if not reasons:
        return
    sql.execute(
        "UPDATE durable_flows_due SET state = 'cancelling', "
        "wake_at = coalesce(wake_at, %(now)s::timestamptz) "
        f"WHERE {sql.among('run_id', 'runs')}",
        {"runs": list(reasons), "now": clock.now()},
    )
    for run, reason in reasons.items():
        sql.execute(
            "UPDATE durable_flows_run SET reason = %(reason)s WHERE id = %(run)s",
            {"run": run, "reason": reason},
        )
