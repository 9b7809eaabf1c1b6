"""JSON text in and out: one validator for events, step results, inputs, errors and edits.

Every step passes through `dumps`, so it works in two gears. The quick gear looks at types only,
a container at a time at C speed, and leaves what the encoder and the finished text tell anyway
(NaN, NUL, surrogates) to these. Whatever it cannot vouch for goes to the thorough gear, which looks
at each value, knows where it is, and either says what is wrong or makes a plain copy. There `values`
has its say on what JSON does not have.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, NamedTuple, NoReturn

from durable_flows.errors import InvalidPayload
from durable_flows.rules import values

_LEAST: Final = -(2**63)
_GREATEST: Final = 2**63 - 1

_SIMPLE: Final = frozenset({NoneType, bool, float, str})
_SCALARS: Final = (str, int, float)
_CONTAINERS: Final = frozenset({dict, list, tuple})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a value may be.

    Attributes:
        max_bytes: its JSON text, in bytes of UTF-8.
        max_depth: lists and dicts inside each other; a list of numbers has depth 1.
        max_keys: keys of all its dicts together.
        max_key_length: characters of one key.
        settings: name of one of these → name of the setting behind it, for messages.
    """

    max_bytes: int
    max_depth: int = 64
    max_keys: int = 10_000
    max_key_length: int = 256
    settings: Mapping[str, str] = field(default_factory=dict)

    def shown(self, name: str, unit: str = "") -> str:
        """A limit for people, with its unit and the setting that changes it."""
        limit = f"{getattr(self, name):,}{unit and ' '}{unit}"
        return f"{limit} ({self.settings[name]})" if name in self.settings else limit


def dumps(value: Any, *, limits: Limits, pointer: str = "") -> str:
    """Compact JSON text, of which `loads` makes the same value again; tuples come back as lists.

    The order of keys is kept, and floats are exact. Subclasses of the JSON types are written as
    the plain type: a str or int Enum as its value, a named tuple as a list. Other values are written,
    and come back, as the rules in `values` say: a date as text.

    Args:
        value: None, bool, int, float, str, what `values` has a rule for, and lists, tuples and dicts
            (with str keys) of these.
        limits: how large it may be.
        pointer: put before the JSON pointer of an error, e.g. ``"/data"``.

    Raises:
        InvalidPayload: it is no such value or too large; the pointer leads to what is wrong. For a
            wrong key it leads to the dict, for the size to the whole value.
    """
    try:
        text = _quick(value, limits)
        size = _size(text)
    except (ValueError, RecursionError):
        text = _encoded(_examined(value, limits, pointer), limits, pointer)
        size = _size(text)
    if size > limits.max_bytes:
        raise _too_large(f"{size:,}", limits, pointer)
    return text


def loads(text: str) -> Any:
    """The value that JSON text stands for: dicts in the text's order, floats exact.

    Raises:
        InvalidPayload: it is not JSON (NaN and Infinity are not), or nested too deep to be read.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise InvalidPayload("is JSON nested too deep to be read; flatten it") from None
    except ValueError as error:
        raise InvalidPayload(f"is not JSON: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


# Cycles are found by the limit on depth, before the encoder could fall into one.
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


# -- the quick gear --------------------------------------------------------------------------


def _quick(value: Any, limits: Limits) -> str:
    """The JSON text of a value that is certainly good, surrogates and size excepted.

    Raises:
        ValueError: in doubt, which includes NaN and Infinity.
    """
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if not _is_plain(value, limits):
        raise ValueError("in doubt")
    text = _ENCODER.encode(value)
    # NUL is always written as this escape; a backslash before "u0000" in a string looks alike.
    if "\\u0000" in text:
        raise ValueError("in doubt")
    return text


def _is_plain(value: Any, limits: Limits) -> bool:
    """Whether all types are JSON types, keys' subclasses included, and all but size is in bounds.

    What the encoder refuses by itself may pass.
    """
    kind = type(value)
    if kind not in _CONTAINERS:
        return kind in _SIMPLE or (kind is int and _LEAST <= value <= _GREATEST)
    keys = nodes = 0
    level = [value]
    for _ in range(limits.max_depth):
        deeper = []
        for container in level:
            items = container
            if type(container) is dict:
                keys += len(container)
                if keys > limits.max_keys or not _has_short_keys(container, limits):
                    return False
                items = container.values()
            # An item takes at least a byte, so this also stops lists that hold each other many
            # times over, whose text would have no end.
            nodes += len(items)
            if nodes > limits.max_bytes:
                return False
            for item in items:
                kind = type(item)
                if kind in _SIMPLE:
                    continue
                if kind in _CONTAINERS:
                    deeper.append(item)
                elif kind is not int or not _LEAST <= item <= _GREATEST:
                    return False
        if not deeper:
            return True
        level = deeper
    return False


def _has_short_keys(mapping: dict[Any, Any], limits: Limits) -> bool:
    try:
        together = "".join(mapping)
    except TypeError:
        return False
    # Most dicts have keys that are short even together, which is the cheaper question.
    return len(together) <= limits.max_key_length or (
        max(map(len, mapping)) <= limits.max_key_length
    )


def _size(text: str) -> int:
    """Bytes of UTF-8; UnicodeEncodeError, a ValueError, for a lone surrogate."""
    return len(text) if text.isascii() else len(text.encode())


# -- the thorough gear -----------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a value is: its key or index, and the place of what holds it."""

    token: str | int
    inside: _Place | None

    def refuse(self, problem: str) -> InvalidPayload:
        tokens: list[str] = []
        place: _Place | None = self
        while place is not None and place.inside is not None:
            tokens.append("/" + str(place.token).replace("~", "~0").replace("/", "~1"))
            place = place.inside
        prefix = str(place.token) if place is not None else ""
        return InvalidPayload(problem, pointer=prefix + "".join(reversed(tokens)))


def _examined(value: Any, limits: Limits, pointer: str) -> Any:
    """A copy made of plain dicts and lists, if nothing is wrong with the value.

    Scalars are passed on as they are: the encoder itself writes a subclass as its plain value. What is
    none takes its turn again as what it becomes.
    """
    keys = nodes = 0
    copy: list[Any] = [None]
    # A stack of our own: depth is limited by `limits`, not by what Python's stack has left.
    todo: list[tuple[Any, Any, Any, _Place, int]] = [(value, copy, 0, _Place(pointer, None), 1)]
    while todo:
        value, holder, slot, place, depth = todo.pop()
        kind = type(value)
        items: list[tuple[Any, Any]]
        if issubclass(kind, dict):
            items = [(_checked_key(key, limits, place), item) for key, item in value.items()]
            holder[slot] = dict.fromkeys(key for key, _ in items)
            keys += len(items)
        elif issubclass(kind, (list, tuple)):
            items = list(enumerate(value))
            holder[slot] = [None] * len(items)
        elif value is None or issubclass(kind, _SCALARS):
            holder[slot] = _checked_scalar(value, place)
            continue
        else:
            todo.append((_simpler(value, place), holder, slot, place, depth))
            continue
        if depth > limits.max_depth:
            raise place.refuse(
                f"is nested deeper than {limits.shown('max_depth', 'levels')};"
                " flatten it, or see whether it contains itself"
            )
        if keys > limits.max_keys:
            raise place.refuse(
                f"brings the number of keys to {keys:,}, the limit is {limits.shown('max_keys')};"
                " store it elsewhere and pass its id"
            )
        nodes += len(items)
        if nodes > limits.max_bytes:
            raise _too_large(f"more than {nodes:,}", limits, pointer)
        for key, item in reversed(items):
            todo.append((item, holder[slot], key, _Place(key, place), depth + 1))
    return copy[0]


def _checked_key(key: Any, limits: Limits, place: _Place) -> Any:
    if not issubclass(type(key), str):
        raise place.refuse(
            f"has the key {_shown(key)}, which is not a string but {type(key).__name__};"
            " use str(key)"
        )
    # Bad keys are shown in the problem and kept out of the pointer, which must itself be storable.
    if len(key) > limits.max_key_length:
        raise place.refuse(
            f"has the key {_shown(key)} of {len(key):,} characters,"
            f" the limit is {limits.shown('max_key_length')}; put it in a value"
        )
    if problem := _text_problem(key):
        raise place.refuse(f"has the key {_shown(key)}, which {problem}")
    return key


def _checked_scalar(value: Any, place: _Place) -> Any:
    kind = type(value)
    if issubclass(kind, str):
        if problem := _text_problem(value):
            raise place.refuse(problem)
    elif issubclass(kind, int):
        if not _LEAST <= value <= _GREATEST:
            raise place.refuse("is an integer of more than 64 bits; use str(value)")
    elif issubclass(kind, float) and not math.isfinite(value):
        raise place.refuse(f"is {float.__repr__(value)}, which JSON does not have; use None")
    return value


def _simpler(value: Any, place: _Place) -> Any:
    try:
        return values.simpler(value)
    except InvalidPayload as error:
        raise place.refuse(error.problem) from error.__cause__


def _text_problem(text: str) -> str:
    if "\0" in text:
        return "contains a NUL character, which PostgreSQL cannot store; remove it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return (
            "contains a lone surrogate, which is not Unicode text;"
            ' decode the bytes it came from with errors="replace"'
        )
    return ""


def _encoded(plain: Any, limits: Limits, pointer: str) -> str:
    try:
        return _ENCODER.encode(plain)
    except RecursionError:
        raise InvalidPayload(
            f"is nested deeper than Python can write, though the limit is {limits.max_depth}"
            " levels; flatten it, or lower the limit",
            pointer=pointer,
        ) from None


def _too_large(size: str, limits: Limits, pointer: str) -> InvalidPayload:
    return InvalidPayload(
        f"takes {size} bytes as JSON, the limit is {limits.shown('max_bytes')};"
        " store it elsewhere (a model row, a file) and pass its id",
        pointer=pointer,
    )


def _shown(key: Any) -> str:
    if isinstance(key, str):
        return ascii(key[:40])
    try:
        return ascii(reprlib.repr(key))[1:-1]
    except ValueError:  # an integer of more digits than Python prints
        return "of many digits"
