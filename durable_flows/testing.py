"""The test kit: play flows through without a broker, without a worker and without waiting.

    from durable_flows.testing import advance, drain, run_of, send

    def test_a_reminder_goes_out_after_a_day(db):
        event_id = send("cart/product.added", {"cart_id": "c1"}, user={"email": "ada@example.com"})
        drain()
        advance("24h")
        assert run_of(event_id).state == "completed"

Inside a test's transaction everything works but what needs two of them at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from django.db.models import QuerySet

from durable_flows import conf
from durable_flows.engine import failpoints, ingest, insert, keeping, leases, ring, stored, subjects
from durable_flows.engine import purge as retention
from durable_flows.engine import tick as housekeeping
from durable_flows.engine.subjects import Subject
from durable_flows.errors import UnknownRun
from durable_flows.middleware import About
from durable_flows.models import BulkAction, Due, Event, Run
from durable_flows.rules import clock, durations, events
from durable_flows.rules.event_types import EventType, type_of
from durable_flows.rules.states import HELD

__all__ = [
    "Crash",
    "RunView",
    "StepView",
    "advance",
    "crash_after",
    "drain",
    "purge",
    "reset",
    "run_of",
    "runs_of",
    "send",
    "sent",
]

D = TypeVar("D")

MOST_ROUNDS = 10_000


class Crash(failpoints.Killed):
    """The worker has "died" here: nothing of what follows is executed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """A recorded step.

    Attributes:
        key: its key: the id, or ``id#2`` for its second repetition.
        kind: run, send, sleep, wait, invoke, race, patch, intent, input or undo.
        state: done, failed, or skipped: a sleep that was cut short.
        output: its result, decoded; for a wait the event as a dict, or None.
        error: how it failed, as a dict, or None.
    """

    key: str
    kind: str
    state: str
    output: Any
    error: Any  # a dict or None; Any, so that tests may read error["message"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it stands.

    Attributes:
        id: its id.
        flow: its flow's id.
        version: of its flow; 0 if that has none, None until some process knows it.
        state: queued, started, completed, failed or cancelled.
        activity: queued, running, waiting, parked or cancelling; empty once it has ended.
        result: what the handler returned, decoded.
        error: how it failed, as a dict, or None.
        reason: why it failed or was cancelled.
        subject: the row that it is about, or None.
        origin: the id of the run that it does again, or "".
        parent: the id of the run that invoked it, or "".
        children: the ids of the runs that it has invoked, the oldest first.
        wake_at: when it goes on by itself, or None.
        steps: what is recorded, in order.
        attempts: the failed attempts: key → number.
        warnings: what went otherwise than its author may think: step or option → message.
    """

    id: str
    flow: str
    version: int | None
    state: str
    activity: str
    result: Any
    error: Any  # a dict or None; Any, so that tests may read error["message"]
    reason: str
    subject: Any  # an instance of any model
    origin: str
    parent: str
    children: tuple[str, ...]
    wake_at: datetime | None
    steps: tuple[StepView, ...]
    attempts: dict[str, int]
    warnings: dict[str, str]

    @property
    def step_keys(self) -> list[str]:
        """The keys of the recorded steps, in order."""
        return [step.key for step in self.steps]

    def step(self, key: str) -> StepView:
        """The recorded step of this key.

        Raises:
            KeyError: none is recorded.
        """
        for step in self.steps:
            if step.key == key:
                return step
        raise KeyError(f"run {self.id} has recorded {self.step_keys}, not {key!r}")


@overload
def send(name: EventType[D], data: D | Mapping[str, Any] | None = None, **fields: Any) -> str: ...
@overload
def send(
    name: str | events.Event[Any], data: dict[str, Any] | None = None, **fields: Any
) -> str: ...
def send(name: Any, data: Any = None, **fields: Any) -> str:
    """Send one event, as `durable_flows.send`, and return its public id alone."""
    public_id: str = ingest.send(name, data, **fields)[0]
    return public_id


def drain() -> int:
    """Route all events and execute all runs that are due now, until nothing is left to do.

    Returns:
        How many events were routed and slices executed.
    """
    count, _ = _drain()
    return count


def _drain() -> tuple[int, datetime | None]:
    """As `drain`, and the moment up to which everything is done; None if the worker "died"."""
    count = 0
    for _ in range(MOST_ROUNDS):
        begun = clock.now()
        try:
            with ring.silence():
                done = housekeeping.turn_by_hand()
        except Crash:
            _let_leases_lapse()
            return count, None
        if not done:
            return count, begun
        count += done
    raise AssertionError(
        f"after {MOST_ROUNDS:,} rounds there is still something due: does a flow send its own trigger?"
    )


def purge() -> dict[str, int]:
    """Remove what has been kept for long enough, as the ticks do; `drain` and `advance` never do.

    Returns:
        How many rows of each kind are gone: ``"completed"``, ``"failed"`` and ``"cancelled"`` runs, and
        ``"events"``.
    """
    with ring.silence():
        return dict(retention.purge_all(rests=False))


def advance(by: str | float | timedelta, *, play: bool = True) -> None:
    """Move the clock forward, stopping wherever a timer falls due.

    Args:
        by: ``"24h"``, a timedelta or seconds. The time that steps take comes on top of it, so that
            a run of two sleeps of a day has ended after two days, not a moment later.
        play: whether to drain at each stop and at the end; otherwise the clock jumps, and nothing
            is executed, as if all workers were away.
    """
    left = durations.parse(by, what="advance()")
    if play:
        done = _play()  # what starts now starts its timers now
        while (moment := _next_timer(done)) is not None and moment - clock.now() <= left:
            left -= _move_to(moment)
            done = _play()
    _move_to(clock.now() + left)
    if play:
        _play()


def _play() -> datetime:
    """Drain; if a worker "dies", let another go on. Returns the moment up to which all is done."""
    done = None
    while done is None:
        _, done = _drain()
    return done


def reset() -> None:
    """Put the clock back to real time: at the end of a test that moved it."""
    clock.reset()


@overload
def sent(name: EventType[D]) -> list[events.Event[D]]: ...  # type: ignore[overload-overlap]
@overload
def sent(name: str) -> list[events.Event]: ...
def sent(name: str) -> Sequence[events.Event[Any]]:
    """The events of this name that anybody has sent, in order of arrival, as handlers get them.

    Args:
        name: their name; of a type their data are its model.
    """
    rows = Event.objects.using(conf.settings().DATABASE).filter(name=name).order_by("arrival")
    rows = rows.exclude(
        routed=insert.NEVER, withdrawn=False
    )  # edited, for a run that is done again
    found = [keeping.seen(stored.event(row)) for row in rows.values_list(*stored.COLUMNS)]
    return [event.decoded(type_of(name)) for event in found]


def run_of(event_id: str, flow: str | None = None) -> RunView:
    """The run that an event started.

    Args:
        event_id: as returned by `send`; also the id of a run itself, as returned by ``flow.start``.
            Of a run that was done again only its own id leads to one run.
        flow: the flow's id, where the event started several.

    Raises:
        UnknownRun: there is no such run, or more than one.
    """
    found = runs_of(event_id, flow)
    if len(found) != 1:
        flows = ", ".join(sorted(run.flow for run in found)) or "none"
        raise UnknownRun(
            f"event {event_id} started {len(found)} runs ({flows}), not one; "
            "has drain() been called? name the flow if there are several, or give the id of a run"
        )
    return found[0]


def runs_of(event_id: str, flow: str | None = None) -> list[RunView]:
    """The runs that an event started, by flow id; those that were done again, the oldest first."""
    try:
        uuid.UUID(str(event_id))
    except ValueError:
        raise UnknownRun(f"{event_id!r} is the id of no event and of no run") from None
    using = conf.settings().DATABASE
    runs = Run.objects.using(using).filter(event_id=event_id) | Run.objects.using(using).filter(
        pk=event_id
    )
    if flow is not None:
        runs = runs.filter(flow=flow)
    return [_view(run) for run in runs.order_by("flow", "created_at", "pk")]


@dataclass(slots=True)
class CrashView:
    """How often the worker has "died" so far."""

    count: int = 0

    @property
    def happened(self) -> bool:
        """Whether the place was reached at all."""
        return self.count > 0


@contextmanager
def crash_after(step: str, *, recorded: bool = True, times: int = 1) -> Iterator[CrashView]:
    """Let the worker "die" right after a step: its run is taken over at the next `drain`.

    Args:
        step: the step's key.
        recorded: after its result was committed; otherwise after its function ran and before that.
        times: how often.
    """
    place = "step_recorded" if recorded else "step_ran"
    with crash_at(place, step, times=times) as view:
        yield view


@contextmanager
def crash_at(place: str, detail: str | None = None, *, times: int = 1) -> Iterator[CrashView]:
    """Let the worker "die" at a named place of the engine."""
    view = CrashView()

    def trap(reached: str, about: str) -> None:
        if view.count < times and reached == place and detail in (None, about):
            view.count += 1
            raise Crash(f"{place} {about}")

    before, failpoints.trap = failpoints.trap, trap
    try:
        yield view
    finally:
        failpoints.trap = before


def _let_leases_lapse() -> None:
    """A dead worker renews nothing: what nobody holds is due again."""
    due = Due.objects.using(conf.settings().DATABASE)
    due.filter(state__in=HELD).exclude(pk__in=leases.held()).update(wake_at=clock.now())


def _next_timer(after: datetime) -> datetime | None:
    """The first moment after this one at which something is due; it may have come meanwhile."""
    using = conf.settings().DATABASE
    run = Due.objects.using(using).filter(wake_at__gt=after).order_by("wake_at").first()
    late = Due.objects.using(using).filter(deadline_at__gt=after).order_by("deadline_at").first()
    event = (
        Event.objects.using(using)
        .filter(routed_at__isnull=True, deliver_at__gt=after)
        .order_by("deliver_at")
        .first()
    )
    bulk = BulkAction.objects.using(using).filter(state="running", next_at__gt=after)
    moments = (
        bulk.order_by("next_at").values_list("next_at", flat=True).first(),
        run.wake_at if run else None,
        late.deadline_at if late else None,
        event.deliver_at if event else None,
    )
    return min((moment for moment in moments if moment is not None), default=None)


def _move_to(moment: datetime) -> timedelta:
    """Move the clock, and return by how much."""
    by = max(timedelta(0), moment - clock.now())
    leases.move(by)
    clock.advance(by)
    return by


def _view(run: Run) -> RunView:
    due = Due.objects.using(run._state.db).filter(pk=run.pk).first()
    attempts: dict[str, int] = {}
    for key in run.attempts.values_list("key", flat=True):
        attempts[key] = attempts.get(key, 0) + 1
    return RunView(
        id=str(run.pk),
        flow=run.flow,
        version=run.version,
        state=run.state,
        activity=due.state if due else "",
        result=keeping.shown(run.result, About("result", run.flow)),
        error=keeping.shown(run.error, About("error", run.flow)),
        reason=run.reason,
        subject=subjects.fetch(Subject.read(run.subject_type_id, run.subject_id)),
        origin=str(run.origin or ""),
        parent=str(run.parent_id or ""),
        children=_ids(run.children.order_by("created_at", "pk")),
        wake_at=due.wake_at if due else None,
        steps=tuple(
            StepView(
                key=step.key,
                kind=step.kind,
                state=step.state,
                output=keeping.shown(step.output, About("step", run.flow, step.key)),
                error=keeping.shown(step.error, About("error", run.flow, step.key)),
            )
            for step in run.steps.order_by("seq")
        ),
        attempts=attempts,
        warnings=dict(run.warnings.order_by("about").values_list("about", "message")),
    )


def _ids(runs: QuerySet[Run]) -> tuple[str, ...]:
    return tuple(str(run_id) for run_id in runs.values_list("pk", flat=True))
