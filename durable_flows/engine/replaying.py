"""What is recorded of a run answers its steps; others may begin, where the code fits, and there is room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from durable_flows import conf
from durable_flows.engine import fits, notes
from durable_flows.engine.arguments import with_named
from durable_flows.engine.fence import Fence, T
from durable_flows.engine.history import Claim, Failure, History, Recorded, size_of
from durable_flows.engine.keeping import Values
from durable_flows.engine.scopes import Scope
from durable_flows.errors import (
    DeterminismError,
    Diverged,
    HandBack,
    LimitExceeded,
    StepError,
    Unreadable,
)
from durable_flows.rules import clock, durations, replays
from durable_flows.rules.events import Event
from durable_flows.rules.states import StepKind, StepState

#: What is no step by itself: it may be met where nothing is to begin.
_BESIDE = (StepKind.RACE, StepKind.PATCH)


class Replaying(Fence):
    """One slice's view of what is recorded.

    Args:
        claim: the run and the lease under which it is written.
        history: what earlier slices recorded.
        values: how results are kept and read.
        told_to_stop: whether this worker is to begin nothing more.
        is_strict: whether code that does not fit what is recorded ends the slice.

    Attributes:
        values: those.
        replay: how far this slice has come along what is recorded; None if that says nothing. A run that
            was retried may rightly go another way from the step on that had failed.
        recalls: the handler is only replayed, to learn how its steps are undone.
        undoes: they are being undone.
    """

    def __init__(
        self,
        claim: Claim,
        history: History,
        values: Values,
        told_to_stop: Callable[[], bool],
        is_strict: bool,
    ) -> None:
        super().__init__(claim)
        self.values = values
        self.recalls = False
        self.undoes = False
        recorded = [*history.steps, *history.waits, *history.children]
        self.replay = replays.Replay(recorded) if recorded and not claim.generation else None
        self._told_to_stop = told_to_stop
        self._is_strict = is_strict
        self._steps = history.steps
        self._failures = history.failures
        self._waits = history.waits
        self._children = history.children
        self._size = history.size
        self._limits = conf.settings()

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
            if kind not in _BESIDE:
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
        if key in self._waits or key in self._children:
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

    def read(self, recorded: Recorded) -> Any:
        """A step's result, as the handler gets it.

        Raises:
            Unreadable: it cannot be had; the slice has stopped.
        """
        return self._at_hand(lambda: self.values.decode(recorded))

    def failure(self, recorded: Recorded) -> StepError:
        """The error of a step that has failed. Raises `Unreadable`."""
        return self._at_hand(lambda: self.values.failure(recorded))

    def is_edited(self, key: str) -> bool:
        """Whether the run is done again with other arguments of this step."""
        return key + replays.INPUT in self._steps

    def opened(self, event: Event) -> Event:
        """A recorded event, as the handler gets it. Raises `Unreadable`."""
        return self._at_hand(lambda: self.values.event(event))

    def _at_hand(self, get: Callable[[], T]) -> T:
        """What is got, be it from elsewhere: a handler must not take a failure of that for its own."""
        try:
            return get()
        except Exception as error:
            raise self._stop(Unreadable(error)) from error

    def given(
        self,
        key: str,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of this step: as the code says, unless the run is done again with others."""
        edited = self._steps.get(key + replays.INPUT)
        if edited is None:
            return args, kwargs
        given = self._at_hand(lambda: self.values.input(edited.value, key))
        if isinstance(given, list):
            return given, kwargs
        return with_named(fn, args, kwargs, given)

    def is_done(self, key: str) -> bool:
        """Whether a step of this key is recorded, and has succeeded."""
        step = self._steps.get(key)
        return step is not None and step.state == StepState.DONE

    @property
    def intents(self) -> list[str]:
        """The keys of the recorded intents of sagas, the oldest first."""
        return [step.key for step in self._steps.values() if step.kind == StepKind.INTENT]

    @property
    def is_in_doubt(self) -> bool:
        """Whether a step was going to be tried, and nobody has recorded what came of it."""
        return any(key.removesuffix(replays.INTENT) not in self._steps for key in self.intents)

    def recall(self) -> None:
        """The handler is replayed once more to learn how its steps are undone: it begins nothing."""
        self.stopped = None
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

    def warn(self, about: str, message: str) -> None:
        """Note, once, that something goes otherwise than the author of the flow may think."""
        self._persistently(lambda again: notes.warn({(self.claim.run_id, about): message}))

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
