"""Every error of durable_flows, and the signals that end a slice.

The docstring of an error is its default message; the facts a program may need are attributes.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any


class DurableFlowsError(Exception):
    """Something went wrong in durable_flows."""

    def __init__(self, message: str | None = None, /) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


# -- bad input -------------------------------------------------------------------------------


class InvalidInput(DurableFlowsError, ValueError):
    """What the caller said cannot be understood; saying it again will not help."""


class InvalidPayload(InvalidInput):
    """A value cannot be stored as JSON.

    Attributes:
        pointer: JSON pointer (RFC 6901) to the offending value; ``""`` is the whole value.
        problem: what is wrong with it and what to do.
    """

    def __init__(self, problem: str, /, *, pointer: str = "") -> None:
        self.pointer = pointer
        self.problem = problem
        super().__init__(f"{pointer or 'the value'}: {problem}")


class InvalidEvent(InvalidPayload):
    """An event was refused; nothing was stored.

    Attributes:
        pointer: JSON pointer into the event, e.g. ``/data/items/3``; in a list of events it
            starts with the event's index, e.g. ``/17/data/items/3``.
    """


class InvalidDuration(InvalidInput):
    """A duration cannot be read."""


class InvalidKey(InvalidInput):
    """A match path or key cannot be read."""


class InvalidOption(InvalidInput):
    """An option of a flow is out of its range or contradicts another."""


def _short(expression: object) -> str:
    """An expression for people, cut to a length that a message can bear."""
    text = repr(expression)
    return text if len(text) <= 300 else f"{text[:299]}…"


class InvalidExpression(InvalidOption):
    """A condition is no expression, or needs the extra that evaluates it.

    Attributes:
        expression: the condition as it was written.
        problem: what is wrong with it and what to do.
    """

    def __init__(self, what: str, expression: object, problem: str, /) -> None:
        self.expression = expression
        self.problem = problem
        super().__init__(f"{what}: {_short(expression)}: {problem}")


class InvalidHandler(DurableFlowsError, TypeError):
    """A flow's handler has a signature that cannot be served."""


class InvalidSetting(InvalidInput):
    """A value in the DURABLE_FLOWS setting cannot be used."""


class ExpressionFailed(DurableFlowsError):
    """A condition came to nothing on this event: neither true nor false.

    Attributes:
        expression: the condition, or the part of it that was evaluated.
        problem: what went wrong.
    """

    def __init__(self, expression: str, problem: str, /) -> None:
        self.expression = expression
        self.problem = problem
        super().__init__(f"{_short(expression)}: {problem}")


class DuplicateFlow(DurableFlowsError):
    """Two flows share one id and one version."""


class DuplicateEventType(DurableFlowsError):
    """The events of one name have two types."""


class UnknownApproval(DurableFlowsError, LookupError):
    """There is no approval of this id."""


class ApprovalClosed(DurableFlowsError):
    """An approval has been decided, or its time is over."""


class NotAllowed(DurableFlowsError, PermissionError):
    """This user may not do that."""


class InvalidDecision(InvalidInput):
    """The form of an approval is not filled in as it should be.

    Attributes:
        errors: field → what is wrong with it.
    """

    def __init__(self, message: str, errors: dict[str, list[str]], /) -> None:
        self.errors = errors
        super().__init__(message)


class UnknownRun(DurableFlowsError, LookupError):
    """There is no run of this id."""


class IllegalTransition(DurableFlowsError):
    """A run cannot go from its state to the one asked for.

    Attributes:
        state: the state it is in.
        target: the state that was asked for.
    """

    def __init__(self, state: str, target: str, /, hint: str = "") -> None:
        self.state = state
        self.target = target
        super().__init__(f"a run that is {state} cannot become {target}{hint and f': {hint}'}")


class UnknownEvent(DurableFlowsError, LookupError):
    """There is no event of this id."""


class UnknownStep(DurableFlowsError, LookupError):
    """The run has come to no step of this key.

    Attributes:
        step: the key that was asked for.
    """

    def __init__(self, step: str, message: str, /) -> None:
        self.step = step
        super().__init__(message)


class UnknownBulkAction(DurableFlowsError, LookupError):
    """There is no bulk action of this id."""


class BulkActionOver(DurableFlowsError):
    """A bulk action cannot be cancelled any more: it is done, or has been cancelled."""


class RunHasEnded(DurableFlowsError):
    """What was asked for can only be done to a run that has not ended.

    Attributes:
        state: how it has ended.
    """

    def __init__(self, run_id: object, state: str, /) -> None:
        self.state = state
        super().__init__(f"run {run_id} has ended, {state}: there is nothing to skip any more")


class NotWaiting(DurableFlowsError):
    """The run neither sleeps nor waits at this step."""


class AlreadyDelivered(DurableFlowsError):
    """An event cannot be withdrawn any more: its time had come."""


class WrongDatabase(DurableFlowsError):
    """The caller's transaction is on another database than the app's tables."""


# -- what handlers raise and catch -----------------------------------------------------------


class NonRetriableError(DurableFlowsError):
    """The step or the run fails at once, without another attempt."""


class RetryAfterError(DurableFlowsError):
    """The next attempt is made after this delay. It still consumes an attempt.

    Args:
        delay: a duration (``"30s"``, seconds, timedelta), kept within 1 s and 24 h.

    Attributes:
        delay: the delay as it was given.
    """

    def __init__(self, delay: str | float | timedelta, message: str | None = None, /) -> None:
        self.delay = delay
        super().__init__(message or f"to be tried again after {delay}")


class StepError(DurableFlowsError):
    """A step failed for good; raised where the step was called, and catchable there.

    Attributes:
        step: the step's key.
        name: class name of the error that the step's function raised.
        message: its message.
        stack: its traceback as text.
        code: its ``code`` attribute where it had one, else ``""``.
    """

    def __init__(self, step: str, name: str, message: str, stack: str = "", code: str = "") -> None:
        self.step = step
        self.name = name
        self.message = message
        self.stack = stack
        self.code = code
        super().__init__(f"step {step!r} failed: {name}: {message}")

    def as_dict(self) -> dict[str, Any]:
        """The error as it is recorded: JSON-ready."""
        return {
            "name": self.name,
            "message": self.message,
            "stack": self.stack,
            "code": self.code,
            "step": self.step,
        }


class InvokeError(StepError):
    """An invoked run did not complete; raised where it was invoked, and catchable there.

    Attributes:
        flow: id of the invoked flow.
        run_id: id of the invoked run.
        state: ``"failed"``, ``"cancelled"``, or ``"skipped"``: it was not started; or ``"gone"``: one
            of this key ended long ago, and was purged.
        reason: why; of a failed run the class of its error and its message.
        stack: the traceback of the error of which it failed, as text.
        code: that error's ``code`` attribute where it had one, else ``""``.
    """

    def __init__(
        self,
        step: str,
        *,
        flow: str,
        run_id: str,
        state: str,
        reason: str = "",
        stack: str = "",
        code: str = "",
    ) -> None:
        self.flow = flow
        self.run_id = run_id
        self.state = state
        self.reason = reason
        super().__init__(step, type(self).__name__, self._told(), stack, code)

    def _told(self) -> str:
        words = {"skipped": "was not started", "cancelled": "was cancelled", "gone": "is gone"}
        did = words.get(self.state, "failed")
        return f"run {self.run_id} of flow {self.flow!r} {did}{self.reason and ': '}{self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """The error as it is recorded: JSON-ready."""
        return {
            **super().as_dict(),
            "flow": self.flow,
            "run": self.run_id,
            "state": self.state,
            "reason": self.reason,
        }


class InvokeTimeout(InvokeError):
    """An invoked run did not end in time; it goes on.

    Attributes:
        state: ``"timeout"``.
    """

    def _told(self) -> str:
        return f"run {self.run_id} of flow {self.flow!r} did not end in time; it goes on"


class NestedStep(NonRetriableError):
    """A step was called inside another step's function."""


class StepInTransaction(NonRetriableError):
    """A step was called inside an open atomic() block of the handler: its commit would not be one."""


class StepInThread(NonRetriableError):
    """A step was called in a thread that the handler has started itself; use step.parallel()."""


class SuspendSwallowed(NonRetriableError):
    """The handler caught the signal that suspends it; catch Exception, never BaseException."""


class UnserialisableResult(NonRetriableError):
    """What a step or a handler returned cannot be stored as JSON, or is too large."""


class UnreadableEvent(NonRetriableError):
    """The data of a stored event do not fit the event's type.

    Attributes:
        event: the event's name.
        public_id: the id under which it is stored.
        pointer: JSON pointer to what does not fit, e.g. ``/data/items/3``.
        problem: why.
    """

    def __init__(self, event: str, public_id: str, problem: str, /, *, pointer: str) -> None:
        self.event = event
        self.public_id = public_id
        self.pointer = pointer
        self.problem = problem
        super().__init__(
            f"event {event!r} ({public_id}), {pointer}: {problem}; mend the type or its upcast and retry "
            "the run, or do it again with other data"
        )


class BranchGone(NonRetriableError):
    """The branch that has decided a race is no more in the code."""


class DeterminismError(NonRetriableError):
    """The code does not fit what is recorded of the run."""


class VersionGone(NonRetriableError):
    """The version of its flow that has started a run is no more in the code; the run is parked."""


class MissingMatch(NonRetriableError):
    """The run's own event has no value at the path that a wait is to match."""


class LimitExceeded(NonRetriableError):
    """A run went over one of its limits."""


class StorageUnavailable(DurableFlowsError):
    """The storage that holds large results does not answer; the step, or the code, is tried again."""


class DecryptionFailed(DurableFlowsError):
    """A value was encrypted with a key that is not there; it is stored as it was."""


class ResultGone(NonRetriableError):
    """The file that holds a large result is not there any more."""


class RowGone(NonRetriableError):
    """A row that a result names is not there any more."""


class SignalTaken(NonRetriableError):
    """Another step waits for a signal of this name."""


class UndoFailed(NonRetriableError):
    """A run failed, and a step of its saga could not be undone."""


class PoisonRun(NonRetriableError):
    """The run's worker died each time that it executed this run."""


# -- control flow of a slice: never an Exception, so that `except Exception` lets them through ----


class Suspend(BaseException):
    """The slice, or a branch of it, ends here; the run goes on when it is woken.

    Attributes:
        until: when it goes on by itself.
    """

    def __init__(self, until: datetime, /) -> None:
        self.until = until
        super().__init__(f"until {until}")


class LeaseLost(BaseException):
    """Another worker has taken the run over; this slice stops and writes nothing more."""


class Diverged(BaseException):
    """The code does not fit what is recorded; the slice ends here and the run is parked.

    Attributes:
        error: what does not fit.
    """

    def __init__(self, error: DeterminismError, /) -> None:
        self.error = error
        super().__init__(str(error))


class Unreadable(BaseException):
    """What is recorded cannot be read; the slice ends here, and is an attempt that failed.

    Attributes:
        error: why.
    """

    def __init__(self, error: Exception, /) -> None:
        self.error = error
        super().__init__(str(error))


class HandBack(BaseException):
    """The worker is told to stop; the slice ends here and another worker goes on at once."""


class CancelAsked(BaseException):
    """The run was asked to stop; the slice ends here and the run ends cancelled."""
