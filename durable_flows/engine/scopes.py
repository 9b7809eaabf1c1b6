"""Where in a handler a tool is called: in its main line, or in one of its branches.

Branches go on beside each other, so what a step's key and a wait's look-back depend on is kept for each
of them: then neither depends on who was faster. A branch is a thread, or a task of an event loop; the
scope travels in the context of both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, Token
from dataclasses import dataclass
from typing import Any

from durable_flows.engine import failpoints
from durable_flows.errors import (
    CancelAsked,
    Diverged,
    HandBack,
    InvalidOption,
    LeaseLost,
    Suspend,
    Unreadable,
)
from durable_flows.rules import replays
from durable_flows.rules.lookback import LookBack, Position

KEY_LENGTH = 255

#: What ends a slice and is nobody's failure.
ENDS_OF_A_SLICE = (
    Suspend,
    LeaseLost,
    CancelAsked,
    Diverged,
    HandBack,
    Unreadable,
    KeyboardInterrupt,
    GeneratorExit,  # a tool that is given up: whoever awaited it was cancelled
    failpoints.Killed,
)


class Scope:
    """A line of a handler's execution.

    Attributes:
        path: what its step keys begin with; empty for the main line.
        looking: how far back its waits look.
        stopped: the signal that has ended it for this slice.
        last_key: the last of its steps that is recorded.
        parent: the line that it is a branch of; None for the main line.
        is_closed: whether its group has come to its end without it; so have the branches within it.
    """

    def __init__(
        self,
        path: str,
        looking: LookBack,
        seen: dict[str, int] | None = None,
        parent: Scope | None = None,
    ) -> None:
        self.path = path
        self.looking = looking
        self.stopped: Suspend | None = None
        self.last_key = ""
        self._is_closed = False
        self.parent = parent
        self._seen = {} if seen is None else seen
        self._tasks = 0

    @property
    def is_closed(self) -> bool:  # noqa: D102 (an attribute)
        return self._is_closed or (self.parent is not None and self.parent.is_closed)

    def close(self) -> None:
        """Its group has come to its end: it begins nothing more."""
        self._is_closed = True

    def take(self, id: str) -> Place:
        """The place of a step that is called here: its n-th repetition is a step of its own."""
        number = self._seen[id] = self._seen.get(id, 0) + 1
        key = self._key(id, number)
        if len(key) > KEY_LENGTH:
            raise InvalidOption(
                f"step {id!r} stands in so many branches within each other that its key {key!r} has "
                f"more than {KEY_LENGTH} characters; shorten its id, or invoke a flow of its own"
            )
        return Place(key, self, self.looking.latest)

    def is_past(self, recorded: Sequence[str]) -> bool:
        """Whether the run has been further along this line than the replay is now.

        Args:
            recorded: the keys of what is recorded or begun.
        """
        met = {
            self._key(id, number)
            for id, count in self._seen.items()
            for number in range(1, count + 1)
        }
        return replays.is_past(recorded, self.path, met, self._tasks)

    def _key(self, id: str, number: int) -> str:
        """Of the n-th repetition of an id."""
        return f"{self.path}{id}" if number == 1 else f"{self.path}{id}#{number}"

    def step(self) -> Scope:
        """A branch that is a single step of this line, and counts with it."""
        return Scope(self.path, self.looking, self._seen, self)

    def task(self) -> Scope:
        """A branch that is a task of an event loop, begun by code of this line."""
        number, self._tasks = self._tasks, self._tasks + 1
        return Scope(f"{self.path}task[{number}]/", self.looking.branch(), parent=self)


@dataclass(slots=True)  # frozen ones take three times as long to make
class Place:
    """Where a step stands.

    Attributes:
        key: its key.
        scope: the line that it is called in.
        began: the last journal entry of that line when it was called.
    """

    key: str
    scope: Scope
    began: Position


_scope: ContextVar[Scope | None] = ContextVar("durable_flows_scope", default=None)
_inside: ContextVar[str] = ContextVar("durable_flows_step", default="")


def here() -> Scope | None:
    """The branch that this code is in; None in a main line."""
    return _scope.get()


def enter(scope: Scope | None, context: Context | None = None) -> None:
    """From now on this context is in that branch."""
    if context is None:
        _scope.set(scope)
    else:
        context.run(_scope.set, scope)


def inside() -> str:
    """The key of the step in whose function this code is; empty between steps."""
    return _inside.get()


def go_in(key: str) -> Token[str]:
    """The function of this step begins; what is returned is for `go_out`."""
    return _inside.set(key)


def go_out(token: Token[str]) -> None:
    """It has ended."""
    _inside.reset(token)


@contextmanager
def within(key: str) -> Iterator[None]:
    """The function of this step is executed inside the block."""
    token = go_in(key)
    try:
        yield
    finally:
        go_out(token)


@contextmanager
def main_line() -> Iterator[None]:
    """Another run's handler is executed inside the block, whatever this code is in."""
    tokens = _scope.set(None), _inside.set("")
    try:
        yield
    finally:
        _scope.reset(tokens[0])
        _inside.reset(tokens[1])


# -- what a tool asks its driver for -------------------------------------------------------------


@dataclass(slots=True)
class Write:
    """Something to be done by the slice's own thread: nobody else writes its journal."""

    work: Callable[[], Any]


@dataclass(slots=True)
class Call:
    """User code, to be called in the branch itself.

    Attributes:
        work: calls it.
        key: of its step.
    """

    work: Callable[[], Any]
    key: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch to be executed.

    Attributes:
        name: its step's key, or what those of its steps begin with.
        work: its code; called anew after each suspend.
        scope: makes its scope, anew each time.
    """

    name: str
    work: Callable[[], Any]
    scope: Callable[[], Scope]

    def has(self, key: str) -> bool:
        """Whether a step of this key is one of the branch's."""
        inner = self.name if self.name.endswith("/") else f"{self.name}["
        return key == self.name or key.startswith(inner)


@dataclass(frozen=True, slots=True)
class End:
    """How a branch has ended: with a value, or with an error."""

    scope: Scope
    value: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


#: The branches that have ended, by their numbers, the first to end first.
Ends = dict[int, End]


@dataclass(frozen=True, slots=True)
class Together:
    """Branches to be executed beside each other.

    Attributes:
        branches: all of them.
        most: how many at once.
        is_enough: whether with these ends the group has come to its own.
        recalls: every branch is played as far as it is recorded, also once it is enough.
    """

    branches: Sequence[Branch]
    most: int
    is_enough: Callable[[Ends], bool]
    recalls: bool = False


#: A tool at work: it yields what it asks its driver for, and returns its result.
Tool = Generator[Write | Call | Together, Any, Any]
