"""The one clock: every moment that the engine compares or stores comes from here.

It reads the process's ``time.time()``, corrected against the database's clock (`correct`, called by
the engine), and runs through an offset and a speed that only tests and demonstrations move. All
processes of one demonstration inherit `VARIABLE`, so that they agree.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

VARIABLE = "DURABLE_FLOWS_CLOCK"


@dataclass(slots=True)
class _Clock:
    anchor: float = 0.0  # the real second at which clock and real time agree, but for the offset
    speed: float = 1.0  # clock seconds a real second
    offset: float = 0.0  # clock seconds by which `advance` has moved it
    correction: float = 0.0  # real seconds by which the database's clock is ahead of this process's

    def at(self, real: float) -> float:
        return self.anchor + (real + self.correction - self.anchor) * self.speed + self.offset


def _inherited() -> _Clock:
    anchor, _, speed = os.environ.get(VARIABLE, "").partition(":")
    return _Clock(anchor=float(anchor), speed=float(speed)) if speed else _Clock()


_clock = _inherited()


def now() -> datetime:
    """The current moment: aware, in UTC."""
    return datetime.fromtimestamp(_clock.at(time.time()), UTC)


def real(seconds: float) -> timedelta:
    """The clock time that passes in so many real seconds: for leases, heartbeats and ticks."""
    return timedelta(seconds=seconds * _clock.speed)


def real_seconds_until(moment: datetime) -> float:
    """The real seconds until ``moment``; negative if it has passed."""
    return (moment - now()).total_seconds() / _clock.speed


def advance(by: timedelta) -> None:
    """Move this process's clock forward."""
    _clock.offset += by.total_seconds()


def run_at(speed: float) -> None:
    """From now on let ``speed`` clock seconds pass in a real second, here and in child processes.

    Raises:
        ValueError: ``speed`` is not positive.
    """
    if not speed > 0:
        raise ValueError(f"a clock's speed must be positive, not {speed}")
    _clock.anchor, _clock.speed = time.time(), speed
    os.environ[VARIABLE] = f"{_clock.anchor!r}:{speed!r}"


def correct(database: datetime, *, asked: float, answered: float) -> None:
    """Note what the database's clock read between two readings of ``time.time()``.

    Within the time that the question took, nobody can tell who is right: then nothing is corrected.
    """
    ahead = database.timestamp() - (asked + answered) / 2
    _clock.correction = ahead if abs(ahead) > (answered - asked) / 2 else 0.0


def reset() -> None:
    """Put the clock back to real time: the end of a test."""
    os.environ.pop(VARIABLE, None)
    _clock.anchor, _clock.speed, _clock.offset, _clock.correction = 0.0, 1.0, 0.0, 0.0
