"""`EventType`: the name of an event, together with the shape of its data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from durable_flows.errors import (
    DuplicateEventType,
    InvalidEvent,
    InvalidOption,
    InvalidPayload,
    UnreadableEvent,
)
from durable_flows.rules import names, payload
from durable_flows.rules.shapes import Shape, shape_of

D = TypeVar("D")

Upcast = Callable[[dict[str, Any], str | None], dict[str, Any]]

#: What an upcast returns is stored nowhere.
_ROOM = payload.Limits(max_bytes=2**31, max_keys=2**31, max_key_length=2**31)


class EventType(str, Generic[D]):
    """An event's name and the shape of its data; it is text, and stands wherever a name does.

    From then on an event of this name is only sent, by whatever way, if its data fit. Who listens to or
    waits for the type, and not for its name, gets the data as an instance of the model.

    Args:
        name: the event's name.
        model: a dataclass or a pydantic model.
        v: the version of the shape: that of events which are sent by the type.
        upcast: called with the data of an event of another version, and that version (None if it has
            none): returns what they are in this version. Without it they are read as they are.

    Attributes:
        model: as given.
        v: as given.

    Raises:
        InvalidOption: the name or ``v`` is none, or the model cannot be read from JSON.
        DuplicateEventType: the name has another type.
    """

    model: type[D]
    v: str | None
    _upcast: Upcast | None
    _shape: Shape

    def __new__(
        cls, name: str, model: type[D], *, v: str | None = None, upcast: Upcast | None = None
    ) -> EventType[D]:
        """Make a type, and make it known."""
        made = super().__new__(cls, _checked_name(name))
        what = f"EventType({str(made)!r})"
        made.model = model
        made.v = _checked_version(v, what)
        made._upcast = _checked_upcast(upcast, what)
        made._shape = shape_of(model, what)
        catalogue.add(made)
        return made

    @property
    def name(self) -> str:
        """The event's name, as nothing but text."""
        return str(self)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # a copy, in another process say, is the name alone

    def written(self, data: Any) -> Any:
        """What is stored for an instance of the model; everything else as it is.

        Raises:
            InvalidPayload: the model cannot write it.
        """
        if not isinstance(data, self.model):
            return data
        try:
            return self._shape.written(data)
        except Exception as error:  # what its author has written
            problem = f"{self.model.__qualname__} cannot be written as JSON: {error}"
            raise InvalidPayload(problem) from error

    def read(self, text: str, v: str | None) -> D:
        """The data of an event of this version, of which this is the JSON text, as the model.

        Raises:
            InvalidPayload: they do not fit.
        """
        try:
            if self._upcast is not None and (v or None) != self.v:
                text = self._raised(text, v or None)
            found: D = self._shape.read(text)
        except InvalidPayload as error:
            problem = f"does not fit {self._label}: {error.problem}"
            raise InvalidPayload(problem, pointer=error.pointer) from error
        except Exception as error:  # what its author has written
            problem = f"does not fit {self._label}: {type(error).__name__}: {error}"
            raise InvalidPayload(problem) from error
        return found

    def check(self, text: str, v: str | None, *, pointer: str = "/data") -> None:
        """Raise `InvalidEvent` unless data of this version fit; ``pointer`` says where they stand."""
        try:
            self.read(text, v)
        except InvalidPayload as error:
            raise InvalidEvent(error.problem, pointer=f"{pointer}{error.pointer}") from error

    def decoded(self, data: dict[str, Any], v: str | None, public_id: str) -> D:
        """The data of a stored event as the model. Raises `UnreadableEvent`."""
        try:
            return self.read(json.dumps(data, ensure_ascii=False), v)
        except InvalidPayload as error:
            raise UnreadableEvent(
                str(self), public_id, error.problem, pointer=f"/data{error.pointer}"
            ) from error

    def is_same(self, other: EventType[Any]) -> bool:
        """Whether this is the same type, though its module may have been loaded again."""
        return self._identity == other._identity

    @property
    def _identity(self) -> tuple[object, ...]:
        upcast = self._upcast and (self._upcast.__module__, self._upcast.__qualname__)
        return self.model.__module__, self.model.__qualname__, self.v, upcast

    @property
    def _label(self) -> str:
        version = f", version {self.v}" if self.v else ""
        return f"{self.model.__qualname__}, the type of {str(self)!r}{version}"

    def _raised(self, text: str, v: str | None) -> str:
        """The data of another version as they are in this one."""
        assert self._upcast is not None
        found = self._upcast(payload.loads(text), v)
        if not isinstance(found, dict):
            raise InvalidPayload(f"upcast returned {type(found).__name__}, not a dict")
        return payload.dumps(found, limits=_ROOM)


class Catalogue:
    """The event types of this process, by name."""

    def __init__(self) -> None:
        self._types: dict[str, EventType[Any]] = {}

    def add(self, new: EventType[Any]) -> None:
        """Make a type known. Raises `DuplicateEventType`."""
        known = self._types.get(new)
        if known is not None and not known.is_same(new):
            raise DuplicateEventType(
                f"event {str(new)!r} has two types, {_described(known)} and {_described(new)}; keep one of "
                "them, and let the other module import it"
            )
        self._types[str(new)] = new

    def find(self, name: str) -> EventType[Any] | None:
        """The type of the events of this name, if they have one."""
        return self._types.get(name)

    def forget(self, name: str) -> None:
        """Let a name have no type; for tests."""
        self._types.pop(name, None)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Forget, at the end of the block, what was made known inside it; for tests."""
        before = dict(self._types)
        try:
            yield
        finally:
            self._types = before


catalogue = Catalogue()


def type_of(name: str) -> EventType[Any] | None:
    """The type behind a name that was given as one: not that of a plain name."""
    return name if isinstance(name, EventType) else None


def _checked_name(name: Any) -> str:
    try:
        checked = names.check_sent(name, "/name")
    except InvalidEvent as error:
        raise InvalidOption(f"EventType: {error.problem}") from error
    if "*" in checked:
        raise InvalidOption(f"EventType: {checked!r} has a wildcard; a type is that of one event")
    return checked


def _checked_version(v: Any, what: str) -> str | None:
    try:
        return names.check_text(v, "/v", names.V_LENGTH) or None
    except InvalidEvent as error:
        raise InvalidOption(f"{what}, v=: {error.problem}") from error


def _checked_upcast(upcast: Any, what: str) -> Upcast | None:
    if upcast is not None and not callable(upcast):
        raise InvalidOption(f"{what}: upcast= takes a function of data and version, not {upcast!r}")
    return upcast  # type: ignore[no-any-return]


def _described(known: EventType[Any]) -> str:
    version = f" version {known.v}" if known.v else ""
    return f"{known.model.__module__}.{known.model.__qualname__}{version}"
