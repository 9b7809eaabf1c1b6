"""Lengths and points of time as people write them: ``"1h30m"``, ``90``, ``"2026-03-01"``."""

from __future__ import annotations

import math
import re
import reprlib
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final, TypeAlias

from durable_flows.errors import InvalidDuration

Duration: TypeAlias = str | int | float | timedelta
"""Text with units, a number of seconds, or a timedelta."""

LONGEST: Final = timedelta(days=366)
"""The longest that anything may sleep or wait."""

_FORMS: Final = 'write text with units ("1h30m", "500ms", "7 days"), seconds or a timedelta'
_NAMES: Final = "ms, s, m, h, d and w, or second, minute, hour, day and week"

_UNITS: Final = {
    name: length
    for names, length in (
        ("ms", timedelta(milliseconds=1)),
        ("s sec second seconds", timedelta(seconds=1)),
        ("m min minute minutes", timedelta(minutes=1)),
        ("h hour hours", timedelta(hours=1)),
        ("d day days", timedelta(days=1)),
        ("w week weeks", timedelta(weeks=1)),
    )
    for name in names.split()
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")
_TEXT: Final = re.compile(rf"(?:{_PART.pattern})+")
_BARE: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")

_SHORT: Final = (
    ("d", timedelta(days=1)),
    ("h", timedelta(hours=1)),
    ("m", timedelta(minutes=1)),
    ("s", timedelta(seconds=1)),
    ("ms", timedelta(milliseconds=1)),
)


def parse(
    value: Duration,
    *,
    what: str = "duration",
    minimum: timedelta | None = None,
    maximum: timedelta | None = None,
) -> timedelta:
    """The duration that ``value`` stands for, to the microsecond; never negative.

    Args:
        value: text with units, which add up (``"7 days"``, ``"1h30m"``, ``"1.5 h"``); or a number
            of seconds; or a timedelta. Units are lower case: ms, s, sec, second(s), m, min,
            minute(s), h, hour(s), d, day(s), w, week(s).
        what: how the error names the value, e.g. ``"timeout"``.
        minimum: the shortest duration allowed, itself included.
        maximum: the longest duration allowed, itself included.

    Raises:
        InvalidDuration: it cannot be read, is negative, not finite or outside the bounds. A
            number in text without a unit is refused too: nobody can tell what it counts.
    """
    try:
        length = _length(value, what)
    except OverflowError:
        raise InvalidDuration(
            f"{what}: {_shown(value)} is too long;"
            f" it must be {_exactly(LONGEST if maximum is None else maximum)} or less"
        ) from None
    if length < timedelta(0):
        raise InvalidDuration(f"{what}: {_shown(value)} is negative; it must be zero or more")
    if minimum is not None and length < minimum:
        raise InvalidDuration(
            f"{what}: {_shown(value)} is too short; it must be {_exactly(minimum)} or more"
        )
    if maximum is not None and length > maximum:
        raise InvalidDuration(
            f"{what}: {_shown(value)} is too long; it must be {_exactly(maximum)} or less"
        )
    return length


def instant(value: datetime | date | str, *, what: str, tz: tzinfo) -> datetime:
    """The point in time that ``value`` stands for, as an aware datetime in UTC.

    Args:
        value: a datetime, a date (its first moment), or either as ISO 8601 text.
        what: how the error names the value.
        tz: the zone in which a date or a datetime without a zone is read. A local time that
            clocks skip is read with the offset before the change, one that they repeat is the
            first of the two.

    Raises:
        InvalidDuration: it is none of these, or no such date exists.
    """
    moment = _moment(value, what)
    if moment.utcoffset() is None:
        moment = moment.replace(tzinfo=tz)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidDuration(
            f"{what}: {value} is outside the years 1 to 9999 in UTC; give a date within them"
        ) from None


def humanize(delta: timedelta) -> str:
    """A duration as short text, cut to its two largest units: ``"1d 2h"``, ``"350ms"``, ``"0s"``.

    What is shorter than a millisecond, zero excepted, is ``"<1ms"``.
    """
    if delta < timedelta(0):
        return f"-{humanize(-delta)}"
    if not delta:
        return "0s"
    parts = []
    for name, unit in _SHORT:
        count, delta = divmod(delta, unit)
        parts.append(f"{count}{name}" if count else "")
    while parts and not parts[0]:
        del parts[0]
    return " ".join(filter(None, parts[:2])) or "<1ms"


def _exactly(delta: timedelta) -> str:
    """A bound, told without cutting anything off."""
    text = humanize(delta)
    return text if text[0] != "<" and parse(text) == delta else f"{delta.total_seconds()} s"


def _length(value: Duration, what: str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return _from_text(value, what)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidDuration(
            f"{what}: {_shown(value)} is of type {type(value).__name__}; {_FORMS}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidDuration(f"{what}: {value!r} is not a length of time; {_FORMS}")
    return timedelta(seconds=value)


def _from_text(text: str, what: str) -> timedelta:
    stripped = text.strip()
    if _BARE.fullmatch(stripped):
        number = _shown(stripped)[1:-1]
        raise InvalidDuration(
            f'{what}: {_shown(text)} has no unit; write "{number}s" for seconds'
            f' ("{number}m" for minutes), or the number {number} without quotes'
        )
    if not _TEXT.fullmatch(stripped):
        raise InvalidDuration(f"{what}: {_shown(text)} is not a duration; {_FORMS}")
    total = timedelta(0)
    for number, unit in _PART.findall(stripped):
        if unit not in _UNITS:
            raise InvalidDuration(
                f"{what}: {_shown(text)} has the unknown unit {_shown(unit)}; units are {_NAMES}"
            )
        total += _UNITS[unit] * _number(number)
    return total


def _number(digits: str) -> int | float:
    # Whole numbers stay whole, so that no microsecond is lost; hundreds of digits are no duration.
    return int(digits) if "." not in digits and len(digits) < 20 else float(digits)


def _moment(value: datetime | date | str, what: str) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    if not isinstance(value, str):
        raise InvalidDuration(
            f"{what}: {_shown(value)} is of type {type(value).__name__};"
            " give a datetime, a date or ISO 8601 text"
        )
    try:
        return datetime.fromisoformat(value.strip())
    except ValueError:
        raise InvalidDuration(
            f"{what}: {_shown(value)} is not a date or time;"
            ' write ISO 8601 ("2026-03-01" or "2026-03-01T10:00:00Z")'
        ) from None


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"this {type(value).__name__}"
