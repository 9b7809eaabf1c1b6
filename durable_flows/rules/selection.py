"""Which runs somebody means, and how fast they are to be dealt with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from typing import Any

from durable_flows.errors import InvalidOption
from durable_flows.rules import durations, expressions
from durable_flows.rules.states import RunState

FASTEST = 10_000.0  # runs a second
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|m|min|h|d)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Runs of a flow, in some states, of some time, for some reason, with some event: all of these hold.

    Attributes:
        flow: id of their flow; empty: of any.
        states: any of them.
        created_after, created_before: ISO text, in UTC; empty: at any time.
        reason_contains: text within their reason.
        if_: an expression over ``event``, the event that started them.
    """

    flow: str = ""
    states: tuple[str, ...] = ()
    created_after: str = ""
    created_before: str = ""
    reason_contains: str = ""
    if_: str = ""

    @classmethod
    def of(
        cls,
        what: str,
        *,
        flow: str,
        states: Iterable[str],
        created_after: datetime | date | str | None,
        created_before: datetime | date | str | None,
        reason_contains: Any,
        if_: str | None,
        tz: tzinfo,
    ) -> Selection:
        """What a caller has said.

        Raises:
            InvalidOption, InvalidDuration, InvalidExpression: it cannot be understood.
        """
        if not isinstance(reason_contains, str | None) or "\0" in (reason_contains or ""):
            raise InvalidOption(f"{what}: reason_contains= is text, not {reason_contains!r}")
        if if_ is not None:
            expressions.condition(if_, what=f"{what}, if_=", names=expressions.TRIGGER)
        return cls(
            flow=flow,
            states=_states(what, states),
            created_after=_moment(created_after, f"{what}, created_after=", tz),
            created_before=_moment(created_before, f"{what}, created_before=", tz),
            reason_contains=reason_contains or "",
            if_=if_ or "",
        )

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Selection:
        """The inverse of `dataclasses.asdict`, also through JSON."""
        return cls(**{**document, "states": tuple(document["states"])})

    @property
    def after(self) -> datetime | None:
        """Created at that moment or later."""
        return datetime.fromisoformat(self.created_after) if self.created_after else None

    @property
    def before(self) -> datetime | None:
        """Created before that moment."""
        return datetime.fromisoformat(self.created_before) if self.created_before else None


def _states(what: str, states: Iterable[str]) -> tuple[str, ...]:
    named = (states,) if isinstance(states, str) else tuple(states)
    known = {state.value for state in RunState}
    for state in named:
        if state not in known:
            raise InvalidOption(
                f"{what}: state= is any of {', '.join(sorted(known))}, not {state!r}"
            )
    return tuple(str(state) for state in named)


def _moment(value: datetime | date | str | None, what: str, tz: tzinfo) -> str:
    if value is None:
        return ""
    return durations.instant(value, what=what, tz=tz).astimezone(UTC).isoformat()


def per_second(rate: Any, *, what: str) -> float:
    """How many a second, of text like ``"10/s"``, ``"100/m"``, ``"5/h"``, ``"1000/d"``.

    Raises:
        InvalidOption: it cannot be read, or is out of its range.
    """
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    number = float(found[1]) / _SECONDS[found[2]] if found else 0.0
    if not 0 < number <= FASTEST:
        raise InvalidOption(
            f'{what} is a number for a time, as in "10/s", "100/m", "5/h" or "1000/d", at most '
            f"{FASTEST:,.0f} a second, not {rate!r}"
        )
    return number
