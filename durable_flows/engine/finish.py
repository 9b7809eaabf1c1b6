"""Ends runs: the only file that does. Result, waits and due row change in one transaction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from durable_flows import signals
from durable_flows.engine import announce, audience, failpoints, ingest, ring, sql
from durable_flows.errors import LeaseLost
from durable_flows.models import Due, Run
from durable_flows.rules import clock
from durable_flows.rules.states import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run is to end. It does only if ``lease`` is still the lease of its due row.

    Attributes:
        has_undo: if it was asked to stop, it does not end yet: what it has done is undone first.
        is_undone: that has been done, and how it ends was decided then, whoever asks it to stop.
    """

    run_id: uuid.UUID
    lease: int
    state: RunState
    result: str | None = None
    error: dict[str, Any] | None = None
    reason: str = ""
    has_undo: bool = False
    is_undone: bool = False


def end(endings: Sequence[Ending]) -> list[Ending]:
    """End runs whose due rows still have these leases.

    A run that was asked to stop while it executed ends cancelled, whatever its handler came to: the
    cancellation was there first. If it has something to undo, another slice does that.

    Returns:
        What was ended, and how.
    """
    if not endings:
        return []
    by_run = {ending.run_id: ending for ending in endings}
    now = clock.now()
    with sql.atomic():
        rows = (_write_at_once if sql.postgres() else _write_one_by_one)(endings, now)
        ended = [_as_written(by_run.pop(sql.uid(run_id)), state) for run_id, state, *_ in rows]
        _tell([sql.uid(run_id) for run_id, _, awaited, *_ in rows if awaited])
        _announce(rows)
        if signals.run_ended.receivers:
            announce.to_observers([end.run_id for end in ended])
        _cancel_children([end.run_id for end in ended if end.state == RunState.CANCELLED], now)
        _let_undo([ending for ending in by_run.values() if ending.has_undo], now)
        failpoints.reach("before_end_commit")
    return ended


def _let_undo(endings: Sequence[Ending], now: datetime) -> None:
    """Those that were asked to stop are still there, and locked: another slice goes on at once."""
    if not endings:
        return
    left, columns = sql.table(
        Due,
        "t",
        {"run_id": [end.run_id for end in endings], "lease": [end.lease for end in endings]},
    )
    rows = sql.execute(
        "UPDATE durable_flows_due SET wake_at = %(now)s::timestamptz, claims = 0 "
        f"FROM {left} WHERE durable_flows_due.run_id = t.run_id "
        "AND durable_flows_due.lease = t.lease AND durable_flows_due.state = 'cancelling' "
        "RETURNING queue",
        {"now": now, **columns},
    )
    for (queue,) in set(rows):
        sql.on_commit(partial(ring.drain, queue))


def _tell(run_ids: Sequence[uuid.UUID]) -> None:
    """Let the router tell whoever waits for these ends: no second run's due row is locked here."""
    if run_ids:
        ingest.tell_ends(run_ids)
        failpoints.reach("ends_told")


def _announce(rows: Sequence[sql.Row]) -> None:
    """Tell of these ends by events, as far as somebody listens to them."""
    heard = {
        sql.uid(run_id): names
        for run_id, state, _, *flags in rows
        if (names := audience.hearing(state, *flags))
    }
    announce.ends(heard)


def leave_children(run_id: uuid.UUID, lease: int) -> None:
    """A run is cancelled, and not yet at its end: it waits for nothing more, and nobody works for it."""
    now = clock.now()
    with sql.atomic():
        mine = sql.execute(
            "SELECT run_id FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s "
            "FOR UPDATE",
            {"run": run_id, "lease": lease},
        )
        if not mine:
            raise LeaseLost(f"run {run_id} has another lease now")
        gone, params = sql.table(Due, "gone", {"run_id": [run_id]})
        sql.execute(_CLOSE_WAITS.format(gone=gone), {**params, "now": now})
        _cancel_children([run_id], now)


def _cancel_children(run_ids: Sequence[uuid.UUID], now: datetime) -> None:
    """Ask for the runs to be cancelled that these, which were cancelled now, have waited for."""
    if not run_ids:
        return
    rows = sql.execute(
        "SELECT match, run_id FROM durable_flows_wait "
        f"WHERE {sql.among('run_id', 'runs')} AND kind IN ('child', 'item') AND cascade "
        "AND outcome = 'closed' AND settled_at = %(now)s",
        {"runs": list(run_ids), "now": now},
    )
    if rows:
        ingest.cancel_all(
            {sql.uid(child): f"parent {sql.uid(run)} was cancelled" for child, run in rows}
        )
        failpoints.reach("children_cancelled")


#: In the order of the ids: whoever takes a due row away has ended the run.
_TAKE = (
    "WITH mine AS MATERIALIZED (SELECT d.run_id FROM durable_flows_due d "
    "JOIN {given} ON given.id = d.run_id AND given.lease = d.lease "
    "ORDER BY d.run_id FOR UPDATE OF d)"
)
_DELETE = (
    "DELETE FROM durable_flows_due WHERE run_id IN (SELECT run_id FROM mine) {spared}"
    "RETURNING run_id, state = 'cancelling' {decided}AS asked"
)
_CLOSE_WAITS = (
    "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = 'closed' "
    "FROM {gone} WHERE durable_flows_wait.run_id = gone.run_id "
    "AND durable_flows_wait.settled_at IS NULL"
)
#: Who was asked to stop ends cancelled, for the reason that was noted when it was asked.
_WRITE = (
    "UPDATE durable_flows_run SET lease = given.lease, ended_at = %(now)s::timestamptz, "
    "state = CASE WHEN asked THEN 'cancelled' ELSE given.state END, "
    "result = CASE WHEN NOT asked THEN given.result END, "
    "error = CASE WHEN NOT asked THEN given.error END, "
    "reason = CASE WHEN asked OR given.reason = '' THEN durable_flows_run.reason "
    "ELSE given.reason END "
    "FROM {gone} JOIN {given} ON given.id = gone.run_id "
    "WHERE durable_flows_run.id = gone.run_id "
    f"RETURNING durable_flows_run.id, durable_flows_run.state, durable_flows_run.awaited, {audience.HEARD}"
)


def _delete(endings: Sequence[Ending]) -> tuple[str, dict[str, Any]]:
    """The statement that takes the due rows away of those who end, and its parameters."""
    spared = [ending.run_id for ending in endings if ending.has_undo]
    decided = [ending.run_id for ending in endings if ending.is_undone]
    text = _DELETE.format(
        spared=f"AND NOT (state = 'cancelling' AND {sql.among('run_id', 'spared')}) "
        if spared
        else "",
        decided=f"AND NOT {sql.among('run_id', 'decided')} " if decided else "",
    )
    return text, {"spared": spared, "decided": decided}


def _write_at_once(endings: Sequence[Ending], now: datetime) -> list[sql.Row]:
    """Due rows, waits and results by one statement: one round trip and one plan."""
    given, params = _table(endings, now)
    delete, which = _delete(endings)
    return sql.execute(
        f"{_TAKE.format(given=given)}, gone AS ({delete}), "
        f"closed AS ({_CLOSE_WAITS.format(gone='gone')}) "
        f"{_WRITE.format(given=given, gone='gone')}",
        {**params, **which},
    )


def _write_one_by_one(endings: Sequence[Ending], now: datetime) -> list[sql.Row]:
    """For SQLite, whose common table expressions cannot write."""
    given, params = _table(endings, now)
    delete, which = _delete(endings)
    rows = sql.execute(f"{_TAKE.format(given=given)} {delete}", {**params, **which})
    if not rows:
        return []
    gone, more = sql.table(
        Due, "gone", {"run_id": [row[0] for row in rows], "asked": [row[1] for row in rows]}
    )
    sql.execute(_CLOSE_WAITS.format(gone=gone), {**params, **more})
    return sql.execute(_WRITE.format(given=given, gone=gone), {**params, **more})


def _table(endings: Sequence[Ending], now: datetime) -> tuple[str, dict[str, Any]]:
    """The endings as the table ``given``, and all parameters."""
    given, columns = sql.table(
        Run,
        "given",
        {
            "id": [ending.run_id for ending in endings],
            "lease": [ending.lease for ending in endings],
            "state": [ending.state.value for ending in endings],
            "result": [ending.result for ending in endings],
            "error": [ending.error and json.dumps(ending.error) for ending in endings],
            "reason": [ending.reason for ending in endings],
        },
    )
    return given, {**columns, "now": now}


def _as_written(ending: Ending, state: str) -> Ending:
    if ending.state == state:
        return ending
    return replace(ending, state=RunState(state), result=None, error=None, reason="")
