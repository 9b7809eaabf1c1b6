"""Ends runs: the only file that does. Result, waits and due row change in one transaction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from durable_flows.engine import failpoints, sql
from durable_flows.models import Due, Run
from durable_flows.rules import clock
from durable_flows.rules.states import DueState, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run is to end. It does only if ``lease`` is still the lease of its due row."""

    run_id: uuid.UUID
    lease: int
    state: RunState
    result: str | None = None
    error: dict[str, Any] | None = None
    reason: str = ""


def end(endings: Sequence[Ending]) -> list[Ending]:
    """End runs whose due rows still have these leases.

    A run that was asked to stop while it executed ends cancelled, whatever its handler came to: the
    cancellation was there first.

    Returns:
        What was ended, and how.
    """
    if not endings:
        return []
    with sql.atomic():
        ended = _take_due(endings)
        _write_runs(ended)
        _close_waits([ending.run_id for ending in ended])
        failpoints.reach("before_end_commit")
    return ended


def _take_due(endings: Sequence[Ending]) -> list[Ending]:
    """Delete the due rows, in the order of the ids: whoever does has ended the run."""
    by_run = {ending.run_id: ending for ending in endings}
    source, columns = sql.table(
        Due, "t", {"run_id": list(by_run), "lease": [ending.lease for ending in by_run.values()]}
    )
    rows = sql.execute(
        "WITH mine AS MATERIALIZED (SELECT d.run_id FROM durable_flows_due d "
        f"JOIN {source} ON t.run_id = d.run_id AND t.lease = d.lease "
        "ORDER BY d.run_id FOR UPDATE OF d) "
        "DELETE FROM durable_flows_due WHERE run_id IN (SELECT run_id FROM mine) "
        "RETURNING run_id, state",
        columns,
    )
    return [_as_asked(by_run[sql.uid(run_id)], state) for run_id, state in rows]


def _as_asked(ending: Ending, due_state: str) -> Ending:
    if due_state == DueState.CANCELLING and ending.state != RunState.CANCELLED:
        return replace(ending, state=RunState.CANCELLED, result=None, error=None, reason="")
    return ending


def _write_runs(endings: Sequence[Ending]) -> None:
    if not endings:
        return
    source, columns = sql.table(
        Run,
        "t",
        {
            "id": [ending.run_id for ending in endings],
            "lease": [ending.lease for ending in endings],
            "state": [ending.state.value for ending in endings],
            "result": [ending.result for ending in endings],
            "error": [ending.error and json.dumps(ending.error) for ending in endings],
            "reason": [ending.reason for ending in endings],
        },
    )
    sql.execute(
        "UPDATE durable_flows_run SET state = t.state, result = t.result, error = t.error, "
        "lease = t.lease, ended_at = %(now)s::timestamptz, "
        # the reason of a cancellation was noted when it was asked for
        "reason = CASE WHEN t.reason = '' THEN durable_flows_run.reason ELSE t.reason END "
        f"FROM {source} WHERE durable_flows_run.id = t.id",
        {"now": clock.now(), **columns},
    )


def _close_waits(run_ids: Sequence[uuid.UUID]) -> None:
    if run_ids:
        sql.execute(
            "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = 'closed' "
            f"WHERE {sql.among('run_id', 'runs')} AND settled_at IS NULL",
            {"now": clock.now(), "runs": list(run_ids)},
        )
