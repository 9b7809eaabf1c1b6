"""Ends waits for events; `children` ends those for invoked runs, and `finish` those of runs that end.

Both sides commit first and look second. A slice commits its wait and then looks back at the events
that are already routed; a router numbers committed events in one transaction and offers them to the
waits in the next. Whoever commits second sees the other. A wait ends by one conditional UPDATE, under
its run's due row, so that an event, a timeout and a cancellation never win together.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from durable_flows.engine import failpoints, lookback, notes, ring, signatures, sql, stored
from durable_flows.engine.conditions import Judge, Verdict
from durable_flows.engine.history import Waiter, Waiting
from durable_flows.engine.lookback import CancelHit
from durable_flows.engine.stored import Routed
from durable_flows.errors import LeaseLost
from durable_flows.models import Wait
from durable_flows.rules import clock, signals
from durable_flows.rules.events import Event
from durable_flows.rules.states import WaitKind, WaitOutcome

# -- the slice's side ------------------------------------------------------------------------


def look_back(claim: Waiter, wait: Waiting) -> Waiting:
    """End a committed wait by the oldest event that is already there, if there is one."""
    judge = Judge()
    candidates = lookback.candidates(claim, wait, judge)
    judge.note()
    for found in candidates:
        settled = _settle(claim, wait, WaitOutcome.EVENT, found)
        if settled is not None:
            return settled
    return wait


def last_look(claim: Waiter, wait: Waiting) -> Waiting:
    """End a wait whose time is over by its timeout, unless an event came in time.

    An event that was committed in time and is not routed yet must be offered first: then the wait
    stays as it is for a moment longer.
    """
    if _unrouted_in_time(wait):
        ring.route()
        return wait
    wait = look_back(claim, wait)
    if wait.outcome:
        return wait
    failpoints.reach("before_timeout", wait.key)
    return _settle(claim, wait, WaitOutcome.TIMEOUT, None) or wait


def _unrouted_in_time(wait: Waiting) -> bool:
    rows = sql.execute(
        "SELECT 1 FROM durable_flows_event WHERE name = %(name)s AND routed_at IS NULL "
        f"AND deliver_at <= %(expires)s {stored.FIRST}",
        {"name": wait.event_name, "expires": wait.expires_at},
    )
    return bool(rows)


def _settle(
    claim: Waiter, wait: Waiting, outcome: WaitOutcome, event: Event | None
) -> Waiting | None:
    """End the wait under the run's due row. None: this event was used up by another wait.

    Raises:
        LeaseLost: the run was taken over.
    """
    with sql.atomic():
        mine = sql.execute(
            "SELECT 1 FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s FOR UPDATE",
            {"run": claim.run_id, "lease": claim.lease},
        )
        if not mine:
            raise LeaseLost()
        event_id = None if event is None else stored.event_id(event)
        ended = _end([(wait.id, event_id)], outcome)
        failpoints.reach("before_settle_commit", wait.key)
        settled = replace(wait, outcome=outcome, event=event) if ended else as_settled(wait)
    failpoints.reach("wait_settled", wait.key)
    return settled


def as_settled(wait: Waiting) -> Waiting | None:
    """A wait that has ended already, with what ended it. None: it has not."""
    rows = sql.execute(
        f"SELECT w.outcome, {stored.columns('e')} FROM durable_flows_wait w "
        "LEFT JOIN durable_flows_event e ON e.id = w.event_id "
        "WHERE w.id = %(id)s AND w.settled_at IS NOT NULL",
        {"id": wait.id},
    )
    if not rows:
        return None
    outcome, *event = rows[0]
    found = None if event[0] is None else stored.event(event)
    return replace(wait, outcome=outcome, event=found)


# -- the router's side -----------------------------------------------------------------------

PIECE = 1_000  # waits that one transaction looks at


@dataclass(frozen=True, slots=True)
class _Pending:
    id: uuid.UUID
    run_id: uuid.UUID
    key: str
    kind: str
    match: uuid.UUID
    expression: str
    eligible_from: int
    received_since: datetime | None
    created_at: datetime
    expires_at: datetime
    trigger: uuid.UUID

    @property
    def about(self) -> str:
        """What a warning says it is about."""
        return notes.cancel_rule(self.key) if self.kind == WaitKind.CANCEL else self.key

    def takes(self, routed: Routed) -> bool:
        """Whether this event may end it."""
        if routed.deliver_at > self.expires_at or routed.id == self.trigger:
            return False
        if signals.is_expired(routed.event, self.created_at):
            return False
        if self.kind == WaitKind.CANCEL:
            newer_than = (self.received_since, self.eligible_from)
            return (routed.deliver_at, routed.arrival) > newer_than
        return routed.routed > self.eligible_from and (
            self.received_since is None or routed.received_at >= self.received_since
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a batch of events would do to pending waits: read without locks, written under them.

    Attributes:
        taken: the waits that would end, each with the event that ends it.
        is_crowded: nothing was looked at, since more than `PIECE` waits match.
    """

    taken: tuple[tuple[_Pending, Routed], ...] = ()
    is_crowded: bool = False

    @property
    def run_ids(self) -> set[uuid.UUID]:
        """The runs concerned."""
        return {pending.run_id for pending, _ in self.taken}

    @property
    def cancels(self) -> list[CancelHit]:
        """The cancel rules that are hit."""
        return [
            CancelHit(pending.run_id, pending.id, routed.name, routed.id)
            for pending, routed in self.taken
            if pending.kind == WaitKind.CANCEL
        ]


def offer(
    batch: Sequence[Routed],
    judge: Judge,
    *,
    run_ids: Iterable[uuid.UUID] | None = None,
    before: Sequence[Routed] = (),
) -> Found:
    """Offer events to every pending wait. Writes nothing.

    What the judge could not decide is to be noted under the locks.

    Args:
        batch: the events, in order.
        judge: decides by the expressions of waits.
        run_ids: offer them to the waits of these runs only.
        before: events that are settled in pieces, of which this is not the turn: from waits that both
            match the batch must not take what is theirs, nor resume a run that they cancel.
    """
    by_hash = _by_signatures(sorted([*before, *batch], key=lambda event: event.place))
    ids = {event.id for event in batch}
    own = [match for match, found in by_hash.items() if any(event.id in ids for event in found)]
    waits = _read_pending(own, run_ids=run_ids, most=PIECE + 1)
    if len(waits) > PIECE:
        return Found(is_crowded=True)
    if len(own) < len(by_hash):
        runs = {wait.run_id for wait in waits}
        waits += _read_pending([match for match in by_hash if match not in own], run_ids=runs)
    return Found(tuple(_take(waits, by_hash, _accepting(waits, judge))))


_FIRST = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class Place:
    """A place among the waits that one event matches: the last that was looked at."""

    match: uuid.UUID = _FIRST
    wait: uuid.UUID = _FIRST


def offer_piece(routed: Routed, judge: Judge, place: Place) -> tuple[Found, Place | None]:
    """Offer one event to the next `PIECE` waits that it matches. Returns None if there are no more."""
    by_hash = _by_signatures([routed])
    for match in sorted(match for match in by_hash if match >= place.match):
        after = place.wait if match == place.match else _FIRST
        waits = _read_pending([match], after=after, most=PIECE)
        if waits:
            found = Found(tuple(_take(waits, by_hash, _accepting(waits, judge))))
            return found, Place(match, waits[-1].id)
    return Found(), None


def resume(found: Found) -> set[str]:
    """End the waits of steps and wake their runs, whose due rows are locked. Returns their queues."""
    pairs = [pair for pair in found.taken if pair[0].kind == WaitKind.STEP]
    ended = set(_end([(pending.id, routed.id) for pending, routed in pairs], WaitOutcome.EVENT))
    woken = {pending.run_id for pending, _ in pairs if pending.id in ended}
    queues = wake(woken)
    if pairs:
        failpoints.reach("waits_resumed")
    return queues


def _accepting(waits: Sequence[_Pending], judge: Judge) -> dict[uuid.UUID, Verdict]:
    """What decides on candidates, for the waits that have an expression."""
    particular = [wait for wait in waits if wait.expression]
    own = stored.events_by_id({wait.trigger for wait in particular})
    return {
        wait.id: judge.of(wait.run_id, wait.about, wait.expression, own[wait.trigger])
        for wait in particular
        if wait.trigger in own
    }


def _take(
    waits: Sequence[_Pending],
    by_hash: Mapping[uuid.UUID, Sequence[Routed]],
    accepting: Mapping[uuid.UUID, Verdict],
) -> list[tuple[_Pending, Routed]]:
    """Pair each wait with the first event it takes; a run uses an event once for one condition."""
    used: set[tuple[uuid.UUID, uuid.UUID, str, str, uuid.UUID]] = set()
    taken = []
    for wait in waits:
        accepts = accepting.get(wait.id)
        for routed in by_hash[wait.match]:
            use = (wait.run_id, wait.match, wait.expression, wait.kind, routed.id)
            if not wait.takes(routed) or use in used:
                continue
            if wait.expression and not (accepts and accepts(routed.event)):
                continue
            used.add(use)
            taken.append((wait, routed))
            break
    return taken


def end_cancel_waits(hits: Iterable[CancelHit]) -> None:
    """Note which event ended these cancel rules."""
    _end([(hit.wait_id, hit.event_id) for hit in hits], WaitOutcome.EVENT)


def wake(run_ids: Iterable[uuid.UUID]) -> set[str]:
    """Make suspended runs due now; one that is running goes on at once after it suspends.

    Their due rows must be locked, in the order of `lock_due`. Returns their queues.
    """
    runs = list(run_ids)
    if not runs:
        return set()
    rows = sql.execute(
        "UPDATE durable_flows_due SET "
        "nudged = (state IN ('running', 'cancelling')), "
        "due_since = CASE WHEN state = 'waiting' THEN %(now)s::timestamptz ELSE due_since END, "
        "wake_at = CASE WHEN state = 'waiting' THEN %(now)s::timestamptz ELSE wake_at END, "
        "state = CASE WHEN state = 'waiting' THEN 'queued' ELSE state END "
        f"WHERE {sql.among('run_id', 'runs')} RETURNING queue",
        {"now": clock.now(), "runs": runs},
    )
    return {row[0] for row in rows}


def lock_due(run_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, tuple[str, int]]:
    """Lock due rows, sorted. Returns run → (state, lease) of those that are there."""
    wanted = sorted(set(run_ids))
    if not wanted:
        return {}
    rows = sql.execute(
        "SELECT run_id, state, lease FROM durable_flows_due "
        f"WHERE {sql.among('run_id', 'runs')} ORDER BY run_id FOR UPDATE",
        {"runs": wanted},
    )
    return {sql.uid(run_id): (state, lease) for run_id, state, lease in rows}


def _by_signatures(batch: Sequence[Routed]) -> dict[uuid.UUID, list[Routed]]:
    in_use = signatures.read({routed.name for routed in batch})
    found: dict[uuid.UUID, list[Routed]] = defaultdict(list)
    for routed in (routed for routed in batch if routed.name in in_use):
        for hash_ in signatures.hashes_of(routed.event, in_use):
            found[hash_].append(routed)
    return found


def _read_pending(
    hashes: Sequence[uuid.UUID],
    *,
    run_ids: Iterable[uuid.UUID] | None = None,
    after: uuid.UUID | None = None,
    most: int | None = None,
) -> list[_Pending]:
    if not hashes:
        return []
    clauses = [sql.among("w.match", "hashes")]
    clauses += [sql.among("w.run_id", "runs")] if run_ids is not None else []
    clauses += ["w.id > %(after)s"] if after is not None else []
    rows = sql.execute(
        "SELECT w.id, w.run_id, w.key, w.kind, w.match, w.expression, w.eligible_from, "
        "w.received_since, w.created_at, w.expires_at, r.event_id "
        "FROM durable_flows_wait w JOIN durable_flows_run r ON r.id = w.run_id "
        f"WHERE {' AND '.join(clauses)} AND w.settled_at IS NULL "
        f"{'ORDER BY w.id' if after is not None else ''} {'LIMIT %(most)s' if most else ''}",
        {
            "hashes": list(hashes),
            "runs": list(run_ids or ()),
            "after": after,
            "most": most,
        },
    )
    return [
        _Pending(
            id=sql.uid(id_),
            run_id=sql.uid(run_id),
            key=key,
            kind=kind,
            match=sql.uid(match),
            expression=expression,
            eligible_from=eligible_from,
            received_since=since and sql.moment(since),
            created_at=sql.moment(created_at),
            expires_at=sql.moment(expires_at),
            trigger=sql.uid(trigger),
        )
        for id_, run_id, key, kind, match, expression, eligible_from, *times, trigger in rows
        for since, created_at, expires_at in [times]
    ]


def _end(
    waits: Sequence[tuple[uuid.UUID, uuid.UUID | None]], outcome: WaitOutcome
) -> list[uuid.UUID]:
    """End those that nothing has ended, with events that their run has not used for the same."""
    if not waits:
        return []
    source, columns = sql.table(
        Wait, "t", {"id": [wait for wait, _ in waits], "event_id": [event for _, event in waits]}
    )
    rows = sql.execute(
        "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = %(outcome)s, "
        f"event_id = t.event_id FROM {source} "
        "WHERE durable_flows_wait.id = t.id AND durable_flows_wait.settled_at IS NULL "
        "AND NOT EXISTS (SELECT 1 FROM durable_flows_wait used "
        "WHERE used.run_id = durable_flows_wait.run_id AND used.match = durable_flows_wait.match "
        "AND used.expression = durable_flows_wait.expression "
        "AND used.kind = durable_flows_wait.kind AND used.event_id = t.event_id) "
        f"{lookback.not_taken('durable_flows_wait.match', 't.event_id')}"
        "RETURNING durable_flows_wait.id",
        {"now": clock.now(), "outcome": outcome, **columns},
    )
    return [sql.uid(row[0]) for row in rows]
