"""Puts a run away once its slice is over: asleep, handed back, left to others, or parked.

Every write is conditional on the lease of the slice, and done again if there was no answer. Ends are
written with those of the neighbours, by `batch`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from durable_flows.engine import (
    deployments,
    failpoints,
    finish,
    leases,
    notes,
    ring,
    sql,
    versions,
)
from durable_flows.engine.finish import Ending
from durable_flows.engine.history import Claim
from durable_flows.engine.keeping import Values
from durable_flows.engine.persist import until_answered
from durable_flows.errors import DurableFlowsError
from durable_flows.registry import registry
from durable_flows.rules import clock, keys
from durable_flows.rules.states import DueState, RunState

logger = logging.getLogger(__name__)

SOON = 1.0  # real seconds after which others may claim a run whose flow this process does not know


@dataclass(frozen=True, slots=True)
class Sleeping:
    """The slice is over; the run goes on at ``until``, or when it is woken.

    Attributes:
        has_undo: whether there is something to undo if it is cancelled.
        undoes: whether that is what it is at: then it goes on though it is being cancelled.
    """

    until: datetime
    has_undo: bool = False
    undoes: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The run was taken over: nothing more is written."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No flow of this id is known here: somebody else must execute it."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """This worker is to stop: another one goes on with the run at once.

    Attributes:
        has_undo, undoes: as of `Sleeping`.
    """

    has_undo: bool = False
    undoes: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """This code cannot go on with the run: it rests until other code is there.

    Attributes:
        why: what does not fit.
        has_undo: as of `Sleeping`.
    """

    why: DurableFlowsError
    has_undo: bool = False


Outcome = Ending | Sleeping | Lost | Unknown | HandedBack | Parked


def cancelled(claimed: Claim, reason: str = "") -> Ending:
    """The end of a run that was asked to stop."""
    return Ending(
        run_id=claimed.run_id, lease=claimed.lease, state=RunState.CANCELLED, reason=reason
    )


def failed(claimed: Claim, error: BaseException, values: Values) -> Ending:
    """The end of a run that no further attempt is made at."""
    described, reason = values.failed(error)
    return Ending(
        run_id=claimed.run_id,
        lease=claimed.lease,
        state=RunState.FAILED,
        error=described,
        reason=reason,
    )


def put_away(claimed: Claim, outcome: Outcome) -> None:
    """Write what became of the slice, and again if there was no answer; ends are left to the batch."""
    until_answered(
        lambda again: _write_outcome(claimed, outcome),
        seconds=lambda: leases.left(claimed.run_id, claimed.lease),
    )


def _write_outcome(claimed: Claim, outcome: Outcome) -> None:
    if isinstance(outcome, Sleeping):
        _suspend(claimed, outcome)
    elif isinstance(outcome, HandedBack):
        _hand_back(claimed, outcome)
    elif isinstance(outcome, Parked):
        _park(claimed, outcome.why, has_undo=outcome.has_undo, until_other_than=registry.digest)
    elif isinstance(outcome, Unknown):
        known = deployments.known_flows()
        if _is_among(claimed, known):
            _leave_to_others(claimed)
        else:
            _park(claimed, versions.gone(claimed, known), has_undo=claimed.cancelling)


def _is_among(claimed: Claim, known: set[tuple[str, int]]) -> bool:
    """Whether the code that executes this run is known."""
    if claimed.version is None:
        return any(flow_id == claimed.flow_id for flow_id, _ in known)
    return (claimed.flow_id, claimed.version) in known


#: A run that is undone while it is being cancelled stays so.
_MAY_REST = "(state = 'running' OR (state = 'cancelling' AND %(undoes)s))"


def _suspend(claimed: Claim, outcome: Sleeping) -> None:
    """Let go of the run; at once due again if it was woken while it ran."""
    failpoints.reach("before_suspend", claimed.flow_id)
    rows = sql.execute(
        "UPDATE durable_flows_due SET "
        "state = CASE WHEN state = 'cancelling' THEN state "
        "WHEN nudged THEN 'queued' ELSE 'waiting' END, "
        "wake_at = CASE WHEN nudged THEN %(now)s::timestamptz ELSE %(until)s::timestamptz END, "
        "due_since = CASE WHEN nudged THEN %(now)s::timestamptz ELSE %(until)s::timestamptz END, "
        "nudged = false, claims = 0 "
        f"WHERE run_id = %(run)s AND lease = %(lease)s AND {_MAY_REST} RETURNING wake_at",
        {
            "now": clock.now(),
            "until": outcome.until,
            "undoes": outcome.undoes,
            "run": claimed.run_id,
            "lease": claimed.lease,
        },
    )
    failpoints.reach("suspended", claimed.flow_id)
    if rows:
        ring.drain_at(claimed.queue, sql.moment(rows[0][0]))
    else:
        _see_why_not(claimed, has_undo=outcome.has_undo)


def _hand_back(claimed: Claim, outcome: HandedBack) -> None:
    """Let another worker go on at once; this claim has ended, and is not counted."""
    failpoints.reach("before_hand_back", claimed.flow_id)
    rows = sql.execute(
        "UPDATE durable_flows_due SET "
        "state = CASE WHEN state = 'cancelling' THEN state ELSE 'queued' END, "
        "wake_at = %(now)s::timestamptz, "
        "due_since = %(now)s::timestamptz, nudged = false, claims = claims - 1 "
        f"WHERE run_id = %(run)s AND lease = %(lease)s AND {_MAY_REST} RETURNING wake_at",
        {
            "now": clock.now(),
            "undoes": outcome.undoes,
            "run": claimed.run_id,
            "lease": claimed.lease,
        },
    )
    failpoints.reach("handed_back", claimed.flow_id)
    if rows:
        ring.drain(claimed.queue)
    else:
        _see_why_not(claimed, has_undo=outcome.has_undo)


def _see_why_not(claimed: Claim, *, has_undo: bool = False) -> None:
    """The run was not running any more: taken over, put away by a try that got no answer, or cancelled."""
    rows = sql.execute(
        "SELECT state, wake_at FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s",
        {"run": claimed.run_id, "lease": claimed.lease},
    )
    for state, wake_at in rows:
        if state == DueState.CANCELLING and has_undo:
            _undo_next(claimed)
        elif state == DueState.CANCELLING:
            finish.end([cancelled(claimed)])
        elif wake_at is not None:
            ring.drain_at(claimed.queue, sql.moment(wake_at))


def _undo_next(claimed: Claim) -> None:
    """It was cancelled before it could rest: another slice undoes what it has done."""
    until = clock.now() + (clock.real(SOON) if claimed.cancelling else timedelta())
    sql.execute(
        "UPDATE durable_flows_due SET wake_at = %(until)s::timestamptz, claims = 0 "
        "WHERE run_id = %(run)s AND lease = %(lease)s AND state = 'cancelling'",
        {"until": until, "run": claimed.run_id, "lease": claimed.lease},
    )
    ring.drain_at(claimed.queue, until)


def _leave_to_others(claimed: Claim) -> None:
    """Some other worker knows this flow: let it claim the run, in a moment; this claim was none."""
    soon = clock.now() + clock.real(SOON)
    rows = sql.execute(
        "UPDATE durable_flows_due SET state = 'queued', wake_at = %(soon)s, claims = claims - 1 "
        "WHERE run_id = %(run)s AND lease = %(lease)s AND state = 'running' RETURNING run_id",
        {"soon": soon, "run": claimed.run_id, "lease": claimed.lease},
    )
    if rows:
        ring.drain_at(claimed.queue, soon)
    else:
        _see_why_not(claimed, has_undo=claimed.cancelling)


def _park(
    claimed: Claim,
    why: DurableFlowsError | None = None,
    *,
    has_undo: bool = False,
    until_other_than: str = "",
) -> None:
    """Let the run rest until a tick finds that it can go on; what keeps it is noted on it.

    Args:
        claimed: the run.
        why: what keeps it, if it is not that its flow is unknown.
        has_undo: whether there is something to undo if it is cancelled.
        until_other_than: the digest of the code that cannot go on with it, if any code was tried.
    """
    unknown = f"no worker that is alive knows a flow {claimed.flow_id!r}"
    reason = unknown if why is None else f"{type(why).__name__}: {why}"
    keeps = until_other_than or keys.unknown_flow(claimed.flow_id, claimed.version)
    logger.warning("run %s is parked: %s", claimed.run_id, reason)
    rows = sql.execute(
        "UPDATE durable_flows_due SET state = 'parked', wake_at = NULL, claims = 0, "
        "parked_by = %(keeps)s "
        "WHERE run_id = %(run)s AND lease = %(lease)s AND state = 'running' RETURNING run_id",
        {"run": claimed.run_id, "lease": claimed.lease, "keeps": keeps},
    )
    if why is not None and (rows or claimed.cancelling):
        notes.warn({(claimed.run_id, notes.PARKED): reason})
    if not rows:
        _see_why_not(claimed, has_undo=has_undo)
