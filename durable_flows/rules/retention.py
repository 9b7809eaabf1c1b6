"""What is kept, and for how long: the moments, places and sizes that a purge goes by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

EVER = datetime(1970, 1, 1, tzinfo=UTC)  # nothing is as old: what is kept for ever
NEVER = datetime(2200, 1, 1, tzinfo=UTC)  # nothing is as young: what nobody needs
LONGEST = 36_500  # days: more is for ever
KEYS = timedelta(days=1)  # a sender's own id is taken for as long at least
NO_NUMBER = 2**62  # above all numbers in the order of routing
NOBODY = UUID(int=0)

FRESH = timedelta(
    minutes=10
)  # for which a pass believes what it has found out about who needs what
TARGET = 0.05  # real seconds that a transaction may take
FIRST = 50  # rows of the first one


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """For how many days things are kept; None: for ever."""

    events: float | None
    completed: float | None
    failed: float | None
    cancelled: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What unfinished runs, and routers, may still look at, however old it is.

    Attributes:
        horizon: what was routed after this number.
        received_since: what was received from then on, at last.
        joined_since: runs that others have joined, and that ended from then on.
        unrouted_since: what was routed from then on: something that was sent then still is not.
    """

    horizon: int = NO_NUMBER
    received_since: datetime = NEVER
    joined_since: datetime = NEVER
    unrouted_since: datetime = NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Up to where rows may go.

    Attributes:
        completed, failed, cancelled: runs of this state that ended until then.
        events: events that were routed until then.
        keyed: the same for those with a sender's own id.
        aside: the same for those that were set aside.
        expired: signals that expired until then.
        horizon, received_since, joined_since: see `Needs`.
    """

    completed: datetime
    failed: datetime
    cancelled: datetime
    events: datetime
    keyed: datetime
    aside: datetime
    expired: datetime
    horizon: int
    received_since: datetime
    joined_since: datetime

    @classmethod
    def of(cls, keep: Keep, needs: Needs, now: datetime) -> Bounds:
        """What may go now."""
        events = _before(now, keep.events)
        return cls(
            completed=_before(now, keep.completed),
            failed=_before(now, keep.failed),
            cancelled=_before(now, keep.cancelled),
            events=min(events, needs.unrouted_since),
            keyed=min(events, now - KEYS, needs.unrouted_since),
            aside=min(_before(now, keep.failed), needs.unrouted_since),
            expired=events,
            horizon=needs.horizon,
            received_since=needs.received_since,
            joined_since=needs.joined_since,
        )

    @property
    def runs_end(self) -> UUID:
        """No run with a higher id can have ended long enough ago: ids begin with the time."""
        return first_id(max(self.completed, self.failed, self.cancelled))

    @property
    def events_end(self) -> UUID:
        """The same of events."""
        return first_id(max(self.events, self.aside))


class Stage(StrEnum):
    """What a pass walks through, in this order."""

    RUNS = "runs"
    EVENTS = "events"
    REST = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A walk through all that may go, and how far it has come.

    Attributes:
        at: when its bounds were found.
        keep: the settings that they were found by.
        bounds: what may go.
        stage: what it walks through now.
        place: the last row that it has looked at, in the order of ids.
        events_from: where the walk through the events begins.
    """

    at: datetime
    keep: str
    bounds: Bounds
    stage: Stage
    place: UUID
    events_from: UUID

    def is_fresh(self, keep: Keep, now: datetime) -> bool:
        """Whether its bounds hold: the settings are the same, and it is not long ago."""
        return self.keep == str(keep) and timedelta(0) <= now - self.at <= FRESH


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What passes leave to those after them.

    A pass begins where the one before it has ended: what that has left behind is kept for a reason, or
    was locked. Now and then one begins at the beginning, to see whether the reasons still hold.

    Attributes:
        runs_from: runs before this place have been looked at.
        events_from: the same of events.
        whole_at: when a pass is to begin at the beginning.
        underway: the one that is not done yet.
    """

    runs_from: UUID = NOBODY
    events_from: UUID = NOBODY
    whole_at: datetime = EVER
    underway: Pass | None = None

    def as_text(self) -> str:
        """As it is stored."""
        return json.dumps(_plain(self))

    @classmethod
    def from_text(cls, text: str) -> Notes:
        """The inverse; from nothing, or from what another version has noted, a new beginning."""
        try:
            said = json.loads(text)
            underway = said.pop("underway")
            found: Pass | None = None
            if underway is not None:
                bounds = _read(Bounds, underway.pop("bounds"))
                found = _read(Pass, {**underway, "bounds": bounds})
            notes: Notes = _read(cls, {**said, "underway": found})
            return notes
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()


def first_id(moment: datetime) -> UUID:
    """What the ids of that millisecond begin with: not above any of them."""
    return UUID(int=max(0, (moment - EVER) // timedelta(milliseconds=1)) << 80)


def moment_of(id_: UUID) -> datetime:
    """The time that an id begins with."""
    return EVER + timedelta(milliseconds=min(id_.int >> 80, 10**13))


def next_size(size: int, took: float, most: int) -> int:
    """How many rows the next transaction may have, if this many took so many seconds.

    It grows and shrinks by a factor of 2 at most: one slow moment of the disk says little.
    """
    fitting = size * TARGET / max(took, 0.001)
    return max(1, min(most, round(min(max(fitting, size / 2), size * 2))))


def _before(now: datetime, days: float | None) -> datetime:
    if days is None or days >= LONGEST:
        return EVER
    return now - timedelta(days=days)


# -- as text -----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, Notes | Pass | Bounds):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _read(kind: Any, said: Mapping[str, Any]) -> Any:
    return kind(**{one.name: _of(str(one.type), said[one.name]) for one in fields(kind)})


def _of(kind: str, value: Any) -> Any:
    readers: dict[str, Any] = {"datetime": datetime.fromisoformat, "UUID": UUID, "Stage": Stage}
    return readers[kind](value) if kind in readers else value
