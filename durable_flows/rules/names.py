"""Names of events, and other text that a sender gives: what it may be."""

from __future__ import annotations

import unicodedata
from typing import Any

from durable_flows.errors import InvalidEvent

#: With this begin the names of the engine's own events.
RESERVED = "flows/"

NAME_LENGTH = 256
ID_LENGTH = 255
V_LENGTH = 64


def check_sent(name: Any, pointer: str) -> str:
    """The name of an event that somebody sends.

    Raises:
        InvalidEvent: it is no event name, or one of the engine's own.
    """
    check(name, pointer)
    if name.lower().startswith(RESERVED):
        raise InvalidEvent(
            f"{name!r} starts with {RESERVED!r}, which is reserved for the engine's own events; "
            "choose another prefix",
            pointer=pointer,
        )
    return str(name)


def check(name: Any, pointer: str = "/name") -> str:
    """The name of an event that somebody listens to or waits for.

    Raises:
        InvalidEvent: it is no event name.
    """
    if not isinstance(name, str):
        raise InvalidEvent(f"an event's name is text, not {type(name).__name__}", pointer=pointer)
    if not 1 <= len(name) <= NAME_LENGTH:
        raise InvalidEvent(
            f"an event's name has 1 to {NAME_LENGTH} characters, this one has {len(name)}",
            pointer=pointer,
        )
    if name != name.strip():
        raise InvalidEvent(f"{name!r} has blanks at its ends; strip them", pointer=pointer)
    _refuse_control_characters(name, pointer)
    return name


def check_text(value: Any, pointer: str, longest: int) -> str:
    """Text that a sender may give; empty for None.

    Raises:
        InvalidEvent: it is none, or too long.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidEvent(f"this is text or None, not {type(value).__name__}", pointer=pointer)
    if not 1 <= len(value) <= longest:
        raise InvalidEvent(
            f"this has 1 to {longest} characters, not {len(value)}; leave it out for none",
            pointer=pointer,
        )
    _refuse_control_characters(value, pointer)
    return value


def _refuse_control_characters(text: str, pointer: str) -> None:
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InvalidEvent(
                f"{text!r} has the control character {character!r}; remove it", pointer=pointer
            )
