"""What a slice works on: the claimed run, and what earlier slices of it have left."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from durable_flows.engine import sql, stored
from durable_flows.engine.subjects import Subject
from durable_flows.rules import keys, outcomes, payload
from durable_flows.rules.events import SIGNALLED, Event
from durable_flows.rules.states import TERMINAL, RunState, StepKind, WaitKind, WaitOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run that this process holds: what a slice needs to know of it.

    Attributes:
        version: of its flow; None until it is decided, where the run was admitted by a process that did
            not know the flow.
        unended: claims in a row before this one that did not end: their workers died, or lost it.
        mark: its trigger's number in the order of routing.
        since: that of the run whose first steps it has taken over, if it has.
    """

    run_id: uuid.UUID
    flow_id: str
    version: int | None
    queue: str
    lease: int
    unended: int
    generation: int
    mark: int
    since: int | None
    cancelling: bool
    created_at: datetime
    started_at: datetime
    deadline_at: datetime | None
    event: Event
    event_id: uuid.UUID
    depth: int
    subject: Subject | None

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what its last worker has died of."""
        return self.unended > 0

    @property
    def has_history(self) -> bool:
        """Whether an earlier slice may have left something to replay."""
        return self.lease > 1


class Waiter(Protocol):
    """Whose wait it is: a claimed run, or one of which no more is known."""

    @property
    def run_id(self) -> uuid.UUID:
        """The run's id."""

    @property
    def lease(self) -> int:
        """The lease under which its waits are ended."""

    @property
    def event(self) -> Event:
        """Its own event."""

    @property
    def event_id(self) -> uuid.UUID:
        """That event's id, by which it is stored."""


#: What a SELECT of steps ``s`` must list so that `Recorded.of` can read it.
STEP_COLUMNS = "s.key, s.kind, s.state, s.output, s.error, s.until, s.mark, s.lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A step as it was recorded."""

    key: str
    kind: str
    state: str
    output: str | None
    error: str | None
    until: datetime | None
    mark: int
    lease: int

    @classmethod
    def of(cls, row: Sequence[Any]) -> Recorded:
        """The step behind the values of `STEP_COLUMNS`."""
        key, kind, state, output, error, until, mark, lease = row
        return cls(
            key=key,
            kind=kind,
            state=state,
            output=output,
            error=error,
            until=until and sql.moment(until),
            mark=mark,
            lease=lease,
        )

    @property
    def value(self) -> Any:
        """The result, parsed from exactly the text that every replay parses."""
        return None if self.output is None else payload.loads(self.output)

    @property
    def failure(self) -> dict[str, Any]:
        """The error as it was described."""
        described: dict[str, Any] = payload.loads(self.error or "{}")
        return described


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed attempt of this generation of the run."""

    n: int
    next_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A registered wait: what it asks for, and what ended it."""

    id: uuid.UUID
    key: str
    event_name: str
    paths: tuple[str, ...]
    criteria: str
    expression: str
    match: uuid.UUID
    eligible_from: int
    routed_since: datetime | None
    received_since: datetime | None
    created_at: datetime
    expires_at: datetime
    outcome: str = ""
    event: Event | None = None

    @property
    def is_for_signal(self) -> bool:
        """Whether one step at a time waits for this, and others that come too late must not get it."""
        return self.event_name == SIGNALLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A registered wait for an invoked run, and what has become of that run.

    Attributes:
        outcome: what ended the wait; empty if nothing has.
        state: the run's; empty if it is not there.
        ended_at: when the run ended.
        skipped: why it was not admitted, if it was not.
    """

    id: uuid.UUID
    key: str
    flow_id: str
    run_id: uuid.UUID
    created_at: datetime
    expires_at: datetime
    outcome: str = ""
    state: str = ""
    result: str | None = None
    error: str | None = None
    reason: str = ""
    ended_at: datetime | None = None
    skipped: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether it can be told what came of it: not if the run has been retried since it ended."""
        if self.outcome in TERMINAL:
            return not self.state or self.state in TERMINAL
        return bool(self.outcome)

    @property
    def failure(self) -> dict[str, Any] | None:
        """What a wait that is over is recorded with, unless the run has completed."""
        state, reason = self.state, self.reason
        if self.outcome == WaitOutcome.CUT:
            state, reason = WaitOutcome.TIMEOUT, "the wait was skipped"
        elif self.outcome == WaitOutcome.GONE:
            state, reason = WaitOutcome.GONE, "it has ended, and is no longer kept"
        elif self.outcome not in TERMINAL:
            state, reason = self.outcome, self.skipped or ""
        elif not state:
            state, reason = RunState.FAILED, f"it ended {self.outcome}, and is no longer kept"
        elif state == RunState.COMPLETED:
            return None
        return outcomes.describe_child(
            self.key,
            flow=self.flow_id,
            run_id=str(self.run_id),
            state=state,
            reason=reason,
            error=self.error,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the children of a step have come."""

    total: int
    ended: int

    @property
    def is_over(self) -> bool:
        """Whether all have ended."""
        return self.ended >= self.total


@dataclass(frozen=True, slots=True)
class History:
    """What earlier slices of a run have left."""

    steps: dict[str, Recorded] = field(default_factory=dict)
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    waits: dict[str, Waiting] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all results."""
        return sum(size_of(step.output) for step in self.steps.values())

    @property
    def intents(self) -> list[str]:
        """The keys of the recorded intents of sagas, the oldest first."""
        return [step.key for step in self.steps.values() if step.kind == StepKind.INTENT]

    @property
    def recorded_under(self) -> int:
        """The lease under which the newest step was recorded; 0 if there is none."""
        return max((step.lease for step in self.steps.values()), default=0)


def size_of(output: str | None) -> int:
    """Bytes of a result."""
    if output is None:
        return 0
    return len(output) if output.isascii() else len(output.encode())


def histories(claims: Sequence[Claim]) -> dict[uuid.UUID, History]:
    """What earlier slices of these runs have left, by three statements however many runs there are.

    A fourth tells what has become of the runs that they have invoked.
    """
    found = {claim.run_id: History() for claim in claims}
    if claims:
        generations = {claim.run_id: claim.generation for claim in claims}
        _read_steps(found)
        _read_failures(found, generations)
        _read_waits(found, generations)
    return found


def _read_steps(found: dict[uuid.UUID, History]) -> None:
    for run_id, *row in sql.execute(
        f"SELECT s.run_id, {STEP_COLUMNS} FROM durable_flows_step s "
        f"WHERE {sql.among('s.run_id', 'runs')} ORDER BY s.run_id, s.seq",
        {"runs": list(found)},
    ):
        step = Recorded.of(row)
        found[sql.uid(run_id)].steps[step.key] = step


def _read_failures(found: dict[uuid.UUID, History], generations: dict[uuid.UUID, int]) -> None:
    for run_id, key, n, generation, next_at in sql.execute(
        "SELECT run_id, key, n, generation, next_at FROM durable_flows_attempt "
        f"WHERE {sql.among('run_id', 'runs')} ORDER BY run_id, key, n",
        {"runs": list(found)},
    ):
        run = sql.uid(run_id)
        if generation == generations[run]:
            failure = Failure(n=n, next_at=next_at and sql.moment(next_at))
            found[run].failures.setdefault(key, []).append(failure)


def _read_waits(found: dict[uuid.UUID, History], generations: dict[uuid.UUID, int]) -> None:
    """Waits that no step row has the end of yet; of those for children the ones of this generation."""
    awaited: list[uuid.UUID] = []
    for run_id, kind, outcome, *wait in sql.execute(
        f"SELECT w.run_id, w.kind, w.outcome, {WAIT_COLUMNS}, {stored.columns('e')} "
        "FROM durable_flows_wait w LEFT JOIN durable_flows_event e ON e.id = w.event_id "
        f"WHERE {sql.among('w.run_id', 'runs')} AND w.kind IN ('step', 'child') AND w.outcome <> 'closed' "
        "AND NOT EXISTS (SELECT 1 FROM durable_flows_step s "
        "WHERE s.run_id = w.run_id AND s.key = w.key)",
        {"runs": list(found)},
    ):
        run = sql.uid(run_id)
        one = waiting(outcome, wait)
        if kind != WaitKind.CHILD:
            found[run].waits[one.key] = one
        elif one.id == keys.wait_id(run, one.key, generations[run]):
            awaited.append(one.id)
    for run, child in children(awaited):
        found[run].children[child.key] = child


def children(wait_ids: Sequence[uuid.UUID]) -> list[tuple[uuid.UUID, Child]]:
    """What has become of the runs that these waits are for, each with the run that waits."""
    if not wait_ids:
        return []
    rows = sql.execute(
        "SELECT w.run_id, w.id, w.key, w.event_name, w.match, w.created_at, w.expires_at, w.outcome, "
        "r.state, r.result, r.error, r.reason, r.ended_at, a.reason "
        "FROM durable_flows_wait w LEFT JOIN durable_flows_run r ON r.id = w.match "
        "LEFT JOIN durable_flows_admission a ON a.event_id = w.event_id AND a.flow = w.event_name "
        f"AND a.verdict = 'skip' WHERE {sql.among('w.id', 'waits')}",
        {"waits": list(wait_ids)},
    )
    return [(sql.uid(row[0]), _child(*row[1:])) for row in rows]


def _child(
    wait_id: Any,
    key: str,
    flow_id: str,
    run_id: Any,
    created_at: Any,
    expires_at: Any,
    outcome: str,
    state: str | None,
    result: str | None,
    error: str | None,
    reason: str | None,
    ended_at: Any,
    skipped: str | None,
) -> Child:
    return Child(
        id=sql.uid(wait_id),
        key=key,
        flow_id=flow_id,
        run_id=sql.uid(run_id),
        created_at=sql.moment(created_at),
        expires_at=sql.moment(expires_at),
        outcome=outcome,
        state=state or "",
        result=result,
        error=error,
        reason=reason or "",
        ended_at=ended_at and sql.moment(ended_at),
        skipped=skipped,
    )


#: What a SELECT of waits ``w`` must list so that `waiting` can read it, before what ended them.
WAIT_COLUMNS = (
    "w.id, w.key, w.event_name, w.paths, w.criteria, w.expression, w.match, w.eligible_from, "
    "w.routed_since, w.received_since, w.created_at, w.expires_at"
)


def waiting(outcome: str, row: Sequence[Any]) -> Waiting:
    """The wait behind the values of `WAIT_COLUMNS`, and those of the event that ended it."""
    id_, key, name, paths, criteria, expression, match, *row = row
    eligible_from, routed, received, created_at, expires_at, *event = row
    return Waiting(
        id=sql.uid(id_),
        key=key,
        event_name=name,
        paths=tuple(json.loads(paths)),
        criteria=criteria,
        expression=expression,
        match=sql.uid(match),
        eligible_from=eligible_from,
        routed_since=routed and sql.moment(routed),
        received_since=received and sql.moment(received),
        created_at=sql.moment(created_at),
        expires_at=sql.moment(expires_at),
        outcome=outcome,
        event=None if event[0] is None else stored.event(event),
    )
