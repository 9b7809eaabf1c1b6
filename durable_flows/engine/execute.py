"""Executes due runs: claims them, many at once, plays a slice of each, and puts it away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from durable_flows import conf
from durable_flows.engine import clocksync, failpoints, finish, leases, ring, slices, solitude, sql
from durable_flows.engine.batch import Batch
from durable_flows.engine.claim import claim
from durable_flows.engine.finish import Ending
from durable_flows.engine.history import Claim, History, histories
from durable_flows.engine.stop import stopping
from durable_flows.engine.suspend import cancelled, put_away
from durable_flows.rules.states import DueState

SPREAD = 1.0  # real seconds between two calls for one more worker by one that is at work
STALE = 0.1  # real seconds after which a claim that has not begun is looked at again


def drain(queue: str, *, seconds: float | None = None) -> int:
    """Execute due runs of a queue until none is left or the time is spent.

    Args:
        queue: of which queue.
        seconds: real seconds after which no further batch is claimed; default ``DRAIN_SECONDS``.

    Returns:
        The number of slices.
    """
    budget = conf.settings().DRAIN_SECONDS if seconds is None else seconds
    until = time.monotonic() + budget
    clocksync.synchronise()
    count, spread_at = 0, 0.0
    while not stopping.is_set():
        if time.monotonic() >= until:
            ring.drain(queue)  # another task goes on where this one stops
            break
        with _claimed(queue) as batch:
            if not batch:
                break
            more = len(batch) == conf.settings().CLAIM_BATCH or batch[0].is_suspect
            if more and time.monotonic() >= spread_at:
                ring.drain(queue)  # a burst spreads over the workers: each calls one more
                spread_at = time.monotonic() + SPREAD
            _execute_batch(batch)
            count += len(batch)
    return count


@contextmanager
def _claimed(queue: str) -> Iterator[list[Claim]]:
    """A batch of runs to execute, or a suspect alone, beside which this process executes no other."""
    room = solitude.take()
    try:
        batch = claim(queue, conf.settings().CLAIM_BATCH, suspects=room is not None)
        if not (batch and batch[0].is_suspect):
            solitude.leave(room)
        yield batch
    finally:
        solitude.leave(room)


def _execute_batch(claims: list[Claim]) -> None:
    batch = Batch(claims)
    try:
        past = histories([claimed for claimed in claims if claimed.has_history])
        failpoints.reach("histories_read")
        while not stopping.is_set() and (claimed := batch.next()) is not None:
            _execute_one(batch, claimed, past.get(claimed.run_id, History()))
            sql.tend()
    finally:
        batch.close()


def _execute_one(batch: Batch, claimed: Claim, history: History) -> None:
    try:
        if batch.age > STALE:
            now = _as_it_stands(claimed, history)
            if now is None:
                return
            claimed = now
        outcome = slices.execute(claimed, history)
        put_away(claimed, outcome)
    except BaseException:  # what could not be put away is taken over when its lease ends
        leases.release(claimed.run_id, claimed.lease)
        raise
    if isinstance(outcome, Ending):
        batch.end(outcome)
    else:
        leases.release(claimed.run_id, claimed.lease)


def _as_it_stands(claimed: Claim, history: History) -> Claim | None:
    """A claim that had to wait for the runs before it; None: it stands no more, or was cancelled.

    One that was, and has something to undo, is wanted for that.
    """
    rows = sql.execute(
        "SELECT state FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s",
        {"run": claimed.run_id, "lease": claimed.lease},
    )
    is_asked_to_stop = bool(rows) and rows[0][0] != DueState.RUNNING
    if rows and (history.intents or not is_asked_to_stop):
        return replace(claimed, cancelling=is_asked_to_stop)
    if rows:
        finish.end([cancelled(claimed)])
    leases.release(claimed.run_id, claimed.lease)
    return None
