"""What a flow may be told about itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from durable_flows.errors import InvalidEvent, InvalidOption
from durable_flows.rules import durations, events, keys

MOST_TRIGGERS = 10
MOST_CANCELS = 5


@dataclass(frozen=True, slots=True)
class CancelOn:
    """An event that cancels the unfinished runs it matches, if it is newer than their trigger.

    Attributes:
        event: the event's name.
        match: a path, e.g. ``"data.cart_id"``, at which the run's own event and the new one must
            hold the same value. Without it, every unfinished run of the flow is cancelled.
        timeout: how long after the run's creation the rule holds; at most 366 days, the default.

    Raises:
        InvalidOption: the event is no event name.
        InvalidKey: the path cannot be read.
        InvalidDuration: the timeout cannot be read.
    """

    event: str
    match: str | None = None
    timeout: str | float | timedelta = durations.LONGEST

    def __post_init__(self) -> None:
        check_event_name(self.event, "CancelOn")
        if self.match is not None:
            keys.parse_path(self.match, what="CancelOn.match")
        set_ = object.__setattr__
        set_(self, "timeout", longest_wait(self.timeout, what="CancelOn.timeout"))


def check_event_name(name: object, where: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidOption: it is not; the message says where it stood.
    """
    try:
        return events.check_name(name)
    except InvalidEvent as error:
        raise InvalidOption(f"{where}: {error.problem}") from error


def longest_wait(value: str | float | timedelta, *, what: str) -> timedelta:
    """A duration of at most 366 days."""
    return durations.parse(value, what=what, maximum=durations.LONGEST)
