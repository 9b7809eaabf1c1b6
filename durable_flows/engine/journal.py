"""The journal of a run: the only writer of steps, attempts and step waits.

Every write is conditional on the lease of the slice that makes it. One that changes nothing means that
the run has been taken over: the slice stops (`LeaseLost`) and writes nothing more.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from durable_flows import conf
from durable_flows.engine import failpoints, fits, leases, notes, signatures, sql
from durable_flows.engine.arguments import Invocation, Mapped
from durable_flows.engine.history import (
    STEP_COLUMNS,
    Child,
    Claim,
    Failure,
    History,
    Progress,
    Recorded,
    Waiting,
    size_of,
)
from durable_flows.engine.persist import NO_ANSWER, until_answered
from durable_flows.engine.scopes import Branch, Scope
from durable_flows.errors import (
    CancelAsked,
    DeterminismError,
    Diverged,
    HandBack,
    LeaseLost,
    LimitExceeded,
    Suspend,
    UnserialisableResult,
)
from durable_flows.rules import clock, durations, replays
from durable_flows.rules.events import Event
from durable_flows.rules.states import DueState, StepKind, StepState, WaitOutcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_AGAIN = 1.0  # real seconds after which a wait looks again for an event that is being routed

#: What a slice writes is conditional on this, as the row ``mine``. FOR SHARE, so that whoever takes
#: the run over waits for the write and then reads it, or comes first and makes it write nothing.
_MINE = (
    "WITH mine AS MATERIALIZED (SELECT run_id, lease, state FROM durable_flows_due "
    "WHERE run_id = %(run)s AND lease = %(lease)s AND state IN ('running', 'cancelling') FOR SHARE) "
)
_RECORD = (
    _MINE + "INSERT INTO durable_flows_step (run_id, key, seq, kind, state, output, error, until, "
    "attempt, started_at, ended_at, lease, mark) "
    "SELECT run_id, %(key)s, %(seq)s, %(kind)s, %(state)s, %(output)s, %(error)s, "
    "%(until)s::timestamptz, %(attempt)s, %(started_at)s::timestamptz, %(ended_at)s::timestamptz, "
    "lease, {mark} FROM mine WHERE true ON CONFLICT DO NOTHING "
    "RETURNING mark, (SELECT state FROM mine)"
)
#: What a try that got no answer has written, if the run is still ours.
_FIND = (
    f"SELECT d.state, {STEP_COLUMNS} FROM durable_flows_step s "
    "JOIN durable_flows_due d ON d.run_id = s.run_id AND d.lease = s.lease "
    "WHERE s.run_id = %(run)s AND s.key = %(key)s AND s.lease = %(lease)s"
)
#: A failure is known by how many of this generation were known before it.
_RECORD_FAILURE = (
    _MINE + "INSERT INTO durable_flows_attempt "
    "(run_id, key, n, generation, error, failed_at, next_at) "
    "SELECT run_id, %(key)s::text, (SELECT coalesce(max(n), 0) + 1 FROM durable_flows_attempt "
    "WHERE run_id = %(run)s AND key = %(key)s::text), %(generation)s, %(error)s, "
    "%(now)s::timestamptz, %(next_at)s::timestamptz FROM mine "
    "WHERE (SELECT count(*) FROM durable_flows_attempt WHERE run_id = %(run)s "
    "AND key = %(key)s::text AND generation = %(generation)s) = %(known)s "
    "ON CONFLICT DO NOTHING RETURNING n"
)
_FIND_FAILURE = (
    "SELECT max(a.n) FROM durable_flows_attempt a "
    "JOIN durable_flows_due d ON d.run_id = a.run_id AND d.lease = %(lease)s "
    "WHERE a.run_id = %(run)s AND a.key = %(key)s AND a.generation = %(generation)s "
    "HAVING count(*) > %(known)s"
)
_REGISTER = (
    _MINE + "INSERT INTO durable_flows_wait (id, run_id, key, kind, event_name, paths, criteria, "
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
_SEE_NUDGE = (
    "UPDATE durable_flows_due SET nudged = false WHERE run_id = %(run)s AND lease = %(lease)s "
    "AND state = 'running' AND nudged RETURNING run_id"
)
_CLOSE = (
    "UPDATE durable_flows_wait SET settled_at = %(now)s::timestamptz, outcome = 'closed' "
    "WHERE {ids} AND settled_at IS NULL"
)


class Journal:
    """One slice's view of its run: what is recorded, and the means to record more.

    Args:
        claim: the run and the lease under which it is written.
        history: what earlier slices recorded.
        store: inserts events in the current transaction and returns their ids.
        look_back: ends a wait by an event that is already there, if there is one.
        last_look: the same, for a wait whose time is over; ends it by the timeout otherwise.
        as_settled: a wait that has ended already, with what ended it.
        told_to_stop: whether this worker is to begin nothing more.
        invoke: asks for a run and registers the wait for it; told whether an earlier try had no answer.
        look_at: sees what has become of an invoked run, and ends the wait if it has ended.
        map: asks for a run for each item, or sees how far they have come.
        ends_of: what has become of those.
        is_strict: whether code that does not fit what is recorded ends the slice.

    Attributes:
        recalls: the handler is only replayed, to learn how its steps are undone.
        undoes: they are being undone.
        replay: how far this slice has come along what is recorded; None if that says nothing. A run that
            was retried may rightly go another way from the step on that had failed.
    """

    def __init__(
        self,
        claim: Claim,
        history: History,
        *,
        store: Callable[[Sequence[Event]], list[uuid.UUID]],
        look_back: Callable[[Claim, Waiting], Waiting],
        last_look: Callable[[Claim, Waiting], Waiting],
        as_settled: Callable[[Waiting], Waiting | None],
        told_to_stop: Callable[[], bool],
        invoke: Callable[[Claim, str, Invocation, bool], Child],
        look_at: Callable[[Claim, Child], Child],
        map: Callable[[Claim, str, Mapped], Progress],
        ends_of: Callable[[Claim, str, int], list[Child]],
        is_strict: bool = False,
    ) -> None:
        self.claim = claim
        self.nudges = 0
        self.recalls = False
        self.undoes = False
        recorded = [*history.steps, *history.waits, *history.children]
        self.replay = replays.Replay(recorded) if recorded and not claim.generation else None
        self._is_strict = is_strict
        self._looked_at = time.monotonic()
        self.stopped: BaseException | None = None
        self._steps = history.steps
        self._failures = history.failures
        self._waits = history.waits
        self._children = history.children
        self._size = history.size
        self._wrapper = sql.connection()
        self._thread = threading.get_ident()
        self._depth = sql.depth(self._wrapper)
        self._record = _RECORD.format(mark=sql.counter("routed"))
        self._limits = conf.settings()
        self._store = store
        self._look_back = look_back
        self._last_look = last_look
        self._as_settled = as_settled
        self._told_to_stop = told_to_stop
        self._invoke = invoke
        self._look_at = look_at
        self._map = map
        self._ends_of = ends_of

    # -- reading ---------------------------------------------------------------------------

    def begin(self, key: str, kind: StepKind | None = None) -> Recorded | None:
        """What is recorded of a step; None if it may begin now.

        Args:
            key: the step's.
            kind: of which it must be, if it is recorded.

        Raises:
            Diverged: the code does not fit what is recorded.
            HandBack: this worker is to begin nothing more.
            LeaseLost, CancelAsked: the slice has stopped.
            Suspend: its next attempt is to be made later, whatever woke the run; or nothing is to begin.
            LimitExceeded: the run has no room for one more step.
        """
        self.check()
        if self._told_to_stop():
            raise self._stop(HandBack())
        step = self._steps.get(key)
        if step is None:
            if kind != StepKind.RACE:  # which is no step by itself
                self._see_whether_it_may_begin(key)
            self._hold_off(key)
            self.check_room(key)
        elif kind is not None and step.kind != kind:
            raise self._stop(Diverged(fits.changed_kind(step, kind)))
        return step

    def decided(self, key: str) -> None:
        """One branch decides this group: the steps of the others need not be met."""
        if self.replay is not None:
            self.replay.decide(key)

    def is_past(self, scope: Scope) -> bool:
        """Whether the run has been further along this line than it is in this slice."""
        failed = (key for key in self._failures if not _is_between(key))
        return scope.is_past([*self._steps, *self._waits, *self._children, *failed])

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
        if not is_past:
            self.record(key, StepKind.PATCH, output="true")
        return not is_past

    def end_replay(self, last_key: str) -> None:
        """The handler has returned: see whether it has met all that is recorded.

        Raises:
            Diverged: it has not, and the flow is strict.
        """
        if self.replay is not None and (left := self.replay.left()):
            self._diverge(fits.left_out(left, last_key))

    def _see_whether_it_may_begin(self, key: str) -> None:
        """A step that is not recorded may begin only where nothing comes after it in its line."""
        if self.recalls:
            self._goes_no_further()
        if self.replay is None:
            return
        if key in self._waits or key in self._children or key.startswith(replays.PATCH):
            return
        if after := self.replay.after(key):
            self._diverge(fits.out_of_order(key, after))

    def _diverge(self, error: DeterminismError) -> None:
        """The code does not fit: the end of a strict flow's slice, and else a warning."""
        if self._is_strict:
            raise self._stop(Diverged(error))
        self.warn(notes.ORDER, str(error))

    def find(self, key: str) -> Recorded | None:
        """What is recorded under this key."""
        return self._steps.get(key)

    def is_done(self, key: str) -> bool:
        """Whether a step of this key is recorded, and has succeeded."""
        step = self._steps.get(key)
        return step is not None and step.state == StepState.DONE

    @property
    def intents(self) -> list[str]:
        """The keys of the recorded intents of sagas, the oldest first."""
        return [step.key for step in self._steps.values() if step.kind == StepKind.INTENT]

    def recall(self) -> None:
        """The handler is replayed once more to learn how its steps are undone: it begins nothing."""
        self.stopped = None
        self.replay = None
        self.recalls = True

    def _goes_no_further(self) -> NoReturn:
        """A line of the handler has come to the end of what is recorded; the others have not."""
        self.suspend(clock.now() + durations.LONGEST)

    def undo(self) -> None:
        """The handler has come to its end: what undoes its steps may begin, whoever has cancelled it."""
        self.stopped = None
        self.replay = None
        self.recalls = False
        self.undoes = True

    def _hold_off(self, key: str) -> None:
        failures = self.failures(key)
        next_at = failures[-1].next_at if failures else None
        if next_at is not None and next_at > clock.now():
            self.suspend(next_at)

    def failures(self, key: str) -> Sequence[Failure]:
        """The failed attempts at ``key`` in this generation of the run, oldest first."""
        return self._failures.get(key, ())

    def latest_retry_between(self) -> datetime | None:
        """When the code between steps may be tried again, if that is what failed last."""
        between = [f for key, found in self._failures.items() for f in found if _is_between(key)]
        moments = [failure.next_at for failure in between if failure.next_at is not None]
        return max(moments, default=None)

    def in_transaction(self) -> bool:
        """Whether the calling thread has opened a transaction in which a write would be no commit."""
        if self._is_own_thread:
            return sql.depth(self._wrapper) != self._depth
        return sql.depth(sql.connection()) != sql.NO_DEPTH

    # -- writing ---------------------------------------------------------------------------

    def record(
        self,
        key: str,
        kind: StepKind,
        *,
        output: str | None = None,
        error: dict[str, Any] | None = None,
        until: datetime | None = None,
        started_at: datetime | None = None,
    ) -> Recorded:
        """Record a step: one statement, one commit.

        Raises:
            LeaseLost: the run was taken over; nothing was written.
            CancelAsked: it was written, and no new step may start.
            LimitExceeded: the run has too many steps or too much state; nothing was written.
        """
        return self._once(key, lambda: self._insert(key, kind, output, error, until, started_at))

    def write_atomically(
        self, key: str, work: Callable[[], str], *, started_at: datetime
    ) -> tuple[Recorded, str]:
        """Call ``work`` and write the text that it returns, in one transaction: both, or neither.

        On the connection of the calling thread. The due row is locked after the work, for the last
        statement before the commit: however long the work takes, it holds up nobody who needs that row.

        Returns:
            What is to be handed to `keep`.

        Raises:
            LeaseLost: the run was taken over, or it is not known yet whether it is recorded; where it
                is not, everything was rolled back.
            LimitExceeded: the run has too many steps or too much state; all was rolled back.
            Exception: what ``work`` raised, or the commit because of it; all was rolled back.
        """
        written: list[tuple[Recorded, str]] = []
        committed: list[bool] = []
        try:
            with sql.atomic():
                sql.on_commit(lambda: committed.append(True))  # the first callback: before work's
                output = work()
                with self._answering():
                    written.append(self._insert(key, StepKind.RUN, output, None, None, started_at))
                failpoints.reach("before_atomic_commit", key)
        except (Exception, SystemExit) as error:
            if committed:
                logger.exception("step %r is recorded, but a callback of its commit failed", key)
            elif written and isinstance(error, NO_ANSWER):
                written = [self._find_out(key, error)]
            else:
                raise
        return written[0]

    def _find_out(self, key: str, error: Exception) -> tuple[Recorded, str]:
        """After a COMMIT without an answer: whether it was one, asked on a new connection.

        A server that is still busy with it holds the due row: then nobody takes the run over, and
        reads that there is no such step, before it is done.
        """
        found = self._persistently(lambda again: self._found(key))
        if found is None:
            raise self._stop(LeaseLost(f"no answer to a COMMIT: {error}")) from error
        return found

    def _found(self, key: str) -> tuple[Recorded, str] | None:
        """The step that this slice has recorded without knowing it, and the state of the due row."""
        rows = self._execute(_FIND, {"key": key})
        if not rows:
            return None
        due_state, *row = rows[0]
        return Recorded.of(row), due_state

    def _once(self, key: str, write: Callable[[], tuple[Recorded, str]]) -> Recorded:
        """Write a step, and again if there was no answer: whatever comes of it, it is written once."""

        def attempt(again: bool) -> tuple[Recorded, str]:
            try:
                return write()
            except LeaseLost:
                found = self._found(key) if again else None
                if found is None:
                    raise
                return found

        return self.keep(*self._persistently(attempt))

    def keep(self, step: Recorded, state: str) -> Recorded:
        """A step is committed: replays of this slice find it, and the next may begin unless it is late.

        Raises:
            CancelAsked: no new step may start.
        """
        self._steps[step.key] = step
        self._size += size_of(step.output)
        failpoints.reach("step_recorded", step.key)
        if state == DueState.CANCELLING and not self.undoes:
            raise self._stop(CancelAsked())
        return step

    def _insert(
        self,
        key: str,
        kind: StepKind,
        output: str | None,
        error: dict[str, Any] | None,
        until: datetime | None,
        started_at: datetime | None,
    ) -> tuple[Recorded, str]:
        """Write a step, fenced. Returns it, and the state of the due row under which it was written."""
        self.check_room(key, output)
        now = clock.now()
        params: dict[str, Any] = {
            "key": key,
            "seq": len(self._steps) + 1,
            "kind": kind.value,  # psycopg sends plain text faster than an enum
            "state": (StepState.DONE if error is None else StepState.FAILED).value,
            "output": output,
            "error": None if error is None else json.dumps(error),
            "until": until,
            "attempt": len(self.failures(key)) + 1,
            "started_at": started_at or now,
            "ended_at": now,
        }
        mark, state = self._fenced(self._record, params)
        step = Recorded(
            key=key,
            kind=kind,
            state=params["state"],
            output=output,
            error=params["error"],
            until=until,
            mark=mark,
            lease=self.claim.lease,
        )
        return step, state

    def record_failure(self, key: str, error: dict[str, Any], next_at: datetime | None) -> None:
        """Record a failed attempt. Raises `LeaseLost`."""
        (n,) = self._write(
            _RECORD_FAILURE,
            {
                "key": key,
                "generation": self.claim.generation,
                "error": json.dumps(error),
                "now": clock.now(),
                "next_at": next_at,
                "known": len(self.failures(key)),
            },
            find=_FIND_FAILURE,
        )
        self._failures.setdefault(key, []).append(Failure(n=n, next_at=next_at))
        failpoints.reach("attempt_recorded", key)

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
        closed = {wait.id for wait in pending if not wait.outcome and closes(wait.key)}

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

    def warn(self, about: str, message: str) -> None:
        """Note, once, that something goes otherwise than the author of the flow may think."""
        self._persistently(lambda again: notes.warn({(self.claim.run_id, about): message}))

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
        began, failure = child.created_at, child.failure
        output = child.result if failure is None else None
        return self.record(key, StepKind.INVOKE, output=output, error=failure, started_at=began)

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
        failure = next((child.failure for child in ends if child.failure is not None), None)
        if failure is not None:
            return self.record(key, StepKind.MAP, error={**failure, "step": key})
        output = f"[{', '.join(child.result or 'null' for child in ends)}]"
        if size_of(output) > self._limits.MAX_RESULT_BYTES:
            raise UnserialisableResult(
                f"the results of {key!r} have {size_of(output):,} bytes together, the limit is "
                f"{self._limits.MAX_RESULT_BYTES:,} ({conf.shown('MAX_RESULT_BYTES')}); let the runs "
                "store what they make, and return references to it"
            )
        return self.record(key, StepKind.MAP, output=output)

    def _register(self, wait: Waiting) -> Waiting:
        """Commit the wait, and before it the signature that makes routers look for it."""
        self._persistently(lambda again: signatures.write([(wait.event_name, wait.paths)]))
        failpoints.reach("signature_written", wait.key)
        self._write(
            _REGISTER,
            {
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
                "now": clock.now(),
            },
            find=_FIND_WAIT,
        )
        failpoints.reach("wait_registered", wait.key)
        return wait

    def _write(self, statement: str, params: dict[str, Any], *, find: str) -> sql.Row:
        """One fenced statement, repeated if there was no answer; ``find`` reads what it has written."""

        def attempt(again: bool) -> sql.Row:
            try:
                return self._fenced(statement, params)
            except LeaseLost:
                rows = self._execute(find, params) if again else []
                if not rows:
                    raise
                return rows[0]

        return self._persistently(attempt)

    def _fenced(self, statement: str, params: dict[str, Any]) -> sql.Row:
        """One fenced statement. Raises `LeaseLost` if it changes nothing."""
        rows = self._execute(statement, params)
        if not rows:
            raise LeaseLost(f"run {self.claim.run_id} has another lease now")
        return rows[0]

    def _execute(self, statement: str, params: dict[str, Any]) -> list[sql.Row]:
        fence = {"run": self.claim.run_id, "lease": self.claim.lease}
        wrapper = self._wrapper if self._is_own_thread else None  # an atomic step of a branch
        return sql.execute(statement, {**params, **fence}, prepare=True, wrapper=wrapper)

    def _persistently(self, ask: Callable[[bool], T]) -> T:
        """What the database answers, be it late; without an answer while the lease holds, `LeaseLost`.

        A handler must not take a lost connection for its own business: it would be a failed attempt.
        """
        with self._answering():
            return until_answered(ask, seconds=self._seconds_left)

    def _seconds_left(self) -> float:
        return leases.left(self.claim.run_id, self.claim.lease)

    @property
    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """End the slice where the database gives no answer: the handler must not take it for its own."""
        try:
            yield
        except NO_ANSWER as error:
            raise self._stop(LeaseLost(f"no answer from the database: {error}")) from error
        except (LeaseLost, CancelAsked) as end:
            raise self._stop(end) from end.__cause__

    # -- the end of the slice --------------------------------------------------------------

    def suspend(self, until: datetime) -> NoReturn:
        """End the branch; the run goes on at ``until``, or when it is woken before."""
        raise Suspend(until)

    def look_for_nudges(self) -> int:
        """How often the run was woken while this slice executes it; asked once a second at most.

        What has woken it is committed, and found by those who look now: it is noted as seen.
        """
        if time.monotonic() - self._looked_at >= LOOK_AGAIN:
            self._looked_at = time.monotonic()
            rows = self._persistently(lambda again: self._execute(_SEE_NUDGE, {}))
            self.nudges += bool(rows)
        return self.nudges

    def check(self) -> None:
        """Once the slice has stopped, every tool stops again: `finally:` blocks do no harm."""
        if self.stopped is not None:
            raise self.stopped

    def _stop(self, signal: BaseException) -> BaseException:
        self.stopped = signal
        return signal

    def check_room(self, key: str, output: str | None = None) -> None:
        """Raise `LimitExceeded` if this run has no room for one more step of this size.

        There is always room to undo.
        """
        if self.undoes:
            return
        limits = self._limits
        if len(self._steps) >= limits.MAX_STEPS:
            raise LimitExceeded(
                f"step {key!r} would be number {len(self._steps) + 1:,} of this run, the limit is "
                f"{limits.MAX_STEPS:,} ({conf.shown('MAX_STEPS')}); move part of the work to a flow "
                "of its own, or raise the limit"
            )
        if self._size + size_of(output) > limits.MAX_RUN_BYTES:
            raise LimitExceeded(
                f"with step {key!r} the results of this run exceed {limits.MAX_RUN_BYTES:,} bytes "
                f"({conf.shown('MAX_RUN_BYTES')}); store large results elsewhere and return "
                "references to them"
            )


def _is_between(key: str) -> bool:
    return key.startswith("after:")
