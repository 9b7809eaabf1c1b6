"""`Step`: all the tools, as handlers get them, and what they may ask about the slice."""

from __future__ import annotations

from durable_flows.engine import scopes
from durable_flows.engine.scopes import Tool, Write
from durable_flows.engine.tools.branches import Branches
from durable_flows.engine.tools.saga import Sagas
from durable_flows.engine.tools.sends import Sends
from durable_flows.engine.tools.waits import Waits
from durable_flows.errors import InvalidOption
from durable_flows.rules import replays


class Step(Sagas, Waits, Sends, Branches):
    """The steps of a run. Each is executed once, recorded, and answered from its record after that.

    In a handler written with ``async def`` each tool is awaited: ``await step.run(…)``.
    """

    def patched(self, id: str) -> bool:
        """Whether this run takes the new way at a place where the code was changed.

        True for runs that come to this place with the code that has it: that is recorded, and stays so.
        False for runs that had gone past it before: a later step of the same line is recorded, or has
        begun.

        Args:
            id: the change's name; its n-th repetition in a run is a place of its own.

        Raises:
            NestedStep, StepInTransaction, InvalidOption: as `run` does.
        """
        place = self._enter(id, prefix=replays.PATCH)
        is_past = self._journal.is_past(place.scope)

        def tool() -> Tool:
            return (yield Write(lambda: self._journal.patch(place.key, is_past)))

        is_new: bool = self._driver.drive(place, tool)
        return is_new

    @property
    def is_replaying(self) -> bool:
        """Whether the calling code was executed by an earlier slice, and is replayed now.

        A step's function never is. For code that is to tell of itself once: `Run.logger` asks this.
        """
        return not scopes.inside() and self._journal.is_past(self._driver.scope)

    @property
    def idempotency_key(self) -> str:
        """Inside a step's function: a key that is the same each time this step of this run is tried.

        Raises:
            InvalidOption: read outside a step's function.
        """
        if not scopes.inside():
            raise InvalidOption("step.idempotency_key is read inside the function of a step.run")
        return f"{self._journal.claim.run_id}:{scopes.inside()}"
