"""What a flow may be told about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from durable_flows.errors import InvalidEvent, InvalidOption
from durable_flows.rules import durations, endings, expressions, keys, names
from durable_flows.rules.equalities import Condition
from durable_flows.rules.event_types import EventType, type_of

MOST_TRIGGERS = 10
MOST_CANCELS = 5
SHORTEST_TIMEOUT = timedelta(milliseconds=1)
WILDCARD = "*"


@dataclass(frozen=True, slots=True)
class On:
    """An event that starts a flow, and what it must be like.

    Attributes:
        event: the event's name. A ``*`` at its end, after ``/`` or ``.``, stands for any further
            characters: ``"app/user.*"``.
        if_: an expression over ``event``, e.g. ``"event.data.total > 100"``. Without it, every event
            of the name starts the flow.

    Raises:
        InvalidOption: the event is no event name, or has a wildcard elsewhere. A wrong expression is
            refused by `flow`, which can say whose it is.
    """

    event: str
    if_: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_trigger_name(self.event, "On")

    def __str__(self) -> str:
        return self.event if self.if_ is None else f"{self.event} if {self.if_}"

    @property
    def prefix(self) -> str | None:
        """What the names begin with that it listens to; None: it listens to one name."""
        return self.event[:-1] if self.event.endswith(WILDCARD) else None

    @property
    def type(self) -> EventType[Any] | None:
        """The type that it listens to; None: it listens to a name."""
        return type_of(self.event)

    def listens_to(self, event_name: str) -> bool:
        """Whether its name or prefix is that of the event."""
        if self.prefix is None:
            return self.event == event_name
        return event_name.startswith(self.prefix)

    def condition(self, what: str = "On") -> Condition:
        """What its expression asks for. Raises InvalidExpression."""
        return _condition(self.if_, f"{what}, if_=", expressions.TRIGGER)


@dataclass(frozen=True, slots=True)
class CancelOn:
    """An event that cancels the unfinished runs it matches, if it is newer than their trigger.

    Attributes:
        event: the event's name.
        match: a path, e.g. ``"data.cart_id"``, at which the run's own event and the new one must
            hold the same value.
        timeout: how long after the run's creation the rule holds; at most 366 days, the default.
        if_: an expression over ``event``, the run's own event, and ``async``, the new one, e.g.
            ``"async.data.cart_id == event.data.cart_id"``. With ``match`` both must hold; without
            either, every unfinished run of the flow is cancelled.

    Raises:
        InvalidOption: the event is no event name, or has a wildcard. A wrong expression is refused
            by `flow`, which can say whose it is.
        InvalidKey: the path cannot be read.
        InvalidDuration: the timeout cannot be read.
    """

    event: str
    match: str | None = None
    timeout: str | float | timedelta = durations.LONGEST
    if_: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_awaited_name(self.event, "CancelOn")
        if self.match is not None:
            keys.parse_path(self.match, what="CancelOn.match")
        set_ = object.__setattr__
        set_(self, "timeout", longest_wait(self.timeout, what="CancelOn.timeout"))

    def condition(self, what: str = "CancelOn") -> Condition:
        """What path and expression ask for. Raises InvalidExpression."""
        return awaited(self.match, self.if_, what)


@dataclass(frozen=True, slots=True)
class Awaited:
    """An event that `Step.wait_for_events` waits for.

    Attributes:
        event: the event's name.
        match: a path, e.g. ``"data.cart_id"``, at which the run's own event and the awaited one must
            hold the same value.
        if_: an expression over ``event``, the run's own event, and ``async``, the awaited one.

    Raises:
        InvalidOption: the event is no event name, or has a wildcard.
        InvalidKey, InvalidExpression: the path or the expression cannot be read.
    """

    event: str
    match: str | None = None
    if_: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_awaited_name(self.event, "Awaited")
        awaited(self.match, self.if_, f"Awaited({self.event!r})")


def awaited(match: str | None, if_: str | None, what: str) -> Condition:
    """What an awaited event must be like: the path matches, and the expression holds.

    Raises:
        InvalidKey: the path cannot be read.
        InvalidExpression: the expression cannot, or needs an extra that is not installed.
    """
    asked = _condition(if_, f"{what}, if_=", expressions.WAIT)
    if match is None:
        return asked
    return asked.matched(".".join(keys.parse_path(match, what=f"{what}, match=")))


def _condition(if_: str | None, what: str, names: tuple[str, ...]) -> Condition:
    return Condition() if if_ is None else expressions.condition(if_, what=what, names=names)


def check_trigger_name(name: object, where: str) -> str:
    """The name, if it is an event's, perhaps with a wildcard at its end.

    Raises:
        InvalidOption: it is not; the message says where it stood.
    """
    checked = check_event_name(name, where)
    stem = checked.removesuffix(WILDCARD)
    if WILDCARD in stem or (stem != checked and not stem.endswith(("/", "."))):
        raise InvalidOption(
            f"{where}: {checked!r} has a wildcard where none can stand; it stands at the end, after "
            "/ or . as in 'app/user.*'"
        )
    _refuse_unheard(checked, where)
    return checked


def check_awaited_name(name: object, where: str) -> str:
    """The name, if it is one event's.

    Raises:
        InvalidOption: it is not; the message says where it stood.
    """
    checked = check_event_name(name, where)
    if WILDCARD in checked:
        raise InvalidOption(
            f"{where}: {checked!r} has a wildcard; only triggers take one, as in on='app/user.*': "
            "name one event"
        )
    _refuse_unheard(checked, where)
    return checked


def _refuse_unheard(name: str, where: str) -> None:
    """Of the engine's own events those about ends alone are for others; its commands are for nobody."""
    if not name.lower().startswith(names.RESERVED):
        return
    stem = name.removesuffix(WILDCARD)
    heard = (told.startswith(stem) if stem != name else told == name for told in endings.NAMES)
    if not any(heard):
        raise InvalidOption(
            f"{where}: {name!r} is no event that can be heard: of those that begin with "
            f"{names.RESERVED!r} there are {', '.join(endings.NAMES)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a run may take; one that takes longer is cancelled.

    Attributes:
        start: how long after its creation it must have begun to execute. Default: any time.
        finish: how long after it began it must have ended. Default: any time.

    Raises:
        InvalidDuration: one of them cannot be read, is zero or longer than 366 days.
        InvalidOption: neither is given.
    """

    start: str | float | timedelta | None = None
    finish: str | float | timedelta | None = None

    def __post_init__(self) -> None:
        if self.start is None and self.finish is None:
            raise InvalidOption("Timeouts() sets no limit: give it start=, finish= or both")
        for name in ("start", "finish"):
            value = getattr(self, name)
            if value is not None:
                limit = durations.parse(
                    value,
                    what=f"Timeouts.{name}",
                    minimum=SHORTEST_TIMEOUT,
                    maximum=durations.LONGEST,
                )
                object.__setattr__(self, name, limit)


def check_event_name(name: object, where: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidOption: it is not; the message says where it stood.
    """
    try:
        return names.check(name)
    except InvalidEvent as error:
        raise InvalidOption(f"{where}: {error.problem}") from error


def longest_wait(value: str | float | timedelta, *, what: str) -> timedelta:
    """A duration of at most 366 days."""
    return durations.parse(value, what=what, maximum=durations.LONGEST)
