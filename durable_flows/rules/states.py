"""The states of runs and of due rows, and the moves that are legal."""

from __future__ import annotations

from enum import StrEnum

from durable_flows.errors import IllegalTransition


class RunState(StrEnum):
    """What the run row knows; whether a started run executes or waits is in its due row."""

    QUEUED = "queued"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DueState(StrEnum):
    """What the scheduler knows of an unfinished run."""

    QUEUED = "queued"  # to be claimed as soon as its wake time has come
    RUNNING = "running"  # claimed; its wake time is the end of the lease
    WAITING = "waiting"  # suspended until a timer or an event
    PARKED = "parked"  # no wake time: somebody else must let it go on
    CANCELLING = "cancelling"  # claimed, and asked to stop at the next step boundary


class StepState(StrEnum):
    """How a recorded step came out."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # a sleep that was cut short


class StepKind(StrEnum):
    """Which tool recorded it."""

    RUN = "run"
    SEND = "send"
    SLEEP = "sleep"
    WAIT = "wait"
    INVOKE = "invoke"
    MAP = "map"
    PATCH = "patch"  # that the run has come to a place with the code that is there now
    RACE = "race"  # which branch has decided a group
    INTENT = "intent"  # that a step of a saga is going to be tried
    INPUT = "input"  # what a step is given otherwise than the code says, as the run is done again
    UNDO = "undo"  # that the saga is being undone, and why


class WaitKind(StrEnum):
    """What a wait is for."""

    STEP = "step"  # an event resumes the run
    CANCEL = "cancel"  # an event cancels the run
    CHILD = "child"  # the end of an invoked run resumes it
    ITEM = "item"  # the end of one of many invoked runs; that of the last of them resumes it


class WaitOutcome(StrEnum):
    """What ended a wait."""

    EVENT = "event"
    TIMEOUT = "timeout"
    CLOSED = "closed"  # its run ended first
    COMPLETED = "completed"  # so did the awaited run
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # the run that it asked for was not admitted
    GONE = "gone"  # the awaited run ended long ago, and was purged
    CUT = "cut"  # short: somebody asked for it to be skipped


class BulkKind(StrEnum):
    """What a bulk action asks for, for each run that fits."""

    CANCEL = "cancel"
    REPLAY = "replay"


class BulkState(StrEnum):
    """How a bulk action stands."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    """What became of an event that a flow listens to, where it is not a run of its own."""

    SKIP = "skip"
    JOIN = "join"


#: Actions: what a flow does to the world. A wait looks back to before the last of them.
ACTIONS = frozenset({StepKind.RUN, StepKind.SEND, StepKind.INVOKE, StepKind.MAP})

#: States of a due row whose lease is alive: what a slice writes is conditional on one of these.
HELD = (DueState.RUNNING, DueState.CANCELLING)

TERMINAL = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})

_LEGAL: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.STARTED}) | TERMINAL,
    RunState.STARTED: TERMINAL,
    RunState.COMPLETED: frozenset(),
    RunState.FAILED: frozenset({RunState.QUEUED}),  # retry: the only way out of an end
    RunState.CANCELLED: frozenset(),
}


def check_move(state: str, target: RunState) -> None:
    """Raise `IllegalTransition` unless a run may go from ``state`` to ``target``."""
    if target not in _LEGAL[RunState(state)]:
        raise IllegalTransition(state, target)
