"""Keys: paths into events, what equals what, and the hashes that tables are probed with."""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, final
from uuid import UUID

from durable_flows.errors import InvalidKey
from durable_flows.rules.envelopes import is_sealed

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
UNKNOWN_FLOW: Final = "flow:"
FIELDS: Final = ("name", "data", "user", "id", "ts", "v", "context")


@final
class _Missing:
    """Equals nothing, not even itself, so that two missing values never match by accident."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""What `read` returns where there is nothing; ask with ``is``."""


def parse_path(path: str, *, what: str = "match") -> tuple[str, ...]:
    """The segments of a dotted path into an event: ``"data.user.id"`` → ``("data", "user", "id")``.

    Args:
        path: starts with a field of the event: name, data, user, id, ts, v or context; ``"event."`` before
            that is dropped.
        what: how the error names the path, e.g. the option it was given as.

    Raises:
        InvalidKey: it has no such first segment, an empty one, or blanks or control characters.
    """
    if not (path and isinstance(path, str)):
        raise InvalidKey(f'{what}: {path!r} is not a path; write one such as "data.cart_id"')
    if " " in path or not path.isprintable():
        raise InvalidKey(
            f"{what}: {path!r} contains blanks or control characters;"
            ' write a path such as "data.cart_id", and expressions as if_='
        )
    segments = tuple(path.removeprefix("event.").split("."))
    if not all(segments):
        raise InvalidKey(
            f'{what}: {path!r} has an empty segment; write names with single dots: "data.cart_id"'
        )
    if segments[0] not in FIELDS:
        raise InvalidKey(
            f"{what}: {path!r} does not start with a field of an event ({', '.join(FIELDS)});"
            f' did you mean "data.{".".join(segments)}"?'
        )
    return segments


def read(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at the path, or `MISSING`; an explicit null is None. Lists are not walked into.

    What is encrypted is missing, too: it equals nothing, not even the same value encrypted again.
    """
    found: Any = document
    for segment in path:
        if not isinstance(found, Mapping):
            return MISSING
        found = found.get(segment, MISSING)
    return MISSING if is_sealed(found) else found


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, as `match_hash` compares them; `MISSING` equals nothing."""
    if one is MISSING or other is MISSING:
        return False
    return _spelled(one) == _spelled(other)


def match_hash(name: str, paths: Sequence[str], values: Sequence[Any]) -> UUID:
    """What a wait and an event share if the event has these values at these paths.

    Two hashes are equal if name, paths and values are, in this order. Numbers are equal by value
    (150 and 150.0; large integers exactly), booleans equal no numbers, null equals null, strings
    are equal by code points, lists and dicts by their contents, whatever the order of keys.

    Raises:
        InvalidKey: a value is `MISSING`, which equals nothing, or no JSON value.
        ValueError: there are not as many values as paths.
    """
    if len(paths) != len(values):
        raise ValueError(f"{len(paths)} paths, but {len(values)} values")
    return _hash(b"match", [name, list(paths), list(values)])


def flow_run_id(flow: str, event_id: UUID, salt: str = "") -> UUID:
    """The id of the run that this event starts of this flow; ``salt`` tells several apart.

    It begins with the event's time (48 bits, milliseconds, as in UUIDv7), so runs sort by it.
    """
    time = event_id.int >> 80 << 80
    return _version_8(time | _hash(b"run", [flow, event_id.hex, salt]).int & (1 << 80) - 1)


def end_event_id(run_id: UUID, generation: int, name: str, ended_at: datetime) -> UUID:
    """The id of the event of this name that tells of this end; it begins with the time, as others do."""
    time = (ended_at - _EPOCH) // timedelta(milliseconds=1) << 80
    unique = _hash(b"end", [run_id.hex, generation, name]).int & (1 << 80) - 1
    return _version_8(time | unique)


def unknown_flow(flow: str, version: int | None) -> str:
    """What is noted on a run that rests since nobody knows its flow, in this version or in any."""
    return f"{UNKNOWN_FLOW}{_hash(b'unknown', [flow, version]).hex}"


def event_key_hash(name: str, key: str) -> UUID:
    """The hash under which a user's own id of an event is kept, unique per event name."""
    return _hash(b"event_key", [name, key])


def wait_id(run_id: UUID, key: str, generation: int = 0) -> UUID:
    """The id of the wait that a run makes at this step key; a retried run's waits are others."""
    return _hash(b"wait", [run_id.hex, key, generation])


def _hash(purpose: bytes, value: Any) -> UUID:
    digest = blake2b(_spelled(value), digest_size=16, person=purpose).digest()
    return _version_8(int.from_bytes(digest, "big"))


def _spelled(value: Any) -> bytes:
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def _version_8(number: int) -> UUID:
    """The number as a UUID of RFC 9562's version for one's own formats: six bits are replaced."""
    number = number & ~(0xF << 76) | 8 << 76
    return UUID(int=number & ~(0b11 << 62) | 0b10 << 62)


def _write(value: Any, parts: list[bytes]) -> None:
    """Append the one spelling that equal values share and no other value has.

    Each type has a letter of its own, and what varies in length is preceded by its length or
    closed by a mark that it cannot contain, so no two values run together into a third.
    """
    if isinstance(value, str):
        # Stored text has no lone surrogates, but a key given by a caller may.
        text = value.encode("utf-8", "surrogatepass")
        parts.append(b"s%d:" % len(text))
        parts.append(text)
    elif value is None:
        parts.append(b"n")
    elif isinstance(value, bool):
        parts.append(b"t" if value else b"f")
    elif isinstance(value, int):
        parts.append(b"i%x;" % value)
    elif isinstance(value, float) and value.is_integer():
        parts.append(b"i%x;" % int(value))
    elif isinstance(value, float) and math.isfinite(value):
        parts.append(b"d" + struct.pack(">d", value))
    elif isinstance(value, (list, tuple)):
        parts.append(b"l%d:" % len(value))
        for item in value:
            _write(item, parts)
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        parts.append(b"o%d:" % len(value))
        for key in sorted(value):
            _write(key, parts)
            _write(value[key], parts)
    else:
        raise InvalidKey(
            f"{reprlib.repr(value)} cannot be compared;"
            " give a JSON value, and no match at all where there is none"
        )
