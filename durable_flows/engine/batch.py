"""The runs of one claim: those that have not begun, and the ends that are not written yet.

Ends of fast runs are written together. So that a slow run harms no neighbour, each batch is looked after
beside it (see `watch`): ends that are getting old are written, and what cannot begin soon is given back.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence

from durable_flows.engine import failpoints, finish, leases, native, ring, sql
from durable_flows.engine.finish import Ending
from durable_flows.engine.history import Claim
from durable_flows.engine.persist import until_answered
from durable_flows.models import Due
from durable_flows.rules import clock

FLUSH = 0.02  # real seconds that an end may wait for its neighbours' while runs are fast
SLOW = 0.5  # real seconds after which a run is slow: its neighbours are looked after

_live: set[Batch] = set()
_lock = native.lock()


class Batch:
    """Runs claimed together, executed one after the other.

    Each leaves the list under a lock before it begins or is given back: never both.
    """

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._left = deque(claims)
        self._ends: list[Ending] = []
        self._lock = native.lock()
        self._moved_at = self._claimed_at = time.monotonic()
        with _lock:
            _live.add(self)

    def next(self) -> Claim | None:
        """The next run to execute."""
        with self._lock:
            self._moved_at = time.monotonic()
            return self._left.popleft() if self._left else None

    @property
    def slow_for(self) -> float:
        """Real seconds since its last run began."""
        return time.monotonic() - self._moved_at

    @property
    def age(self) -> float:
        """Real seconds since the claim."""
        return time.monotonic() - self._claimed_at

    def end(self, ending: Ending) -> None:
        """Write this end soon, together with others."""
        with self._lock:
            self._ends.append(ending)
        if self.slow_for > FLUSH:
            self.write_ends()

    def write_ends(self) -> None:
        """Write the ends that wait to be written."""
        with self._lock:
            ends, self._ends = self._ends, []
        try:
            for ending in ends:
                failpoints.reach("before_end", str(ending.run_id))
            _end_patiently(ends)
            if ends:
                failpoints.reach("ends_written")
        finally:  # a run that could not be ended is taken over when its lease ends
            for ending in ends:
                leases.release(ending.run_id, ending.lease)

    def give_back(self) -> None:
        """Let somebody else execute what has not begun here: due at once, and no claim counted."""
        with self._lock:
            left, self._left = list(self._left), deque()
        if not left:
            return
        for claimed in left:
            leases.release(claimed.run_id, claimed.lease)
        failpoints.reach("before_give_back")
        source, columns = sql.table(
            Due,
            "t",
            {"run_id": [c.run_id for c in left], "lease": [c.lease for c in left]},
        )
        sql.execute(
            "WITH given AS MATERIALIZED (SELECT d.run_id FROM durable_flows_due d "
            f"JOIN {source} ON t.run_id = d.run_id AND t.lease = d.lease "
            "ORDER BY d.run_id FOR UPDATE OF d) "
            "UPDATE durable_flows_due SET claims = claims - 1, wake_at = %(now)s::timestamptz, "
            "state = CASE WHEN state = 'running' THEN 'queued' ELSE state END "
            "WHERE run_id IN (SELECT run_id FROM given)",
            {"now": clock.now(), **columns},
        )
        failpoints.reach("given_back")
        ring.drain(left[0].queue)

    def close(self) -> None:
        """The batch is over, or has been broken off."""
        with _lock:
            _live.discard(self)
        try:
            self.give_back()
        finally:
            self.write_ends()

    @property
    def is_held_up(self) -> bool:
        """Whether its run is slow while others wait to begin, or to have their ends written."""
        with self._lock:
            return self.slow_for > SLOW and bool(self._ends or self._left)

    def look_after(self) -> None:
        """Called beside the run that executes: if that is slow, nobody is to wait for it."""
        if self.slow_for > SLOW:
            self.write_ends()
            self.give_back()


def _end_patiently(ends: Sequence[Ending]) -> None:
    """Again if the database gives no answer: ends are fenced, writing them twice is safe."""
    until_answered(
        lambda again: finish.end(ends),
        seconds=lambda: max((leases.left(e.run_id, e.lease) for e in ends), default=0.0),
    )


def look_after_all() -> None:
    """Look after every batch that this process executes."""
    for batch in _all():
        batch.look_after()


def any_held_up() -> bool:
    """Whether some batch of this process has to be looked after."""
    return any(batch.is_held_up for batch in _all())


def slowest() -> float:
    """Real seconds for which some run of this process has been executing."""
    return max((batch.slow_for for batch in _all()), default=0.0)


def _all() -> list[Batch]:
    with _lock:
        return list(_live)


def _forget() -> None:
    global _lock
    _lock = native.lock()
    _live.clear()


os.register_at_fork(after_in_child=_forget)
