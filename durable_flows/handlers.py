"""The functions that are handlers: what they may ask for, and what tells their code from other code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from durable_flows.errors import InvalidHandler

Handler = Callable[..., Any]

#: What a handler may ask for, by parameter name.
PARAMETERS = ("event", "events", "step", "run")


def is_same(one: Handler, other: Handler) -> bool:
    """Whether two functions are one and the same, though its module may have been loaded again."""
    if (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
        return False
    code = getattr(one, "__code__", one)
    return bool(code == getattr(other, "__code__", other))


def fingerprint(handler: Handler) -> str:
    """Text that tells a function's code from other code; that of functions it calls is not looked at."""
    code = getattr(inspect.unwrap(handler), "__code__", None)
    said = handler.__qualname__ if code is None else _said(code)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _said(value: Any) -> str:
    """A constant of some code, or the code itself, in words that are the same in every process."""
    if isinstance(value, CodeType):
        parts = [value.co_code.hex(), *value.co_names, *map(_said, value.co_consts)]
        return f"({' '.join(parts)})"
    if isinstance(value, frozenset):
        return f"{{{' '.join(sorted(map(_said, value)))}}}"
    return f"({' '.join(map(_said, value))})" if isinstance(value, tuple) else repr(value)


def parameters_of(id: str, handler: Any) -> frozenset[str]:
    """Which of `PARAMETERS` a function takes. Raises `InvalidHandler` if it cannot be a handler."""
    if not callable(handler):
        raise InvalidHandler(f"flow {id!r}: @flow decorates a function, not {handler!r}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise InvalidHandler(
            f"flow {id!r}: handler {handler.__qualname__} is a generator, whose body would never run; "
            "return its result instead of yielding"
        )
    taken = set()
    for parameter in inspect.signature(handler).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidHandler(f"flow {id!r}: {_choose(handler, str(parameter))}")
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in PARAMETERS:
            raise InvalidHandler(f"flow {id!r}: {_choose(handler, parameter.name)}")
        taken.add(parameter.name)
    return frozenset(taken)


def _choose(handler: Handler, parameter: str) -> str:
    return (
        f"handler {handler.__qualname__} asks for {parameter!r}; a handler may take "
        f"{', '.join(PARAMETERS)}, by these names, and nothing else"
    )
