"""``step.saga``: steps that are undone if the run fails or is cancelled, and their undoing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from durable_flows.engine.arguments import check_flag, check_not_async, policy
from durable_flows.engine.sagas import UNDOING, Remedy
from durable_flows.engine.scopes import Place, Tool, Write
from durable_flows.engine.tools.functions import Functions
from durable_flows.rules.backoff import Retries
from durable_flows.rules.states import StepKind

T = TypeVar("T")


class Sagas(Functions):
    """The tools that know how to undo."""

    def saga(self) -> Saga:
        """Steps that are undone, in reverse order, if the run fails or is cancelled."""
        return Saga(self)

    def _run_in_saga(
        self,
        id: str,
        do: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        undo: Callable[..., Any],
        retries: int | Retries | None,
        atomic: bool | None,
    ) -> Any:
        check_flag(id, "atomic", atomic)
        check_not_async(id, do, atomic)
        check_not_async(id, undo, atomic)
        tried = policy(id, retries, self._retries)
        place = self._enter(id)
        call = self._execute_atomically if atomic else self._execute

        def tool() -> Tool:
            given, named = yield from self._given(place.key, do, args, kwargs)
            self._remedies.note(place.key, Remedy(undo, given, named, tried, bool(atomic)))

            def execute() -> Tool:
                yield Write(lambda: self._remedies.intend(place.key))
                return (yield from call(place.key, partial(do, *given, **named), tried))

            return (yield from self._tool(place, execute, StepKind.RUN))

        return self._driver.drive(place, tool)


class Saga:
    """Steps that are undone if the run fails or is cancelled; made by `Step.saga`."""

    def __init__(self, step: Sagas) -> None:
        self._step = step

    def run(
        self,
        id: str,
        do: Callable[..., T],
        /,
        *args: Any,
        undo: Callable[..., Any],
        retries: int | Retries | None = None,
        atomic: bool | None = None,
        **kwargs: Any,
    ) -> T:
        """As `Step.run`; if the run fails or is cancelled, ``undo`` is a step as well.

        That ``do`` is going to be called is recorded before. Whatever has been recorded so is undone, the
        last first, before the run ends, also if it failed, or died: then nobody knows what came of it.

        Args:
            id: the step's name; that of its undo ends with ``#undo``.
            do: what to do.
            undo: called with the result of ``do``, None where there is none, and with the arguments of
                ``do``. It may be called more than once, like every step's function.
            retries: policy of both, default the flow's.
            atomic: call ``do``, and ``undo`` too, in one transaction with its record.

        Raises:
            StepError, NestedStep, StepInTransaction, InvalidOption: as `Step.run` does.
        """
        result: T = self._step._run_in_saga(id, do, args, kwargs, undo, retries, atomic)
        return result


class Undoing(Functions):
    """The steps that undo what the handler has done."""

    def all(self) -> Any:
        """Undo what has an intent. Returns what could not be undone: step → why."""
        scope = self._driver.scope
        place = Place(UNDOING, scope, scope.looking.latest)
        return self._driver.drive(place, lambda: self._remedies.undo_all(scope, self._one))

    def _one(self, place: Place, work: Callable[[], Any], policy: Retries, atomic: bool) -> Tool:
        call = self._execute_atomically if atomic else self._execute
        return self._tool(place, lambda: call(place.key, work, policy), StepKind.RUN)
