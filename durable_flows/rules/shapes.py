"""Reads JSON text as a dataclass or a pydantic model, and says where and why it does not fit.

Both read JSON, not Python's values, so that a date may be text also where a model is strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any, Protocol

import msgspec

from durable_flows.errors import InvalidOption, InvalidPayload
from durable_flows.rules import values


class Shape(Protocol):
    """A dataclass or a model, as far as it reads and writes."""

    def read(self, text: str) -> Any:
        """An instance. Raises `InvalidPayload`, with a pointer to what does not fit."""
        ...

    def written(self, instance: Any) -> Any:
        """What `payload.dumps` is to write for an instance."""
        ...


def shape_of(model: Any, what: str) -> Shape:
    """The shape behind a class.

    Args:
        model: a dataclass or a pydantic model.
        what: where it was given, for messages.

    Raises:
        InvalidOption: it is neither, or has fields that cannot be read from JSON.
    """
    if isinstance(model, type) and _is_read_by_pydantic(model):
        return _Model(model, what)
    if isinstance(model, type) and is_dataclass(model):
        return _Dataclass(model, what)
    raise InvalidOption(f"{what} takes a dataclass or a pydantic model, not {model!r}")


def _is_read_by_pydantic(model: type) -> bool:
    """Whether it is a model, or one of pydantic's own dataclasses."""
    return values.is_pydantic(model) or "__pydantic_validator__" in vars(model)


# -- dataclasses -----------------------------------------------------------------------------


class _Dataclass:
    def __init__(self, model: type, what: str) -> None:
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(model)
            unread = sorted(_unread(msgspec.inspect.type_info(model), set()))
        except (TypeError, ValueError, NameError) as error:
            raise InvalidOption(f"{what}: {model.__qualname__} cannot be read: {error}") from error
        if unread:
            raise InvalidOption(
                f"{what}: {model.__qualname__} has fields of type {', '.join(unread)}, which JSON cannot "
                "be read as; declare them with types of JSON, dates, UUID, Decimal, enums and "
                "dataclasses, or with Any"
            )

    def read(self, text: str) -> Any:
        try:
            return self._decoder.decode(text)
        except msgspec.ValidationError as error:
            raise _misfit(str(error)) from error

    def written(self, instance: Any) -> Any:
        return instance


def _unread(info: Any, seen: set[Any]) -> Iterator[str]:
    """The names of the types in a type that are unknown to whoever reads JSON."""
    if isinstance(info, msgspec.inspect.CustomType):
        yield info.cls.__qualname__
        return
    cls = getattr(info, "cls", None)
    if cls in seen:
        return
    seen |= {cls} - {None}
    parts = (getattr(info, name) for name in getattr(info, "__struct_fields__", ()))
    for part in parts:
        for one in part if isinstance(part, tuple) else (part,):
            if isinstance(one, msgspec.inspect.Field):
                yield from _unread(one.type, seen)
            elif isinstance(one, msgspec.inspect.Type):
                yield from _unread(one, seen)


_PLACE = re.compile(r"(?P<says>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_TOKEN = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _misfit(message: str) -> InvalidPayload:
    """What msgspec says, with its place, ``$.items[0].price``, as a JSON pointer.

    It does not tell under which key of a dict it was: there the pointer leads to the dict.
    """
    found = _PLACE.fullmatch(message)
    assert found is not None  # the pattern takes every text
    says, path = found["says"], found["path"] or ""
    if found["key"]:
        says += ", in one of its keys"
    tokens: list[str] = []
    for name, index, unknown in _TOKEN.findall(path):
        if unknown:
            return InvalidPayload(
                f"{says}, in one of its values (at {path})", pointer=_pointer(tokens)
            )
        tokens.append(name or index)
    if missing := _MISSING.fullmatch(says):
        return InvalidPayload("is missing", pointer=_pointer([*tokens, missing[1]]))
    if says.startswith("Invalid enum value"):  # no value is told: it may be a secret
        says = "is none of the values that it may have"
    return InvalidPayload(says, pointer=_pointer(tokens))


def _pointer(tokens: Iterable[str | int]) -> str:
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


# -- pydantic --------------------------------------------------------------------------------


class _Model:
    def __init__(self, model: type, what: str) -> None:
        import pydantic  # not a dependency: whoever made the model has it

        try:
            self._adapter = pydantic.TypeAdapter[Any](model)
            self._adapter.validate_json("")
        except pydantic.ValidationError:
            pass  # it can be asked: that was no JSON
        except (pydantic.PydanticUserError, NameError) as error:
            raise InvalidOption(f"{what}: {model.__qualname__} cannot be read: {error}") from error
        self._error = pydantic.ValidationError

    def read(self, text: str) -> Any:
        try:
            return self._adapter.validate_json(text)
        except self._error as error:
            first, *others = error.errors(include_url=False, include_context=False)
            more = f" (and {len(others)} more)" if others else ""
            raise InvalidPayload(f"{first['msg']}{more}", pointer=_pointer(first["loc"])) from error

    def written(self, instance: Any) -> Any:
        """By the names that it is read by, and without what it computes."""
        return self._adapter.dump_python(instance, mode="json", by_alias=True, round_trip=True)
