"""How a tool begins and ends, whatever it does.

It may be called here, it has its place, and so its key; then its record answers it, or it is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from durable_flows.engine import scopes
from durable_flows.engine.arguments import check_step_id
from durable_flows.engine.deferred import Driver
from durable_flows.engine.history import Recorded
from durable_flows.engine.journal import Journal
from durable_flows.engine.sagas import Remedies
from durable_flows.engine.scopes import Place, Tool, Write
from durable_flows.errors import NestedStep, StepInTransaction
from durable_flows.rules.backoff import Retries
from durable_flows.rules.states import ACTIONS, StepKind, StepState

#: Steps of these kinds come to what a function or a handler has returned.
_RESULTS = (StepKind.RUN, StepKind.INVOKE, StepKind.MAP)


class Tools:
    """What tools of every kind share.

    Args:
        journal: of the slice.
        retries: the flow's policy.
        driver: does what the tools want done.
        remedies: learns how the steps of sagas are undone.
    """

    def __init__(
        self,
        journal: Journal,
        retries: Retries,
        driver: Driver,
        remedies: Remedies | None = None,
    ) -> None:
        self._journal = journal
        self._retries = retries
        self._driver = driver
        self._remedies = Remedies(journal) if remedies is None else remedies

    def _enter(self, id: str, *, prefix: str = "") -> Place:
        """Check that a step may be called here, and give it its place."""
        self._driver.check()
        if scopes.inside():
            raise NestedStep(
                f"step {id!r} is called inside the function of step {scopes.inside()!r}; call it from "
                "the handler, after that step, and pass results along"
            )
        if self._journal.in_transaction():
            raise StepInTransaction(
                f"step {id!r} is called inside an atomic() block that the handler opened: its result "
                "could be rolled back after it was reported; move the block into a step's function"
            )
        check_step_id(id)
        return self._take(prefix + id)

    def _take(self, id: str) -> Place:
        place = self._driver.scope.take(id)
        if self._journal.replay is not None:
            self._journal.replay.meet(place.key)
        return place

    def _step(self, place: Place, execute: Callable[[], Tool], kind: StepKind | None = None) -> Any:
        """A step that has a result or a failure: recorded, or executed now."""

        return self._driver.drive(place, lambda: self._tool(place, execute, kind))

    def _tool(
        self, place: Place, execute: Callable[[], Tool], kind: StepKind | None = None
    ) -> Tool:
        recorded = yield Write(lambda: self._journal.begin(place.key, kind))
        if recorded is None:
            recorded = yield from execute()
        self._see(place, recorded)
        if recorded.state == StepState.FAILED:
            raise (yield from self._failure(recorded))
        if recorded.kind in _RESULTS and not self._journal.values.is_at_hand(recorded):
            return (yield Write(lambda: self._journal.read(recorded)))
        return recorded.value

    def _failure(self, recorded: Recorded) -> Tool:
        """The error of a step that has failed."""
        if self._journal.values.are_bare:
            return self._journal.values.failure(recorded)
        return (yield Write(lambda: self._journal.failure(recorded)))

    def _see(self, place: Place, recorded: Recorded) -> None:
        """The line of the handler has come to this step."""
        place.scope.last_key = place.key
        if recorded.kind in ACTIONS:
            place.scope.looking.acted(place.began, recorded.mark)
