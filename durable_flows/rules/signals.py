"""Signals: what is said to the one who waits for a name, and kept until somebody does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from durable_flows.errors import InvalidOption
from durable_flows.rules.events import SIGNALLED, Event

NAME_LENGTH = 200
PATHS = ("data.signal",)  # what the waits for signals compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal, as whoever has waited for it gets it.

    Attributes:
        name: its name.
        data: what was sent along.
        sent_at: when.
        id: the id that `send_signal` returned.
    """

    name: str
    data: dict[str, Any]
    sent_at: datetime
    id: str


def check_name(name: Any, what: str) -> str:
    """The name of a signal. Raises `InvalidOption`.

    Args:
        name: what was given.
        what: the call, for the message.
    """
    if not (isinstance(name, str) and 1 <= len(name) <= NAME_LENGTH and name.isprintable()):
        raise InvalidOption(
            f"{what}: a signal's name is text of 1 to {NAME_LENGTH} printable characters, not {name!r}"
        )
    return name


def carried(
    name: str, data: dict[str, Any], *, sent_at: datetime, until: datetime
) -> dict[str, Any]:
    """What the command that tells of a signal carries."""
    return {
        "signal": name,
        "data": data,
        "sent_at": sent_at.isoformat(),
        "expires_at": until.isoformat(),
    }


def read(said: Mapping[str, Any], id: str) -> Signal:
    """The inverse of `carried`."""
    return Signal(
        name=said["signal"],
        data=said["data"],
        sent_at=datetime.fromisoformat(said["sent_at"]),
        id=id,
    )


def told(found: Signal) -> Event:
    """The inverse of `read`: the command that tells of this signal, which nobody keeps."""
    said = carried(found.name, found.data, sent_at=found.sent_at, until=found.sent_at)
    return Event(SIGNALLED, said, public_id=str(found.id))


def is_expired(event: Event, asked_at: datetime) -> bool:
    """Whether this is a signal that had expired when somebody began to wait."""
    if event.name != SIGNALLED:
        return False
    return asked_at > datetime.fromisoformat(event.data["expires_at"])
