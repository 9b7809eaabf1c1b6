"""Rehearses unfinished runs: replays them with the code at hand, and leaves no trace of it.

Steps are answered from their records, no step's function is called, and a line ends where it comes to a
step that is not recorded. The code between steps is executed, in transactions that are rolled back.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from django.db import connections, transaction

from durable_flows.engine import fits, play, ring, sql, versions
from durable_flows.engine.claim import COLUMNS, EVENT, read_claim
from durable_flows.engine.history import Claim, History, Recorded, histories
from durable_flows.engine.journal import Journal
from durable_flows.engine.keeping import Values
from durable_flows.engine.sagas import UNDOING
from durable_flows.errors import Diverged, StepError, Suspend, Unreadable
from durable_flows.flows import Flow
from durable_flows.registry import registry
from durable_flows.rules import clock, durations
from durable_flows.rules.states import StepKind

AT_ONCE = 100  # runs read by one statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A run that this code cannot go on with as it began.

    Attributes:
        run_id: the run's id.
        flow: its flow's id.
        version: of its flow; 0 if that has none, None if none is decided.
        error: name of the error.
        message: what does not fit.
    """

    run_id: str
    flow: str
    version: int | None
    error: str
    message: str


def count(flow_id: str | None) -> int:
    """How many runs are unfinished, of this flow or of all."""
    rows = sql.execute(
        "SELECT count(*) FROM durable_flows_due d JOIN durable_flows_run r ON r.id = d.run_id "
        "WHERE %(flow)s::text IS NULL OR r.flow = %(flow)s",
        {"flow": flow_id},
    )
    return int(rows[0][0])


def rehearse_all(flow_id: str | None, most: int | None) -> Iterator[Finding | None]:
    """Rehearse unfinished runs, the oldest first: what was found, or None, of each.

    Args:
        flow_id: of which flow; None: of all.
        most: how many.
    """
    last, left = uuid.UUID(int=0), most
    while left is None or left > 0:
        claims = _unfinished(flow_id, last, AT_ONCE if left is None else min(left, AT_ONCE))
        if not claims:
            return
        past = histories(claims)
        for claimed in claims:
            yield _rehearse(claimed, past.get(claimed.run_id, History()))
        last, left = claims[-1].run_id, None if left is None else left - len(claims)


def _unfinished(flow_id: str | None, after: uuid.UUID, most: int) -> list[Claim]:
    rows = sql.execute(
        "SELECT d.run_id, d.lease, d.state, d.due_since, d.claims, d.deadline_at, "
        f"{COLUMNS} FROM durable_flows_due d JOIN durable_flows_run r ON r.id = d.run_id {EVENT} "
        "WHERE d.run_id > %(after)s AND r.id > %(after)s "  # or it reads all before, to merge
        "AND (%(flow)s::text IS NULL OR r.flow = %(flow)s) "
        "ORDER BY d.run_id LIMIT %(most)s",
        {"after": after, "flow": flow_id, "most": most},
    )
    now = clock.now()
    return [read_claim("", row, now) for row in rows]


def _rehearse(claimed: Claim, history: History) -> Finding | None:
    if claimed.cancelling or UNDOING in history.steps:
        return None  # it comes to no step of its handler any more
    flow = registry.find(claimed.flow_id, claimed.version)
    if flow is None:
        here = {(claimed.flow_id, version) for version in registry.versions(claimed.flow_id)}
        gone = versions.gone(claimed, here)
        if gone is not None:
            return _finding(claimed, gone)
        return _found(claimed, "UnknownFlow", f"this code has no flow {claimed.flow_id!r}")
    with _nothing_stays(), ring.silence():
        return _play(flow, claimed, history)


def _play(flow: Flow, claimed: Claim, history: History) -> Finding | None:
    journal = Rehearsal(claimed, history, Values.of(claimed, flow))
    try:
        play.rehearse(flow, claimed, journal)
    except (
        Suspend,
        StepError,
    ):  # as far as it has come; or it fails, of a failure that is recorded
        pass
    except (Diverged, Unreadable) as signal:
        return _finding(claimed, signal.error)
    except (Exception, SystemExit) as error:
        if not isinstance(journal.stopped, Diverged):
            return _finding(claimed, error)
    if isinstance(journal.stopped, Diverged):
        return _finding(claimed, journal.stopped.error)
    left = journal.replay.left() if journal.replay is not None else ""
    return _finding(claimed, fits.not_met(left)) if left else None


class Rehearsal(Journal):
    """A journal that answers from what is recorded, and into which nothing is written."""

    def __init__(self, claim: Claim, history: History, values: Values) -> None:
        super().__init__(
            claim,
            history,
            values,
            store=_never,
            look_back=_never,
            last_look=_never,
            as_settled=_never,
            end_overdue=_never,
            told_to_stop=lambda: False,
            invoke=_never,
            look_at=_never,
            map=_never,
            ends_of=_never,
            is_strict=True,
        )

    def begin(self, key: str, kind: StepKind | None = None) -> Recorded | None:
        """What is recorded of a step; where nothing is, the line ends."""
        found = super().begin(key, kind)
        if found is None and kind != StepKind.RACE:  # whose branches are rehearsed
            self._rest()
        return found

    def patch(self, key: str, is_past: bool) -> bool:
        """Whether the run takes the new way; that is not recorded."""
        return self.find(key) is not None or not is_past

    def record(self, key: str, kind: StepKind, **fields: Any) -> Recorded:
        """The line ends."""
        self._rest()

    def decide(self, *args: Any) -> Recorded:
        """Which branch comes first is not known: the line ends."""
        self._rest()

    def warn(self, about: str, message: str) -> None:
        """Nothing is noted."""

    def look_for_nudges(self) -> int:
        """Nobody wakes a rehearsal."""
        return 0

    def _hold_off(self, key: str) -> None:
        """The next attempt is not made, whenever it may be."""

    def _rest(self) -> NoReturn:
        self.suspend(clock.now() + durations.LONGEST)


@contextmanager
def _nothing_stays() -> Iterator[None]:
    """Whatever is written inside, on any of the project's databases, is rolled back at the end."""
    with ExitStack() as stack:
        for alias in connections:
            stack.enter_context(_rolled_back(alias))
        yield


@contextmanager
def _rolled_back(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        try:
            yield
        finally:
            transaction.set_rollback(True, using=alias)


def _never(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("a rehearsal begins nothing")


def _finding(claimed: Claim, error: BaseException) -> Finding:
    return _found(claimed, type(error).__name__, str(error))


def _found(claimed: Claim, error: str, message: str) -> Finding:
    return Finding(
        run_id=str(claimed.run_id),
        flow=claimed.flow_id,
        version=claimed.version,
        error=error,
        message=message,
    )
