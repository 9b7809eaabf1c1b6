"""What becomes of values that JSON does not have: the rules, and what to give where there is none.

One set of rules for all that is stored: results of steps and runs, inputs, events and edits.
"""

from __future__ import annotations

import sys
from dataclasses import Field, fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import getattr_static, isawaitable
from typing import Any, ClassVar, Final, Protocol
from uuid import UUID

from durable_flows.errors import InvalidPayload


class IsDataclass(Protocol):
    """How a dataclass's instance looks to a type checker."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class IsModel(Protocol):
    """How a pydantic model's instance looks to a type checker."""

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]:
        """Its fields, for JSON those of JSON."""
        ...


#: What is, or becomes, a JSON object.
Object = dict[str, Any] | IsDataclass | IsModel

#: In the metadata of a dataclass's field that is not written: an event's subject.
UNSAID: Final = "durable_flows: unsaid"

#: Stands for itself: there is no rule.
_NO_RULE: Final = object()


def simpler(value: Any) -> Any:
    """What is written in place of a value that JSON does not have; it may need a rule in its turn.

    Raises:
        InvalidPayload: there is none. The pointer is that of the value: ``""``.
    """
    instead = _by_rule(value)
    if instead is _NO_RULE:
        raise InvalidPayload(f"{type(value).__name__} is not a JSON type; {_instead(value)}")
    return instead


def opened(value: Any) -> Any:
    """A dict in place of what is written as an object; everything else as it is.

    Raises:
        InvalidPayload: a model cannot be written.
    """
    kind = type(value)
    if kind is dict or not (is_dataclass(kind) or is_pydantic(kind)):
        return value
    return _by_rule(value)


def is_pydantic(kind: type) -> bool:
    """Whether this is a model of pydantic 2, which is asked only if somebody has imported it."""
    pydantic = sys.modules.get("pydantic")
    return (
        pydantic is not None
        and issubclass(kind, pydantic.BaseModel)
        and hasattr(kind, "model_dump")
    )


def _by_rule(value: Any) -> Any:
    kind = type(value)
    if issubclass(kind, Enum):
        return value.value
    if issubclass(kind, (date, time)):  # a datetime is a date
        return value.isoformat()
    if issubclass(kind, UUID):
        return str(value)
    if issubclass(kind, Decimal):
        return _number(value)
    if is_pydantic(kind):
        return _dumped(value)
    if is_dataclass(kind):
        return _fields(value)
    return _NO_RULE


def _number(value: Decimal) -> str:
    if not value.is_finite():
        raise InvalidPayload(f"is {value!r}, which is no number; use None")
    return str(value)


def _dumped(model: Any) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception as error:  # what its author has written, or a field of a type it cannot write
        raise InvalidPayload(
            f"{type(model).__name__} cannot be written as JSON: {error}"
        ) from error


def _fields(value: Any) -> dict[str, Any]:
    try:
        stored = [field.name for field in fields(value) if UNSAID not in field.metadata]
        return {name: getattr(value, name) for name in stored}
    except AttributeError as error:
        raise InvalidPayload(f"{type(value).__name__} lacks a field: {error}") from error


# -- what to give instead --------------------------------------------------------------------

_INSTEAD: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (timedelta, "use value.total_seconds()"),
    ((bytes, bytearray, memoryview), "use value.decode(), or base64 for binary data"),
    ((set, frozenset), "use sorted(value)"),
    (BaseException, "use str(value)"),
    (type, "use its name"),
)

_ABSENT: Final = object()

_INSTEAD_BY_ATTRIBUTE: Final = (
    ("pk", "use value.pk and load the row again where it is needed"),
    ("values_list", 'use list(value.values_list("pk", flat=True))'),
    ("__struct_fields__", "use msgspec.to_builtins(value)"),
    ("tolist", "use value.tolist()"),
    ("__next__", "use list(value)"),
    ("keys", "use dict(value)"),
    ("__iter__", "use list(value)"),
    ("__call__", "call it and use what it returns"),
)


def _instead(value: Any) -> str:
    """What to give in place of a value without a rule, for the end of an error's text."""
    kind = type(value)
    for types, advice in _INSTEAD:
        if issubclass(kind, types):
            return advice
    if isawaitable(value):
        return "await it and use the result"
    # Looked up without being evaluated: an attribute may be a query, and the row may be gone.
    for attribute, advice in _INSTEAD_BY_ATTRIBUTE:
        if getattr_static(value, attribute, _ABSENT) is not _ABSENT:
            return advice
    return "use None, bool, int, float, str, dates, Decimal, UUID, and lists and dicts of these"
