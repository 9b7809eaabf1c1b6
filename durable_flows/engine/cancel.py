"""Cancels runs: at once if they rest, at the next step boundary if they execute."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from durable_flows.engine import finish, settle, sql
from durable_flows.engine.lookback import CancelHit
from durable_flows.rules.states import HELD, DueState, RunState


def ask(reasons: Mapping[uuid.UUID, str]) -> None:
    """Cancel these runs, each for its reason; inside the router's transaction.

    The first reason stands. Lease and result in hand of an executing run stay: its slice records
    the result, starts no new step, and ends the run cancelled. Runs that have ended stay as they are.
    """
    due = settle.lock_due(reasons)
    resting = {run: lease for run, (state, lease) in due.items() if state not in HELD}
    executing = [run for run, (state, _) in due.items() if state == DueState.RUNNING]
    _mark_cancelling({run: reasons[run] for run in executing})
    finish.end(
        [
            finish.Ending(run_id=run, lease=lease, state=RunState.CANCELLED, reason=reasons[run])
            for run, lease in resting.items()
        ]
    )


def by_rules(hits: Sequence[CancelHit]) -> None:
    """Cancel the runs whose rules were hit; where several were, for the first reason."""
    ask({hit.run_id: f"event {hit.event_name} {hit.event_id}" for hit in reversed(hits)})
    settle.end_cancel_waits(hits)


def _mark_cancelling(reasons: Mapping[uuid.UUID, str]) -> None:
    if not reasons:
        return
    sql.execute(
        f"UPDATE durable_flows_due SET state = 'cancelling' WHERE {sql.among('run_id', 'runs')}",
        {"runs": list(reasons)},
    )
    for run, reason in reasons.items():
        sql.execute(
            "UPDATE durable_flows_run SET reason = %(reason)s WHERE id = %(run)s",
            {"run": run, "reason": reason},
        )
