"""Records steps and attempts: one statement, one commit, and once, also where there was no answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from durable_flows import signals
from durable_flows.engine import failpoints, observed, sql
from durable_flows.engine.fence import MINE
from durable_flows.engine.history import STEP_COLUMNS, Claim, Failure, History, Recorded, size_of
from durable_flows.engine.keeping import Values
from durable_flows.engine.persist import NO_ANSWER
from durable_flows.engine.replaying import Replaying
from durable_flows.errors import CancelAsked, LeaseLost
from durable_flows.rules import clock
from durable_flows.rules.states import DueState, StepKind, StepState

logger = logging.getLogger(__name__)

_RECORD = (
    MINE + "INSERT INTO durable_flows_step (run_id, key, seq, kind, state, output, error, until, "
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
    MINE + "INSERT INTO durable_flows_attempt "
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


class Recording(Replaying):
    """Writes what has come of steps, after what is recorded."""

    def __init__(
        self,
        claim: Claim,
        history: History,
        values: Values,
        told_to_stop: Callable[[], bool],
        is_strict: bool,
    ) -> None:
        super().__init__(claim, history, values, told_to_stop, is_strict)
        self._record = _RECORD.format(mark=sql.counter("routed"))

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
        if signals.step_finished.receivers:
            observed.step(self.claim, step, len(self.failures(step.key)) + 1)
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
