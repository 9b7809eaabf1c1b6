"""``step.parallel`` and ``step.race``: branches that go on beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from durable_flows.engine.arguments import check_most
from durable_flows.engine.deferred import Deferred, Held, Later
from durable_flows.engine.groups import Group
from durable_flows.engine.scopes import Branch, Place, Scope
from durable_flows.engine.tools.entry import Tools
from durable_flows.errors import InvalidOption

MAX_IN_FLIGHT = 32  # branches of a group that execute at once


class Branches(Tools):
    """The tools that let the handler's line part, and meet again."""

    def parallel(
        self,
        *branches: Callable[[], Any],
        max_in_flight: int = MAX_IN_FLIGHT,
        on_error: Literal["wait", "stop"] = "wait",
    ) -> list[Any]:
        """Execute branches beside each other, and wait for all of them.

        Each may have several steps, sleep and wait. The keys of its steps begin with its place,
        ``parallel[0]/``; a branch made by `later` is one step of this line, and keeps its own.

        Args:
            branches: callables without arguments, or ``step.later.run("mail", mail, to)`` and the like.
            max_in_flight: how many may execute at once; those that sleep or wait do not count.
            on_error: ``"wait"`` for the others before an error is raised, or ``"stop"``: raise it at
                once, close the waits of the others, and begin nothing more in them.

        Returns:
            Their results, in the order of the branches.

        Raises:
            Exception: what a branch raised; with ``"wait"`` that of the first of them, by place.
            InvalidOption: an argument is wrong.
        """
        check_most("step.parallel()", "max_in_flight", max_in_flight)
        if on_error not in ("wait", "stop"):
            raise InvalidOption(f"step.parallel(): on_error= is 'wait' or 'stop', not {on_error!r}")
        place = self._enter("parallel")
        group = Group(self._journal, place, self._branches(place, branches))
        together = group.all if on_error == "wait" else group.all_or_stop
        results: list[Any] = self._driver.drive(place, lambda: together(max_in_flight))
        return results

    def race(self, *branches: Callable[[], Any]) -> Any:
        """Execute branches beside each other until the first of them has ended.

        The waits of the others are closed in the commit that records who has won, and they begin no
        further step. What one of them does just then may go on to its end; nobody waits for it.

        Args:
            branches: as for `parallel`; at least one.

        Returns:
            The winner's result.

        Raises:
            Exception: what the winner raised.
            InvalidOption: there is no branch, or one is not callable.
        """
        if not branches:
            raise InvalidOption("step.race() needs at least one branch: nobody could win")
        place = self._enter("race")
        group = Group(self._journal, place, self._branches(place, branches))
        return self._driver.drive(place, group.first)

    @property
    def later(self) -> Later:
        """The same tools, to be called by `parallel` and `race`: ``step.later.run("mail", mail, to)``."""
        return Later()

    def _branches(self, place: Place, given: Sequence[Callable[[], Any]]) -> list[Branch]:
        return [self._branch(place, number, one) for number, one in enumerate(given)]

    def _branch(self, place: Place, number: int, given: Callable[[], Any]) -> Branch:
        if isinstance(given, Deferred):
            return self._deferred(place, given)
        if not callable(given):
            raise InvalidOption(
                f"a branch is a callable without arguments, or step.later.run(…), not {given!r}; "
                "a plain step.run(…) has been executed before its result gets here"
            )
        path, looking = f"{place.key}[{number}]/", place.scope.looking.branch()
        return Branch(path, given, lambda: Scope(path, looking.branch(), parent=place.scope))

    def _deferred(self, place: Place, given: Deferred) -> Branch:
        """A branch that is one step: it has its place in this line, by the order of the branches."""
        held = Held(self._driver)
        given.call(type(self)(self._journal, self._retries, held))
        return Branch(held.place.key, held.drive_now, place.scope.step)
