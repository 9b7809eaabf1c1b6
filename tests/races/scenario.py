"""A race: what is staged, who runs, what must hold whatever the order, and what it is protected by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tests.races.company import Rewrite


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A protection that is taken away.

    Attributes:
        without: what is missing.
        rewrite: changes what actors send.
        patch: changes the engine for as long as the twin is explored.
    """

    without: str
    rewrite: Rewrite | None = None
    patch: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A race between actors.

    Attributes:
        stage: makes the state in which the race begins, through the engine.
        actors: name → what it does, given the state; each on a connection of its own.
        holds: raises AssertionError if the end is wrong, given the state and what the actors
            returned; says how the race came out.
        twins: what it is protected by.
        outcomes: each of these must be seen, or the race is none.
        sampled: how many orders are drawn by chance, as there are too many to try them all; 0: all.
        refuses: errors with which an actor may rightly end.
        meanwhile: what is set otherwise than usual, so that a few rows are many.
    """

    stage: Callable[[], Any]
    actors: Sequence[tuple[str, Callable[[Any], Any]]]
    holds: Callable[[Any, Sequence[Any]], str]
    twins: Sequence[Twin]
    outcomes: frozenset[str] = field(default_factory=frozenset)
    sampled: int = 0
    refuses: tuple[type[Exception], ...] = ()
    meanwhile: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def names(self) -> list[str]:
        """Of the actors."""
        return [name for name, _ in self.actors]


#: A scenario is made where its flows may be declared: in the registry of the test that explores it.
Recipe = Callable[[], Scenario]


def cutting(
    pattern: str, replacement: str = "", *, of: str = "", actor: int | None = None
) -> Rewrite:
    """A rewrite that replaces a pattern in the statements that contain ``of``, of one actor or all."""

    def rewrite(number: int, text: str) -> str:
        if of not in text or actor not in (None, number):
            return text
        return re.sub(pattern, replacement, text)

    return rewrite
