"""Invoked runs: asked for by a parent's slice, which waits for their ends.

Both sides commit first and look second. The command that starts a child and the parent's wait are one
transaction. The end of a child that may be awaited is told by a command in its own transaction, and
the router that carries it out finds the wait; so whoever ends a run never locks the due row of another.
A child that is joined may have ended, and have told so, before the wait was there: the slice looks at
it after the commit, and again whenever it comes back to a wait that nothing has ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from durable_flows.engine import deployments, failpoints, ingest, sql
from durable_flows.engine.arguments import Invocation
from durable_flows.engine.history import Child, Claim, children
from durable_flows.engine.senders import Sender
from durable_flows.engine.stored import Routed
from durable_flows.errors import CancelAsked, LeaseLost
from durable_flows.models import Wait
from durable_flows.rules import clock, events, keys
from durable_flows.rules.states import HELD, TERMINAL, DueState, WaitKind, WaitOutcome

# -- the slice's side ------------------------------------------------------------------------


def invoke(claim: Claim, key: str, invocation: Invocation, again: bool, *, sender: Sender) -> Child:
    """Ask for a run, or join the one that the key has started, and register the wait for its end.

    Args:
        claim: the run that asks, and its lease.
        key: its step.
        invocation: what it asks for.
        again: an earlier try got no answer, and may have had its effect.
        sender: the run that asks, as its command notes it.

    Raises:
        InvalidEvent: what the child is to be given cannot be stored.
        LeaseLost: the run was taken over; nothing was asked for.
        CancelAsked: it is being cancelled; nothing was asked for.
    """
    wait_id = keys.wait_id(claim.run_id, key, claim.generation)
    if again and (known := children([wait_id])):
        return look(claim, known[0][1])
    with sql.atomic():
        event_id = ingest.invoke(  # before the due row is locked: another sender may hold the key
            invocation.flow_id,
            invocation.data,
            user=invocation.user,
            v=invocation.v,
            key=invocation.key,
            subject=invocation.subject,
            sender=sender,
        )
        check_lease(claim)
        child = Child(
            id=wait_id,
            key=key,
            flow_id=invocation.flow_id,
            run_id=keys.flow_run_id(invocation.flow_id, event_id),
            created_at=clock.now(),
            expires_at=invocation.expires_at,
        )
        _insert(claim, child, event_id, cascade=invocation.cascade)
        failpoints.reach("before_invoke_commit", key)
    failpoints.reach("invoke_registered", key)
    deployments.warn_if_unknown(claim.run_id, key, invocation.flow_id)
    return look(claim, child) if invocation.key else child


def look(claim: Claim, child: Child) -> Child:
    """See what has become of a child: end the wait if it has ended, or if its time is over.

    A child that failed, and was retried by hand before this slice could read how, is waited for anew.

    Raises:
        LeaseLost: the run was taken over.
    """
    child = _read(child)
    if child.outcome and not child.is_over:
        _settle(claim, child, None)
        child = _read(child)
    outcome = "" if child.outcome else _outcome(child)
    if not outcome:
        return child
    failpoints.reach("before_child_settled", child.key)
    _settle(claim, child, outcome)
    settled = _read(child)
    if settled.outcome == outcome and not settled.state:  # purged since it was looked at
        return replace(child, outcome=outcome)
    return settled


def _outcome(child: Child) -> str:
    if not child.state and child.skipped is None and _is_gone(child):
        return WaitOutcome.GONE
    if child.skipped is not None:
        return WaitOutcome.SKIPPED
    if (
        child.state in TERMINAL
        and child.ended_at is not None
        and child.ended_at <= child.expires_at
    ):
        return child.state
    return WaitOutcome.TIMEOUT if child.expires_at <= clock.now() else ""


def _is_gone(child: Child) -> bool:
    """Whether the run that this waits for was purged: what has asked for it was carried out long ago."""
    rows = sql.execute(
        "SELECT 1 FROM durable_flows_wait w LEFT JOIN durable_flows_event e ON e.id = w.event_id "
        "WHERE w.id = %(id)s AND NOT EXISTS (SELECT 1 FROM durable_flows_run r WHERE r.id = w.match) "
        "AND NOT EXISTS (SELECT 1 FROM durable_flows_admission a "
        "WHERE a.event_id = w.event_id AND a.flow = w.event_name) "
        "AND (e.id IS NULL OR (e.routed_at IS NOT NULL AND NOT e.quarantined))",
        {"id": child.id},
    )
    return bool(rows)


def check_lease(claim: Claim) -> None:
    """Lock the due row until the commit: whoever wants to cancel or to take over comes later."""
    rows = sql.execute(
        "SELECT state FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s FOR SHARE",
        {"run": claim.run_id, "lease": claim.lease},
    )
    if not rows or rows[0][0] not in HELD:
        raise LeaseLost(f"run {claim.run_id} has another lease now")
    if rows[0][0] == DueState.CANCELLING:
        raise CancelAsked()


def _insert(claim: Claim, child: Child, event_id: uuid.UUID, *, cascade: bool) -> None:
    rows = sql.insert(
        Wait,
        {
            "id": [child.id],
            "run_id": [claim.run_id],
            "key": [child.key],
            "kind": [WaitKind.CHILD.value],
            "event_name": [child.flow_id],
            "event_id": [event_id],  # what has asked for the run
            "paths": ["[]"],
            "criteria": [f"run {child.run_id}"],
            "match": [child.run_id],
            "cascade": [cascade],
            "eligible_from": [0],
            "expires_at": [child.expires_at],
            "created_at": [child.created_at],
            "outcome": [""],
        },
        suffix="ON CONFLICT DO NOTHING RETURNING id",
    )
    if not rows:  # by an earlier try whose COMMIT was still going on: no second child must begin
        raise LeaseLost(f"run {claim.run_id} waits for another child of {child.key!r}")


def _read(child: Child) -> Child:
    [(_, found)] = children([child.id])
    return found


def _settle(claim: Claim, child: Child, outcome: str | None) -> None:
    """End the wait under the run's due row, unless it has ended; None: it has not, after all."""
    with sql.atomic():
        mine = sql.execute(
            "SELECT 1 FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s FOR UPDATE",
            {"run": claim.run_id, "lease": claim.lease},
        )
        if not mine:
            raise LeaseLost(f"run {claim.run_id} has another lease now")
        if outcome is None:
            sql.execute(
                "UPDATE durable_flows_wait SET settled_at = NULL, outcome = '' "
                "WHERE id = %(id)s AND outcome = %(before)s",
                {"id": child.id, "before": child.outcome},
            )
        else:
            _end({child.id: outcome})


# -- the router's side -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Over:
    """Waits of parents that are to end: read without locks, written under those of their due rows."""

    outcomes: Mapping[uuid.UUID, str]  # wait → what its child has come to
    parents: frozenset[uuid.UUID] = frozenset()


def over(batch: Sequence[Routed]) -> Over:
    """The pending waits for children that have ended, or were not admitted, as these events say."""
    ended = [uuid.UUID(event.target) for event in batch if event.name == events.ENDED]
    asked = [event for event in batch if event.name in (events.START, events.INVOKE)]
    rows = _waits_for_ended(ended) + _waits_for_skipped(asked)
    return Over(
        {sql.uid(wait_id): outcome for wait_id, _, outcome in rows},
        frozenset(sql.uid(run_id) for _, run_id, _ in rows),
    )


def settle(found: Over) -> tuple[list[uuid.UUID], list[tuple[uuid.UUID, str]]]:
    """End these waits, as far as nothing else has. The due rows of their runs are locked.

    Returns:
        The runs to wake; and the waits for one of many, by run and key, which wake nobody by themselves.
    """
    ended = _end(found.outcomes)
    woken = [run for run, _, kind in ended if kind == WaitKind.CHILD]
    items = [(run, key) for run, key, kind in ended if kind == WaitKind.ITEM]
    if ended:
        failpoints.reach("children_settled")
    return woken, items


def _waits_for_ended(run_ids: Sequence[uuid.UUID]) -> list[sql.Row]:
    """What ended too late is left to the timeout; what goes on again is not over."""
    if not run_ids:
        return []
    return sql.execute(
        "SELECT w.id, w.run_id, r.state FROM durable_flows_wait w "
        "JOIN durable_flows_run r ON r.id = w.match "
        f"WHERE {sql.among('w.match', 'runs')} AND w.settled_at IS NULL AND w.kind IN ('child', 'item') "
        "AND r.ended_at <= w.expires_at",
        {"runs": list(run_ids)},
    )


def _waits_for_skipped(asked: Sequence[Routed]) -> list[sql.Row]:
    """Whoever decides that a run is not admitted says so among the admissions; the rest is done here."""
    awaited = [event for event in asked if event.name == events.INVOKE or event.key]
    if not awaited:
        return []
    source, columns = sql.table(
        Wait,
        "t",
        {
            "event_id": [event.id for event in awaited],
            "match": [keys.flow_run_id(event.target, event.id) for event in awaited],
        },
    )
    return sql.execute(
        f"SELECT w.id, w.run_id, 'skipped' FROM {source} "
        "JOIN durable_flows_admission a ON a.event_id = t.event_id AND a.verdict = 'skip' "
        "JOIN durable_flows_wait w ON w.match = t.match "
        "WHERE w.settled_at IS NULL AND w.kind IN ('child', 'item')",
        columns,
    )


def _end(outcomes: Mapping[uuid.UUID, str]) -> list[tuple[uuid.UUID, str, str]]:
    """End those that nothing has ended. Returns their runs, keys and kinds."""
    if not outcomes:
        return []
    source, columns = sql.table(
        Wait,
        "t",
        {"id": list(outcomes), "outcome": [str(outcome) for outcome in outcomes.values()]},
    )
    rows = sql.execute(
        "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = t.outcome "
        f"FROM {source} WHERE durable_flows_wait.id = t.id "
        "AND durable_flows_wait.settled_at IS NULL RETURNING durable_flows_wait.run_id, "
        "durable_flows_wait.key, durable_flows_wait.kind",
        {"now": clock.now(), **columns},
    )
    return [(sql.uid(run_id), key, kind) for run_id, key, kind in rows]
