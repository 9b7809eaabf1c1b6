"""Cuts a run's sleep, wait or delay short, on somebody's word.

What a replay reads is changed: the end of a recorded sleep, the end of a wait, the time of the next
attempt. It is changed under the run's due row, which a slice needs for whatever it writes. A slice that
executes the run meanwhile goes by what it has read; it was woken, so it is due again when it suspends.
"""

from __future__ import annotations

import uuid

from durable_flows.engine import sql
from durable_flows.errors import NotWaiting, RunHasEnded, UnknownRun
from durable_flows.rules import clock, replays
from durable_flows.rules.states import DueState

_SLEEP = (
    "UPDATE durable_flows_step SET until = %(now)s::timestamptz, state = 'skipped' "
    "WHERE run_id = %(run)s AND key = %(key)s AND kind = 'sleep' "
    "AND until > %(now)s::timestamptz RETURNING key"
)
_WAIT = (
    "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = 'cut' "
    "WHERE run_id = %(run)s AND {keys} AND kind IN ('step', 'child') AND settled_at IS NULL "
    "RETURNING key"
)
_DELAY = (
    "UPDATE durable_flows_attempt SET next_at = %(now)s::timestamptz "
    "WHERE run_id = %(run)s AND key = %(key)s AND next_at > %(now)s::timestamptz "
    "AND NOT EXISTS (SELECT 1 FROM durable_flows_step s WHERE s.run_id = %(run)s "
    "AND s.key = %(key)s) RETURNING key"
)


def cut_short(run_id: uuid.UUID, key: str) -> None:
    """End what the run waits for at this step; its due row is locked, and it is to be woken.

    Raises:
        UnknownRun: there is no such run.
        RunHasEnded: it has ended.
        NotWaiting: it neither sleeps nor waits there, or is being cancelled.
    """
    state = _due_state(run_id)
    if state == DueState.CANCELLING:
        raise NotWaiting(f"run {run_id} is being cancelled")
    waits = [key, *replays.parts_of(key, _open_waits(run_id))]
    params = {"run": run_id, "key": key, "now": clock.now(), "keys": waits}
    wait = _WAIT.format(keys=sql.among("key", "keys"))
    if not any(sql.execute(statement, params) for statement in (_SLEEP, wait, _DELAY)):
        _check_no_map(run_id, key)
        raise NotWaiting(f"run {run_id} neither sleeps nor waits at step {key!r}")


def _open_waits(run_id: uuid.UUID) -> list[str]:
    """The keys of what it waits for, those of the several waits of one step among them."""
    rows = sql.execute(
        "SELECT key FROM durable_flows_wait "
        "WHERE run_id = %(run)s AND kind = 'step' AND settled_at IS NULL",
        {"run": run_id},
    )
    return [key for (key,) in rows]


def _check_no_map(run_id: uuid.UUID, key: str) -> None:
    """Raise `NotWaiting` if this step has runs to wait for of which each is to have its result."""
    rows = sql.execute(
        "SELECT total - ended FROM durable_flows_fanout "
        "WHERE run_id = %(run)s AND key = %(key)s AND ended < total",
        {"run": run_id, "key": key},
    )
    if rows:
        raise NotWaiting(
            f"step {key!r} of run {run_id} maps, and has no result before {rows[0][0]} more of its runs "
            "have ended; cancel those, or skip what they wait for"
        )


def _due_state(run_id: uuid.UUID) -> str:
    rows = sql.execute(
        "SELECT r.state, d.state FROM durable_flows_run r "
        "LEFT JOIN durable_flows_due d ON d.run_id = r.id WHERE r.id = %(run)s",
        {"run": run_id},
    )
    if not rows:
        raise UnknownRun(f"there is no run {run_id}")
    state, due_state = rows[0]
    if due_state is None:
        raise RunHasEnded(run_id, state)
    return str(due_state)
