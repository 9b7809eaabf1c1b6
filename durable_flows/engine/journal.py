"""The journal of a run, as its tools see it: whatever a slice records goes through it.

A step of one statement is recorded by `recording`. Here are those that are more: they send, wait for what
comes from outside, or end what others wait for.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from durable_flows import conf
from durable_flows.engine import failpoints, signatures, sql
from durable_flows.engine.arguments import Invocation, Mapped
from durable_flows.engine.fence import MINE
from durable_flows.engine.history import Child, Claim, History, Progress, Recorded, Waiting, size_of
from durable_flows.engine.keeping import Values
from durable_flows.engine.recording import Recording
from durable_flows.engine.scopes import Branch
from durable_flows.errors import SignalTaken, Suspend, UnknownEvent, UnserialisableResult
from durable_flows.rules import clock, durations
from durable_flows.rules.events import SIGNALLED, Event
from durable_flows.rules.states import StepKind, WaitOutcome

LOOK_AGAIN = 1.0  # real seconds after which a wait looks again for an event that is being routed

_REGISTER = (
    MINE + "INSERT INTO durable_flows_wait (id, run_id, key, kind, event_name, paths, criteria, "
    "expression, match, eligible_from, routed_since, received_since, expires_at, created_at, outcome) "
    "SELECT %(id)s::uuid, run_id, %(key)s, 'step', %(name)s, %(paths)s, %(criteria)s, "
    "%(expression)s, %(match)s::uuid, %(from)s, "
    "%(routed_since)s::timestamptz, %(received_since)s::timestamptz, %(expires)s::timestamptz, "
    "%(now)s::timestamptz, '' FROM mine WHERE true ON CONFLICT DO NOTHING RETURNING id"
)
_FIND_WAIT = (
    "SELECT w.id FROM durable_flows_wait w "
    "JOIN durable_flows_due d ON d.run_id = w.run_id AND d.lease = %(lease)s "
    "WHERE w.id = %(id)s::uuid"
)
#: Who has the name of a signal; nobody, if there is only the run's own due row; no row without the lease.
_HOLDER = (
    "SELECT r.id, r.flow, w.key, w.id, w.expires_at FROM durable_flows_due d "
    "LEFT JOIN durable_flows_wait w ON w.match = %(match)s::uuid "
    f"AND w.event_name = '{SIGNALLED}' AND w.settled_at IS NULL "
    "LEFT JOIN durable_flows_run r ON r.id = w.run_id "
    "WHERE d.run_id = %(run)s AND d.lease = %(lease)s AND d.state IN ('running', 'cancelling')"
)
#: One that an event has ended a moment ago too: nobody takes notice of it, so the event is not used up.
_CLOSE = (
    "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = 'closed', "
    "event_id = NULL WHERE {ids} AND (settled_at IS NULL OR kind = 'step' AND outcome = 'event')"
)


class Journal(Recording):
    """One slice's view of its run: what is recorded, and the means to record more.

    Args:
        claim: the run and the lease under which it is written.
        history: what earlier slices recorded.
        values: how results are kept and read.
        store: inserts events in the current transaction and returns their ids.
        look_back: ends a wait by an event that is already there, if there is one.
        last_look: the same, for a wait whose time is over; ends it by the timeout otherwise.
        as_settled: a wait that has ended already, with what ended it.
        end_overdue: ends a wait of another run whose time is over; False: not yet.
        told_to_stop: whether this worker is to begin nothing more.
        invoke: asks for a run and registers the wait for it; told whether an earlier try had no answer.
        look_at: sees what has become of an invoked run, and ends the wait if it has ended.
        map: asks for a run for each item, or sees how far they have come.
        ends_of: what has become of those.
        is_strict: whether code that does not fit what is recorded ends the slice.
    """

    def __init__(
        self,
        claim: Claim,
        history: History,
        values: Values,
        *,
        store: Callable[[Sequence[Event]], list[uuid.UUID]],
        look_back: Callable[[Claim, Waiting], Waiting],
        last_look: Callable[[Claim, Waiting], Waiting],
        as_settled: Callable[[Waiting], Waiting | None],
        end_overdue: Callable[[uuid.UUID], bool],
        told_to_stop: Callable[[], bool],
        invoke: Callable[[Claim, str, Invocation, bool], Child],
        look_at: Callable[[Claim, Child], Child],
        map: Callable[[Claim, str, Mapped], Progress],
        ends_of: Callable[[Claim, str, int], list[Child]],
        is_strict: bool = False,
    ) -> None:
        super().__init__(claim, history, values, told_to_stop, is_strict)
        self._store = store
        self._look_back = look_back
        self._last_look = last_look
        self._as_settled = as_settled
        self._end_overdue = end_overdue
        self._invoke = invoke
        self._look_at = look_at
        self._map = map
        self._ends_of = ends_of

    def patch(self, key: str, is_past: bool) -> bool:
        """Whether the run has come, or comes now, to this place with the code that is there.

        Args:
            key: of the place.
            is_past: it had been further before.

        Raises:
            LeaseLost, CancelAsked, LimitExceeded: as `record` does.
        """
        if self.begin(key, StepKind.PATCH) is not None:
            return True
        if not is_past and not self.recalls:
            self.record(key, StepKind.PATCH, output="true")
        return not is_past

    def send(self, key: str, batch: Sequence[Event]) -> Recorded:
        """Store events and record the step that sent them, in one transaction: exactly once."""
        started_at = clock.now()

        def write() -> tuple[Recorded, str]:
            with sql.atomic():
                ids = self._store(batch)
                failpoints.reach("step_ran", key)
                output = json.dumps([str(id_) for id_ in ids])
                written = self._insert(key, StepKind.SEND, output, None, None, started_at)
                failpoints.reach("before_send_commit", key)
            return written

        return self._once(key, write)

    def decide(self, key: str, number: int, others: Sequence[Branch]) -> Recorded:
        """Record which branch decides a group, and close what the others wait for.

        Raises:
            LeaseLost, CancelAsked, LimitExceeded: as `record` does.
            Suspend: nothing is to begin.
        """
        if self.recalls:
            self._goes_no_further()
        return self._conclude(
            key,
            StepKind.RACE,
            json.dumps({"branch": number}),
            closes=lambda waiting: any(other.has(waiting) for other in others),
        )

    def await_events(
        self, key: str, requests: Mapping[str, Callable[[], Waiting]], needed: int
    ) -> Recorded:
        """The end of several waits: recorded once so many have got their event, or all have ended.

        Raises:
            Suspend: more of them are needed, and may still come.
        """
        ended: dict[str, Recorded] = {}
        wakes: list[datetime] = []
        for waiting, request in requests.items():
            try:
                ended[waiting] = self._steps.get(waiting) or self.await_event(waiting, request())
            except Suspend as signal:
                wakes.append(signal.until)
        found = {waiting: one.output for waiting, one in ended.items() if one.output is not None}
        if wakes and len(found) < needed:
            self.suspend(min(wakes))
        output = ", ".join(found.get(waiting, "null") for waiting in requests)
        return self._conclude(
            key, StepKind.WAIT, f"[{output}]", closes=lambda waiting: waiting in requests
        )

    def _conclude(
        self, key: str, kind: StepKind, output: str, *, closes: Callable[[str], bool]
    ) -> Recorded:
        """Record the end of several waits, and close those of them that go on, in one transaction."""
        pending: list[Waiting | Child] = [*self._waits.values(), *self._children.values()]
        closed = {
            wait.id
            for wait in pending
            if wait.outcome in ("", WaitOutcome.EVENT)
            and wait.key not in self._steps
            and closes(wait.key)
        }

        def write() -> tuple[Recorded, str]:
            with sql.atomic():
                written = self._insert(key, kind, output, None, None, None)
                if closed:
                    sql.execute(
                        _CLOSE.format(ids=sql.among("id", "ids")),
                        {"ids": sorted(closed), "now": clock.now()},
                    )
                failpoints.reach("before_race_commit", key)
            return written

        return self._once(key, write)

    def await_event(
        self, key: str, request: Waiting, prepare: Callable[[], None] | None = None
    ) -> Recorded:
        """The end of a wait: registered, looked back for, and recorded once it has ended.

        Args:
            key: the step's.
            request: what is waited for.
            prepare: writes what belongs to the wait, before it is registered; may be called again.

        Raises:
            Suspend: nothing has ended it yet.
        """
        known = self._waits.get(key)
        if known is None and prepare is not None:
            self._persistently(lambda again: prepare())
        wait = known or self._register(request)
        if not wait.outcome:  # also when an earlier slice died between its commit and this look
            registered, is_known = wait, known is not None
            wait = self._persistently(lambda again: self._look(registered, again or is_known))
        self._waits[key] = wait
        if not wait.outcome:
            self.suspend(max(wait.expires_at, clock.now() + clock.real(LOOK_AGAIN)))
        found = wait.event if wait.outcome == WaitOutcome.EVENT else None
        if found is None and wait.outcome == WaitOutcome.EVENT:  # never to be taken for a timeout
            raise UnknownEvent(f"step {key!r}: the event that ended its wait is no longer kept")
        output = json.dumps(found.as_dict()) if found else None
        return self.record(key, StepKind.WAIT, output=output)

    def _look(self, wait: Waiting, again: bool) -> Waiting:
        """Look back for what may have ended a wait.

        A router may have ended it since it was read, and so may a look that got no answer: ``again``.
        """
        if again and (settled := self._as_settled(wait)) is not None:
            return settled
        wait = self._look_back(self.claim, wait)
        failpoints.reach("looked_back", wait.key)
        if not wait.outcome and wait.expires_at <= clock.now():
            wait = self._last_look(self.claim, wait)
        return wait

    def _register(self, wait: Waiting) -> Waiting:
        """Commit the wait, and before it the signature that makes routers look for it."""
        self._persistently(lambda again: signatures.write([(wait.event_name, wait.paths)]))
        failpoints.reach("signature_written", wait.key)
        params = {
            "id": wait.id,
            "key": wait.key,
            "name": wait.event_name,
            "paths": json.dumps(wait.paths),
            "criteria": wait.criteria,
            "expression": wait.expression,
            "match": wait.match,
            "from": wait.eligible_from,
            "routed_since": wait.routed_since,
            "received_since": wait.received_since,
            "expires": wait.expires_at,
            "now": wait.created_at,
        }
        if wait.is_for_signal:
            self._persistently(lambda again: self._register_alone(wait, params))
        else:
            self._write(_REGISTER, params, find=_FIND_WAIT)
        failpoints.reach("wait_registered", wait.key)
        return wait

    def _register_alone(self, wait: Waiting, params: dict[str, Any]) -> None:
        """Commit the wait for a signal, unless another step waits for this name.

        Raises:
            SignalTaken: one does.
            Suspend: the time of one is over, and what came for it in time is to be routed first.
            LeaseLost: the run was taken over.
        """
        while not (self._execute(_REGISTER, params) or self._execute(_FIND_WAIT, params)):
            run_id, flow, key, holder, expires_at = self._fenced(_HOLDER, params)
            if run_id is None:  # it has just ended: now the name is free
                continue
            if sql.moment(expires_at) > clock.now():
                raise SignalTaken(
                    f"signal {wait.criteria!r} is waited for by step {key!r} of run {sql.uid(run_id)} "
                    f"(flow {flow!r}), and a name has one waiter at a time; put what tells them apart "
                    "into the name"
                )
            if not self._end_overdue(sql.uid(holder)):
                self.suspend(clock.now() + clock.real(LOOK_AGAIN))

    def invoke(self, key: str, invocation: Invocation) -> Recorded:
        """The end of an invoked run: asked for, waited for, and recorded once it has come.

        Raises:
            InvalidEvent: what it is to be given cannot be stored; nothing was asked for.
            Suspend: it has not ended yet.
            CancelAsked: this run is being cancelled; nothing was asked for, or its end was recorded.
        """
        child = self._children.get(key)
        if child is None:
            self.check_room(key)
            child = self._persistently(
                lambda again: self._invoke(self.claim, key, invocation, again)
            )
        elif not child.is_over:
            registered = child
            child = self._persistently(lambda again: self._look_at(self.claim, registered))
        self._children[key] = child
        if not child.is_over:
            self.suspend(child.expires_at)
        began, over = child.created_at, child
        failure = self._at_hand(lambda: self.values.of_child(over))
        output = self._as_own(child.result, key) if failure is None else None
        return self.record(key, StepKind.INVOKE, output=output, error=failure, started_at=began)

    def _as_own(self, result: str | None, key: str) -> str | None:
        """What is kept of a child's result here: it may be purged before this run is."""
        if result is None:
            return None
        return self._at_hand(lambda: self.values.kept(Values.whole(result), key))

    def map(self, key: str, asked: Mapped) -> Recorded:
        """The ends of a run for each item: asked for, waited for, and recorded once all have come.

        Raises:
            InvalidEvent: an item cannot be stored; nothing was asked for.
            Suspend: some have not ended yet.
            CancelAsked: this run is being cancelled.
        """
        progress = self._persistently(lambda again: self._map(self.claim, key, asked))
        if not progress.is_over:
            self.suspend(clock.now() + durations.LONGEST)
        ends = self._persistently(lambda again: self._ends_of(self.claim, key, progress.total))
        failed = next((child for child in ends if child.failure is not None), None)
        if failed is not None:
            failure = self._at_hand(lambda: self.values.of_child(replace(failed, key=key)))
            return self.record(key, StepKind.MAP, error=failure)
        output = self._at_hand(lambda: Values.joined([child.result or "null" for child in ends]))
        if size_of(output) > self._limits.MAX_RESULT_BYTES:
            raise UnserialisableResult(
                f"the results of {key!r} have {size_of(output):,} bytes together, the limit is "
                f"{self._limits.MAX_RESULT_BYTES:,} ({conf.shown('MAX_RESULT_BYTES')}); let the runs "
                "store what they make, and return references to it"
            )
        kept = self._at_hand(lambda: self.values.kept(output, key))
        return self.record(key, StepKind.MAP, output=kept)
