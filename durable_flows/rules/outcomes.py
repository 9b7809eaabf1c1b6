"""What follows from a failure: another attempt, or the end."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from durable_flows.errors import (
    InvalidDuration,
    InvalidInput,
    InvokeError,
    InvokeTimeout,
    NonRetriableError,
    RetryAfterError,
    StepError,
)
from durable_flows.rules import backoff, payload

STACK_CHARACTERS = 20_000
MESSAGE_CHARACTERS = 10_000
MOST_CAUSES = 20


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after ``delay``."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt: the step or the run has failed with ``error``."""

    error: BaseException


def after_failure(
    error: BaseException, policy: backoff.Retries, *, failures: int, spread: float
) -> Retry | GiveUp:
    """Decide what follows the failure number ``failures`` (1 for the first).

    A `StepError` that reaches the handler's end is final: its step has had its attempts. So is what
    would fail in the same way each time.
    ``spread`` in [0, 1) is the random number behind the jitter.
    """
    if _is_final(error) or failures > policy.limit:
        return GiveUp(error)
    if isinstance(error, RetryAfterError):
        return _as_asked(error)
    if not isinstance(error, policy.on):
        return GiveUp(error)
    return Retry(backoff.delay(policy, failures, spread=spread))


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would fail as this one did; of a group, whether all would."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_final(one) for one in error.exceptions)
    return isinstance(error, NonRetriableError | StepError | InvalidInput)


def _as_asked(error: RetryAfterError) -> Retry | GiveUp:
    """After the delay that was asked for; bare seconds in text too, as in an HTTP header."""
    delay = error.delay
    if isinstance(delay, str) and delay.strip().isdigit():
        delay = int(delay)
    try:
        return Retry(backoff.retry_after(delay))
    except InvalidDuration as unreadable:
        return GiveUp(unreadable)


def describe(error: BaseException, *, step: str = "") -> dict[str, Any]:
    """An error as it is recorded: JSON-ready, with everything in it cut to a size that can be stored."""
    if isinstance(error, StepError):
        return error.as_dict()
    stack = "".join(traceback.format_exception(error))
    code = getattr(error, "code", "")
    return {
        "name": type(error).__name__,
        "message": _storable(_message(error), MESSAGE_CHARACTERS),
        "stack": _storable(stack, STACK_CHARACTERS),
        "code": _storable(str(code), 255) if isinstance(code, str | int) else "",
        "step": step or _step_behind(error),
    }


def describe_child(
    key: str, *, flow: str, run_id: str, state: str, reason: str, error: str | None
) -> dict[str, Any]:
    """What an invoked run has come to that did not complete, as the parent's step records it.

    Args:
        key: the parent's step.
        flow: the invoked flow's id.
        run_id: the invoked run.
        state: failed, cancelled, skipped or timeout.
        reason: why.
        error: JSON text of the error of which it failed.
    """
    described = payload.loads(error or "{}")
    kind = InvokeTimeout if state == "timeout" else InvokeError
    return kind(
        key,
        flow=flow,
        run_id=run_id,
        state=state,
        reason=reason,
        stack=described.get("stack", ""),
        code=described.get("code", ""),
    ).as_dict()


def recall(failure: Mapping[str, Any]) -> StepError:
    """The error that a recorded failure stands for."""
    if "run" in failure:
        kind = InvokeTimeout if failure["state"] == "timeout" else InvokeError
        return kind(
            failure["step"],
            flow=failure["flow"],
            run_id=failure["run"],
            state=failure["state"],
            reason=failure["reason"],
            stack=failure["stack"],
            code=failure["code"],
        )
    fields = (failure[name] for name in ("step", "name", "message", "stack", "code"))
    return StepError(*fields)


def _step_behind(error: BaseException) -> str:
    """The step whose failure the handler turned into this error, if it did."""
    if isinstance(error, BaseExceptionGroup):
        return next((step for step in map(_step_in, error.exceptions) if step), "")
    behind = error.__cause__ or error.__context__
    for _ in range(MOST_CAUSES):
        if behind is None:
            return ""
        if isinstance(behind, StepError):
            return behind.step
        behind = behind.__cause__ or behind.__context__
    return ""


def _step_in(error: BaseException) -> str:
    return error.step if isinstance(error, StepError) else _step_behind(error)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unspeakable:
        return f"(its message cannot be shown: {type(unspeakable).__name__})"


def _storable(text: str, most: int) -> str:
    """Text without what a database or JSON refuses; too long a text loses its middle, not its end."""
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if len(clean) <= most:
        return clean
    return f"{clean[: most // 4]}\n… {len(clean) - most:,} characters left out …\n{clean[-most * 3 // 4 :]}"
