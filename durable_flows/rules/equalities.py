"""Reads equalities out of expressions, so that events are matched by values, not one wait at a time.

What is certainly an equality between values, or with a literal, and certainly holds whenever the whole
expression does (it stands between top-level ``&&``) becomes an `Equality`. The rest stays CEL: whatever
this reader is unsure about is none of its business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from durable_flows.errors import InvalidKey
from durable_flows.rules import keys

OWN = "event"  # the run's own event; for a trigger: the event
NEW = "async"  # the event that is awaited, or that would cancel


@dataclass(frozen=True, slots=True)
class Equality:
    """A value of the event in question equals one of the run's own event, or a literal.

    Attributes:
        path: where the event in question has its value.
        own: where the run's own event has its value; None: it is ``literal``.
        literal: a string, number, boolean or None.
    """

    path: str
    own: str | None = None
    literal: Any = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What an event must be like: all of these equalities hold, and so does what they cannot say.

    Attributes:
        equalities: in an order that depends on what they say alone.
        residual: the rest of the expression, in CEL; empty if there is none.
    """

    equalities: tuple[Equality, ...] = ()
    residual: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the event in question is looked at."""
        return tuple(equality.path for equality in self.equalities)

    def values(self, own: Mapping[str, Any]) -> list[Any]:
        """What it must have there, given the run's own event; `keys.MISSING` where that has nothing."""
        return [
            equality.literal if equality.own is None else _value(own, equality.own)
            for equality in self.equalities
        ]

    def missing(self, own: Mapping[str, Any]) -> list[str]:
        """The paths at which the run's own event has no value, so that nothing can ever match."""
        return [
            equality.own
            for equality in self.equalities
            if equality.own is not None and _value(own, equality.own) is keys.MISSING
        ]

    def matched(self, path: str | None) -> Condition:
        """The same, and the run's own event and the one in question agree at this path."""
        if path is None:
            return self
        return replace(self, equalities=_ordered([*self.equalities, Equality(path, own=path)]))


class Token(NamedTuple):
    """A word, number, string or sign, and where it stands."""

    kind: str
    text: str
    start: int
    end: int


#: Comments, backquoted names, byte strings and triple quotes are for CEL alone.
_BEYOND = r"//|`|[bB][rR]?['\"]|[rR][bB]['\"]|[rR]?(?:'''|\"\"\")"
_TOKEN = re.compile(
    rf"(?P<beyond>{_BEYOND})"
    r"|(?P<raw>[rR](?:'[^'\r\n]*'|\"[^\"\r\n]*\"))"
    r"|(?P<string>'(?:[^'\\\r\n]|\\[^\r\n])*'|\"(?:[^\"\\\r\n]|\\[^\r\n])*\")"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<float>[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)"
    r"|(?P<int>[0-9]+)"
    r"|(?P<sign>==|&&|\|\||[-.!?:()\[\]{},<>=+*/%])"
    r"|(?P<blank>[ \t\r\n\f]+)"
)
_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_LITERALS = {"true": True, "false": False, "null": None}
_NO_NAMES = frozenset({*_LITERALS, "in"})
_LEAST, _GREATEST = -(2**63), 2**63 - 1


def read(text: str, roots: Sequence[str]) -> Condition:
    """What an expression asks for, as far as it can be read.

    Args:
        text: the expression.
        roots: the names it may use; the last one is that of the event in question.

    Raises:
        InvalidKey: it looks at something that is no field of an event.
    """
    tokens = tokenise(text)
    if tokens is None:
        return Condition(residual=text)
    _check_fields(tokens, roots)
    parts = _conjuncts(tokens)
    if not all(parts):  # nothing between two signs: CEL says what is wrong
        return Condition(residual=text)
    found, rest = [], []
    for part in parts:
        equality = _equality(part, roots)
        if equality is None:
            rest.append(text[part[0].start : part[-1].end])
        else:
            found.append(equality)
    return Condition(_ordered(found), " && ".join(rest))


def tokenise(text: str) -> list[Token] | None:
    """The tokens of an expression, blanks left out; None if there is something that only CEL knows."""
    tokens = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup in (None, "beyond"):
            return None
        if found.lastgroup != "blank":
            tokens.append(Token(str(found.lastgroup), found[0], *found.span()))
        position = found.end()
    return tokens


def _check_fields(tokens: Sequence[Token], roots: Sequence[str]) -> None:
    """Refuse ``event.cart_id`` where ``event.data.cart_id`` is meant: it would never have a value."""
    for index, token in enumerate(tokens[:-2]):
        follows_dot = index > 0 and tokens[index - 1].text == "."
        dot, name, *after = tokens[index + 1 : index + 4]
        is_call = bool(after) and after[0].text == "("
        if token.text not in roots or follows_dot or dot.text != "." or is_call:
            continue
        if name.kind == "word" and name.text not in keys.FIELDS:
            raise InvalidKey(
                f"{token.text}.{name.text} is no field of an event ({', '.join(keys.FIELDS)});"
                f" did you mean {token.text}.data.{name.text}?"
            )


def _conjuncts(tokens: Sequence[Token]) -> list[list[Token]]:
    """What top-level ``&&`` joins; all in one where a sign binds less tightly, or brackets are odd."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "sign" else 0
        if depth < 0 or (depth == 0 and token.text in ("||", "?", ":")):
            return [list(tokens)]
        if depth == 0 and token.text == "&&":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if depth == 0 else [list(tokens)]


def _equality(part: Sequence[Token], roots: Sequence[str]) -> Equality | None:
    signs = [index for index, token in enumerate(part) if token.text == "=="]
    if len(signs) != 1:
        return None
    sides = [_side(part[: signs[0]]), _side(part[signs[0] + 1 :])]
    for side, other in (sides, sides[::-1]):
        if isinstance(side, _Path) and side.root == roots[-1]:
            if isinstance(other, _Literal):
                return Equality(side.path, literal=other.value)
            if isinstance(other, _Path) and other.root in roots[:-1]:
                return Equality(side.path, own=other.path)
    return None


class _Path(NamedTuple):
    root: str
    path: str


class _Literal(NamedTuple):
    value: Any


def _side(tokens: Sequence[Token]) -> _Path | _Literal | None:
    """One side of an equality, if it is a path or a literal and nothing else."""
    match [token.kind for token in tokens]:
        case ["string"] if "\\" not in tokens[0].text:
            return _Literal(tokens[0].text[1:-1])
        case ["raw"]:
            return _Literal(tokens[0].text[2:-1])
        case ["int" | "float"]:
            return _number(tokens[0], 1)
        case ["sign", "int" | "float"] if tokens[0].text == "-":
            return _number(tokens[1], -1)
        case ["word"] if tokens[0].text in _LITERALS:
            return _Literal(_LITERALS[tokens[0].text])
        case _:
            return _path(tokens)


def _number(token: Token, sign: int) -> _Literal | None:
    if token.kind == "float":
        number = sign * float(token.text)
        return _Literal(number) if math.isfinite(number) else None
    if not _DECIMAL.fullmatch(token.text) or len(token.text) > 20:
        return None
    whole = sign * int(token.text)
    return _Literal(whole) if _LEAST <= whole <= _GREATEST else None


def _path(tokens: Sequence[Token]) -> _Path | None:
    names, dots = tokens[::2], tokens[1::2]
    if len(names) < 2 or len(dots) != len(names) - 1:
        return None
    if any(dot.text != "." for dot in dots):
        return None
    if any(name.kind != "word" or name.text in _NO_NAMES for name in names):
        return None
    return _Path(names[0].text, ".".join(name.text for name in names[1:]))


def _ordered(equalities: Sequence[Equality]) -> tuple[Equality, ...]:
    """Each once, in one order, so that what says the same is looked for in the same way."""
    once = {repr(equality): equality for equality in equalities}
    return tuple(sorted(once.values(), key=lambda e: (e.path, e.own or "", repr(e.literal))))


def _value(document: Mapping[str, Any], path: str) -> Any:
    return keys.read(document, tuple(path.split(".")))
