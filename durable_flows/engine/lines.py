"""The lines of an ``async def`` handler that go on beside each other: each is a task of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from durable_flows.engine.scopes import Scope


class Lines:
    """Those of one slice. Used in the loop only.

    Args:
        ended: called whenever one of them has.

    Attributes:
        hold_cancels: whether lines that are to be cancelled go on until `let_cancels_go`. What a record
            tells one of them at once may have come to it late: the neighbours that are cancelled for it
            had been further by then.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self.hold_cancels = False
        self._ended = ended
        self._alive: dict[Scope, Line] = {}

    def begin(self, coroutine: Coroutine[Any, Any, Any], scope: Scope, **options: Any) -> Line:
        """A task in this branch; ``options`` are those of `asyncio.Task`."""
        line = Line(coroutine, self, scope, **options)
        self._alive[scope] = line
        line.add_done_callback(lambda _: self._ends(line))
        return line

    def _ends(self, line: Line) -> None:
        self._alive.pop(line.scope, None)
        self._ended()

    def awake(self, branches: Collection[Line], parked: Collection[Scope | None]) -> int:
        """In how many of these branches, or of those within them, something goes on.

        Args:
            branches: of a group.
            parked: the scopes of those whose tool has suspended.
        """
        within: dict[Scope | None, list[Line]] = {}
        for line in self._alive.values():
            within.setdefault(line.scope.parent, []).append(line)

        def is_asleep(line: Line) -> bool:
            inner = within.get(line.scope, [])
            rests = line.scope in parked or (bool(inner) and not line.works)
            return rests and all(is_asleep(one) for one in inner)

        return sum(not is_asleep(line) for line in branches)

    @property
    def may_go_on(self) -> bool:
        """Whether any of them awaits something else than a step."""
        return not all(line.is_in_a_tool for line in self._alive.values())

    def let_cancels_go(self) -> bool:
        """Cancel what was to be cancelled meanwhile. Returns whether there was any."""
        gave_way = [line.give_way() for line in list(self._alive.values())]
        return any(gave_way)


class Line(asyncio.Task[Any]):
    """A task that, while its run is recalled, is cancelled once it can go no further.

    Attributes:
        scope: its own.
        is_in_a_tool: whether it awaits a step, or a group.
        is_in_a_group: whether it awaits branches.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], lines: Lines, scope: Scope, **options: Any
    ) -> None:
        self.scope = scope
        self.is_in_a_tool = False
        self.is_in_a_group = False
        self._lines = lines
        self._held = 0
        super().__init__(coroutine, **options)

    @property
    def works(self) -> bool:
        """Whether it awaits what a step of its own does."""
        return self.is_in_a_tool and not self.is_in_a_group

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: D102 (as of its base)
        if not self._lines.hold_cancels or self.done():
            return super().cancel(msg)
        self._held += 1
        return True

    def cancelling(self) -> int:  # noqa: D102 (as of its base)
        return super().cancelling() + self._held

    def uncancel(self) -> int:  # noqa: D102 (as of its base)
        if not self._held:
            return super().uncancel()
        self._held -= 1
        return self.cancelling()

    def give_way(self) -> bool:
        """Be cancelled, as often as it was to be meanwhile. Returns whether it was."""
        held, self._held = self._held, 0
        for _ in range(held):
            super().cancel()
        return bool(held)


def current() -> Line | None:
    """The line that executes just now, if one does."""
    task = asyncio.current_task()
    return task if isinstance(task, Line) else None


@contextmanager
def in_a_tool() -> Iterator[None]:
    """The current line awaits a tool inside the block."""
    line = current()
    if line is not None:
        line.is_in_a_tool = True
    try:
        yield
    finally:
        if line is not None:
            line.is_in_a_tool = False


@contextmanager
def in_a_group() -> Iterator[None]:
    """The current line's tool awaits branches inside the block."""
    line = current()
    if line is not None:
        line.is_in_a_group = True
    try:
        yield
    finally:
        if line is not None:
            line.is_in_a_group = False
