"""When a failed attempt is made again: retry policies, and the delay after each attempt."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, TypeAlias

from durable_flows.errors import InvalidDuration, InvalidOption
from durable_flows.rules import durations
from durable_flows.rules.durations import LONGEST, Duration

MOST_RETRIES: Final = 20

_SOONEST: Final = timedelta(seconds=1)
_LATEST: Final = timedelta(hours=24)

Errors: TypeAlias = tuple[type[BaseException], ...]


def _duration(value: Duration, what: str) -> timedelta:
    try:
        return durations.parse(value, what=what, maximum=LONGEST)
    except InvalidDuration as error:
        raise InvalidOption(str(error)) from error


# The policies write their own __init__: it takes a duration in any form, the attribute is a
# timedelta, and a generated __init__ could declare only one of the two.


@dataclass(frozen=True, init=False)
class Exponential:
    """Delays that grow by a factor, from ``min`` up to ``max``.

    Attributes:
        min: the delay after the first attempt, more than zero.
        max: the longest delay, at least ``min``, at most 366 days.
        factor: each delay over the one before, 1 or more.

    Raises:
        InvalidOption: one of them is out of its range.
    """

    min: timedelta
    max: timedelta
    factor: float = 2.0

    def __init__(self, min: Duration, max: Duration, factor: float = 2.0) -> None:
        shortest, longest = _duration(min, "Exponential: min"), _duration(max, "Exponential: max")
        if not shortest:
            raise InvalidOption("Exponential: min is zero, which never grows; use Fixed(0)")
        if longest < shortest:
            raise InvalidOption(f"Exponential: max {max!r} is less than min {min!r}; swap them")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise InvalidOption(f"Exponential: factor {factor!r} is not a number; use 2.0")
        if not (math.isfinite(factor) and factor >= 1):
            raise InvalidOption(f"Exponential: factor {factor!r} must be 1 or more; use 2.0")
        object.__setattr__(self, "min", shortest)
        object.__setattr__(self, "max", longest)
        object.__setattr__(self, "factor", float(factor))


@dataclass(frozen=True, init=False)
class Fixed:
    """The same delay after every attempt.

    Attributes:
        delay: zero to 366 days.

    Raises:
        InvalidOption: it is out of this range.
    """

    delay: timedelta

    def __init__(self, delay: Duration) -> None:
        object.__setattr__(self, "delay", _duration(delay, "Fixed: delay"))


@dataclass(frozen=True, init=False)
class Delays:
    """One delay after another; the last repeats.

    Attributes:
        delays: at least one, each zero to 366 days.

    Raises:
        InvalidOption: there is none, or one is out of this range.
    """

    delays: tuple[timedelta, ...]

    def __init__(self, delays: Iterable[Duration]) -> None:
        if isinstance(delays, str) or not isinstance(delays, Iterable):
            raise InvalidOption(f'Delays: {delays!r} is not a list; write Delays(["1s", "1m"])')
        lengths = tuple(_duration(delay, f"Delays[{i}]") for i, delay in enumerate(delays))
        if not lengths:
            raise InvalidOption('Delays: the list is empty; write Delays(["1s", "1m"])')
        object.__setattr__(self, "delays", lengths)


Backoff: TypeAlias = Exponential | Fixed | Delays

DEFAULT_BACKOFF: Final = Delays(["15s", "30s", "1m", "2m", "5m", "10m", "20m", "40m", "1h", "2h"])
DEFAULT_JITTER: Final = timedelta(seconds=30)


@dataclass(frozen=True, init=False)
class Retries:
    """How often, when and after which errors a failed attempt is made again.

    Attributes:
        limit: retries after the first attempt, 0 to 20.
        backoff: the delays between attempts.
        jitter: a random time up to this is added to each delay. Default: 30 s with the default
            backoff, none with one that was given.
        on: classes of errors that are tried again; all others fail at once.

    Raises:
        InvalidOption: one of them is out of its range.
    """

    limit: int = 4
    backoff: Backoff = DEFAULT_BACKOFF
    jitter: timedelta = DEFAULT_JITTER
    on: Errors = (Exception,)

    def __init__(
        self,
        limit: int = 4,
        backoff: Backoff | None = None,
        jitter: Duration | None = None,
        on: Errors | type[BaseException] = (Exception,),
    ) -> None:
        if jitter is None:
            jitter = DEFAULT_JITTER if backoff is None else 0
        object.__setattr__(self, "limit", _limit(limit))
        object.__setattr__(self, "backoff", _backoff(backoff))
        object.__setattr__(self, "jitter", _duration(jitter, "Retries: jitter"))
        object.__setattr__(self, "on", _errors(on))

    @classmethod
    def of(cls, value: int | Retries | None, default: Retries) -> Retries:
        """The policy that an option stands for: a number is the default's limit, None is it.

        Raises:
            InvalidOption: it is neither of these nor a policy, or the limit is not 0 to 20.
        """
        if value is None:
            return default
        return value if isinstance(value, Retries) else replace(default, limit=value)


def delay(policy: Retries, attempt: int, *, spread: float) -> timedelta:
    """The time from a failed attempt to the next one.

    Args:
        policy: the backoff and the jitter.
        attempt: the number of the attempt that failed, from 1.
        spread: the random number that jitter takes, 0 ≤ spread < 1.

    Raises:
        ValueError: attempt or spread is out of its range.
    """
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, not {attempt}")
    if not 0 <= spread < 1:
        raise ValueError(f"spread must be at least 0 and less than 1, not {spread}")
    return _pause(policy.backoff, attempt) + policy.jitter * spread


def retry_after(delay: Duration) -> timedelta:
    """The delay that a `RetryAfterError` asks for, kept within 1 s and 24 h.

    Numbers and timedeltas beyond these bounds, negative and infinite ones included, are moved to
    the nearer one: a server's clock must not turn a retry into a failure.

    Raises:
        InvalidDuration: it cannot be read.
    """
    if isinstance(delay, (int, float)) and not isinstance(delay, bool):
        # Before it becomes a timedelta, which cannot hold all numbers; NaN passes and is refused.
        delay = min(max(delay, _SOONEST.total_seconds()), _LATEST.total_seconds())
    if not isinstance(delay, timedelta):
        delay = durations.parse(delay, what="RetryAfterError: delay")
    return min(max(delay, _SOONEST), _LATEST)


def _pause(backoff: Backoff, attempt: int) -> timedelta:
    match backoff:
        case Fixed():
            return backoff.delay
        case Delays():
            return backoff.delays[min(attempt, len(backoff.delays)) - 1]
        case Exponential():
            return _grown(backoff, attempt - 1)


def _grown(backoff: Exponential, times: int) -> timedelta:
    try:
        seconds = backoff.min.total_seconds() * backoff.factor**times
    except OverflowError:
        return backoff.max
    # Compared as numbers: what is beyond max may be beyond what a timedelta holds, too.
    return timedelta(seconds=seconds) if seconds < backoff.max.total_seconds() else backoff.max


def _limit(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InvalidOption(
            f"retries: {limit!r} is not a number; use 0 to {MOST_RETRIES} or Retries(...)"
        )
    if not 0 <= limit <= MOST_RETRIES:
        raise InvalidOption(f"retries: {limit} is out of range; use 0 to {MOST_RETRIES}")
    return limit


def _backoff(backoff: Backoff | None) -> Backoff:
    if backoff is None:
        return DEFAULT_BACKOFF
    if not isinstance(backoff, (Exponential, Fixed, Delays)):
        raise InvalidOption(
            f"Retries: backoff {backoff!r} is not a backoff; use Exponential, Fixed or Delays"
        )
    return backoff


def _errors(on: Any) -> Errors:
    errors = on if isinstance(on, tuple) else (on,)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise InvalidOption(
                f"Retries: on has {error!r}, which is not a class of errors; use (TimeoutError,)"
            )
    if not errors:
        raise InvalidOption("Retries: on is empty; use limit=0 to try nothing again")
    return errors
