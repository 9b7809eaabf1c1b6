"""The lines of an ``async def`` handler that go on beside each other: each is a task of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from durable_flows.engine.scopes import Scope


class Lines:
    """Those of one slice. Used in the loop only.

    Attributes:
        hold_cancels: whether lines that are to be cancelled go on until `let_cancels_go`. What a record
            tells one of them at once may have come to it late: the neighbours that are cancelled for it
            had been further by then.
    """

    def __init__(self) -> None:
        self.hold_cancels = False
        self._alive: set[Line] = set()

    def begin(self, coroutine: Coroutine[Any, Any, Any], scope: Scope, **options: Any) -> Line:
        """A task in this branch; ``options`` are those of `asyncio.Task`."""
        line = Line(coroutine, self, scope, **options)
        self._alive.add(line)
        line.add_done_callback(self._alive.discard)
        return line

    def let_cancels_go(self) -> bool:
        """Cancel what was to be cancelled meanwhile. Returns whether there was any."""
        gave_way = [line.give_way() for line in list(self._alive)]
        return any(gave_way)


class Line(asyncio.Task[Any]):
    """A task that, while its run is recalled, is cancelled once it can go no further."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], lines: Lines, scope: Scope, **options: Any
    ) -> None:
        self.scope = scope
        self._lines = lines
        self._held = 0
        super().__init__(coroutine, **options)

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
