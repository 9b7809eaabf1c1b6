"""When a run is cancelled because it takes too long to begin, or to end."""

from __future__ import annotations

from datetime import datetime, timedelta

from durable_flows.rules.options import Timeouts

NOT_BEGUN = "timeout: start"
NOT_ENDED = "timeout: finish"


def to_begin(timeouts: Timeouts | None, created_at: datetime) -> datetime | None:
    """Until when a run that is created now must have begun."""
    return _after(created_at, timeouts.start if timeouts else None)


def to_end(timeouts: Timeouts | None, started_at: datetime | None) -> datetime | None:
    """Until when a run that has begun must have ended."""
    return _after(started_at, timeouts.finish if timeouts else None)


def missed_at_slice(
    timeouts: Timeouts | None, *, deadline: datetime | None, started_at: datetime, now: datetime
) -> str:
    """Which deadline a run had missed when a slice of it was claimed; none: empty.

    Args:
        timeouts: its flow's.
        deadline: the one that was noted: to begin, for its first slice; to end, for later ones.
        started_at: when its first slice was claimed.
        now: the moment of the question.
    """
    if deadline is not None and deadline <= started_at:
        return NOT_BEGUN
    end = to_end(timeouts, started_at)
    return NOT_ENDED if end is not None and end <= now else ""


def missed_at_rest(timeouts: Timeouts | None, *, started_at: datetime | None, now: datetime) -> str:
    """Which deadline a run has missed whose noted one has passed; none: empty.

    None, if it began in time and its slice has not noted yet until when it must end.

    Args:
        timeouts: its flow's, where this process knows any: otherwise what was noted is believed.
        started_at: when its first slice was claimed, if it was.
        now: the moment of the question.
    """
    if started_at is None:
        return NOT_BEGUN
    if timeouts is None:
        return NOT_ENDED
    end = to_end(timeouts, started_at)
    return NOT_ENDED if end is not None and end <= now else ""


def _after(moment: datetime | None, limit: object) -> datetime | None:
    if moment is None or limit is None:
        return None
    assert isinstance(limit, timedelta)  # made one by Timeouts
    return moment + limit
