"""The hold of a slice on its run: whatever it writes is conditional on its lease.

A write that changes nothing means that the run has been taken over: the slice stops (`LeaseLost`) and
writes nothing more. One that gets no answer is sent again, as long as the lease holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from durable_flows.engine import leases, sql
from durable_flows.engine.history import Claim
from durable_flows.engine.persist import NO_ANSWER, until_answered
from durable_flows.errors import CancelAsked, LeaseLost, Suspend

T = TypeVar("T")

LOOK = 1.0  # real seconds between two looks at whether the run was woken

#: What a slice writes is conditional on this, as the row ``mine``. FOR SHARE, so that whoever takes
#: the run over waits for the write and then reads it, or comes first and makes it write nothing.
MINE = (
    "WITH mine AS MATERIALIZED (SELECT run_id, lease, state FROM durable_flows_due "
    "WHERE run_id = %(run)s AND lease = %(lease)s AND state IN ('running', 'cancelling') FOR SHARE) "
)
_SEE_NUDGE = (
    "UPDATE durable_flows_due SET nudged = false WHERE run_id = %(run)s AND lease = %(lease)s "
    "AND state = 'running' AND nudged RETURNING run_id"
)


class Fence:
    """Writes of one slice.

    Args:
        claim: the run and the lease under which it is written.

    Attributes:
        nudges: how often the run was seen to be woken.
        stopped: the signal that has ended the slice.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.nudges = 0
        self.stopped: BaseException | None = None
        self._looked_at = time.monotonic()
        self._wrapper = sql.connection()
        self._thread = threading.get_ident()
        self._depth = sql.depth(self._wrapper)

    def in_transaction(self) -> bool:
        """Whether the calling thread has opened a transaction in which a write would be no commit."""
        if self._is_own_thread:
            return sql.depth(self._wrapper) != self._depth
        return sql.depth(sql.connection()) != sql.NO_DEPTH

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
        if time.monotonic() - self._looked_at >= LOOK:
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
