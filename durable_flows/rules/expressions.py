"""Conditions: expressions over events, in CEL, of which plain equalities need no CEL.

The one adapter over ``cel-expr-python``, which is imported when an expression first needs it. That
library answers an error, a missing field among them, with a value whose plain value is a truthy
string: only a value of its type BOOL is taken for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

from durable_flows.errors import ExpressionFailed, InvalidExpression, InvalidKey
from durable_flows.rules import equalities, keys
from durable_flows.rules.equalities import NEW, OWN, Condition, Token
from durable_flows.rules.events import Event

TRIGGER: Final = (OWN,)
WAIT: Final = (OWN, NEW)

LENGTH = 4_000
KEPT = 1_000  # compiled expressions
WORK = 50_000_000  # values and characters that the loops of one evaluation may pass: about a second
_ITERATIONS = 10_000  # that the library allows
_PROBLEM_LENGTH = 300
_EXTRA = "pip install 'durable-flows[cel]'"
_LOOP = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")


def condition(text: Any, *, what: str, names: tuple[str, ...]) -> Condition:
    """What an expression asks for, compiled as far as it has to be.

    Args:
        text: the expression.
        what: whose it is, for messages.
        names: `TRIGGER` or `WAIT`: the events that it may look at.

    Raises:
        InvalidExpression: it is none, or it needs the extra ``cel``, which is not installed.
    """
    try:
        _check_text(text)
        return _read(text, names)
    except _Refused as refused:
        raise InvalidExpression(what, text, str(refused)) from refused.__cause__


def document(event: Event) -> dict[str, Any]:
    """What an expression sees of an event."""
    fields = {"context": {}, **event.as_dict()}
    return {name: fields[name] for name in keys.FIELDS}


def holds(asked: Condition, event: Mapping[str, Any]) -> bool:
    """Whether an event meets a trigger's condition.

    Raises:
        ExpressionFailed: that cannot be told.
    """
    for equality in asked.equalities:
        path = tuple(equality.path.split("."))
        if not keys.equal(keys.read(event, path), equality.literal):
            return False
    return not asked.residual or evaluate(asked.residual, {OWN: event})


def evaluate(text: str, documents: Mapping[str, Mapping[str, Any]]) -> bool:
    """What an expression answers about these events.

    Raises:
        ExpressionFailed: neither true nor false: a field is missing, types do not fit, or it would
            take too long.
    """
    try:
        compiled = _compiled(text, tuple(documents))
        _check_work(compiled.loops, documents)
        value = compiled.program.eval(data=dict(documents))
        kind = value.type()
        if kind == compiled.cel.Type.BOOL:
            return bool(value.plain_value())
        is_error = kind == compiled.cel.Type.ERROR
        problem = value.plain_value() if is_error else f"it is of type {kind.name()}, not a boolean"
    except ExpressionFailed:
        raise
    except _Refused as refused:
        problem = str(refused)
    except Exception as error:
        # Whatever the library makes of somebody's payload: it must not stop the router.
        problem = str(error)
    raise ExpressionFailed(text, _shown(problem))


# -- reading and compiling -------------------------------------------------------------------


class _Refused(Exception):
    """What is wrong with an expression."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    cel: Any
    program: Any
    loops: int


def _check_text(text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise _Refused('if_= takes an expression as text, such as "event.data.paid == true"')
    if len(text) > LENGTH:
        raise _Refused(f"it has {len(text):,} characters, the limit is {LENGTH:,}")
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        raise _Refused("it has control characters; remove them")


@lru_cache(maxsize=KEPT)
def _read(text: str, names: tuple[str, ...]) -> Condition:
    try:
        found = equalities.read(text, names)
    except InvalidKey as error:
        raise _Refused(str(error)) from None
    if found.residual:
        _compiled(text, names)  # the whole of it, so that messages tell places in it
        _compiled(found.residual, names)
    return found


@lru_cache(maxsize=KEPT)
def _compiled(text: str, names: tuple[str, ...]) -> _Compiled:
    cel, environment = _environment(names)
    _check_patterns(text)
    try:
        program = environment.compile(text)
    except Exception as error:
        raise _Refused(f"it does not compile: {_shown(str(error))}") from error
    kind = program.return_type()
    if kind not in (cel.Type.BOOL, cel.Type.DYN):
        raise _Refused(f"it gives a value of type {kind.name()}; a condition is true or false")
    return _Compiled(cel, program, len(_LOOP.findall(text)))


@cache
def _environment(names: tuple[str, ...]) -> tuple[Any, Any]:
    try:
        from cel_expr_python import cel
    except ImportError as error:
        raise _Refused(
            f"it needs CEL, which is not installed: {_EXTRA}. Without it a condition is made of "
            'equalities joined by &&, such as "event.data.id == async.data.id"'
        ) from error
    return cel, cel.NewEnv(variables=dict.fromkeys(names, cel.Type.DYN))


# -- what a payload must not do --------------------------------------------------------------


def _check_patterns(text: str) -> None:
    """A pattern that came with an event could keep the router busy for minutes: only literals."""
    if "matches" not in text:
        return
    tokens = equalities.tokenise(text)
    calls = [] if tokens is None else [i for i, token in enumerate(tokens) if _is_call(tokens, i)]
    if tokens is None or not all(_has_literal_pattern(tokens[i + 2 :]) for i in calls):
        raise _Refused("matches() takes its pattern as a literal in plain quotes")


def _is_call(tokens: list[Token], index: int) -> bool:
    following = tokens[index + 1 : index + 2]
    return tokens[index].text == "matches" and bool(following) and following[0].text == "("


def _has_literal_pattern(arguments: list[Token]) -> bool:
    """Whether the last argument, before the bracket that closes the call, is one string."""
    depth = 1
    last: list[Token] = []
    for token in arguments:
        if token.kind == "sign":
            depth += (token.text in "([{") - (token.text in ")]}")
        if depth == 0:
            break
        if depth == 1 and token.text == ",":
            last = []
        else:
            last.append(token)
    return len(last) == 1 and last[0].kind in ("string", "raw")


def _check_work(loops: int, documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Loops over long lists in large events take time that whoever sends them decides on."""
    if not loops:
        return
    longest, size = _measured(documents)
    if min(_ITERATIONS, longest ** min(loops, 9)) * size > WORK:
        raise _Refused(
            f"its loops are too much work for events of this size ({size:,} values and characters, "
            f"up to {longest:,} in one list)"
        )


def _measured(value: Any) -> tuple[int, int]:
    """The length of the longest list or dict, and the number of values and characters."""
    longest = size = 0
    left = [value]
    while left:
        found = left.pop()
        size += 1
        if isinstance(found, str):
            size += len(found)
            continue
        inner: Iterable[Any] = ()
        if isinstance(found, Mapping):
            size += sum(map(len, found))
            inner = found.values()
        elif isinstance(found, list):
            inner = found
        else:
            continue
        longest = max(longest, len(found))
        left.extend(inner)
    return longest, size


def _shown(problem: str) -> str:
    """A message of the library on one line, cut, and without what a table or a log cannot hold."""
    line = " ".join(problem.split())
    clean = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line[:_PROBLEM_LENGTH])
    return clean if len(line) <= _PROBLEM_LENGTH else f"{clean}…"
