"""Groups of branches: all of them, or the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from durable_flows.engine.journal import Journal
from durable_flows.engine.scopes import Branch, Ends, Place, Together, Tool, Write
from durable_flows.errors import BranchGone, StepError
from durable_flows.rules.states import StepKind


@dataclass(frozen=True, slots=True)
class Group:
    """Branches that go on beside each other.

    Attributes:
        journal: of the slice.
        place: where in the handler they part and meet again.
        branches: by their numbers.
    """

    journal: Journal
    place: Place
    branches: Sequence[Branch]

    def all(self, most: int) -> Tool:
        """The results of all, by number; the first error, by number."""
        ends = yield self._together(most, lambda ends: len(ends) == len(self.branches))
        return self._results(ends)

    def all_or_stop(self, most: int) -> Tool:
        """The results of all; the first error, by time, and no more of the others."""

        def is_enough(ends: Ends) -> bool:
            return len(ends) == len(self.branches) or _failed(ends) is not None

        number = yield Write(self._decided)
        if number is not None:
            return (yield from self._once_more(number))
        ends = yield self._together(most, is_enough)
        number = _failed(ends)
        if number is None:
            return self._results(ends)
        return (yield from self._decide(number, ends))

    def first(self) -> Tool:
        """The end of the first, and no more of the others."""
        number = yield Write(self._decided)
        if number is not None:
            return (yield from self._once_more(number))
        ends = yield self._together(len(self.branches), bool)
        return (yield from self._decide(next(iter(ends)), ends))

    def _together(self, most: int, is_enough: Callable[[Ends], bool]) -> Together:
        return Together(self.branches, most, is_enough, recalls=self.journal.recalls)

    def _results(self, ends: Ends) -> list[object]:
        self._join(ends)
        return [ends[number].get() for number in range(len(self.branches))]

    def _decided(self) -> int | None:
        """Which branch has decided the group, if one has."""
        recorded = self.journal.begin(self.place.key, StepKind.RACE)
        if recorded is None:
            return None
        number: int = recorded.value["branch"]
        if number >= len(self.branches):
            raise BranchGone(
                f"{self.place.key!r} was decided by its branch {number}, and the code has "
                f"{len(self.branches)} branches now; deploy the code that this run began with, or "
                "rerun it"
            )
        return number

    def _decide(self, number: int, ends: Ends) -> Tool:
        """Record which branch decides, and close what the others wait for.

        What is no step's failure may go otherwise the next time: it is not recorded.
        """
        self.journal.decided(self.place.key)
        error = ends[number].error
        if error is None or isinstance(error, StepError):
            yield Write(lambda: self.journal.decide(self.place.key, number, self._others(number)))
        self._join(ends)
        return ends[number].get()

    def _others(self, number: int) -> list[Branch]:
        return [branch for branch in self.branches if branch is not self.branches[number]]

    def _once_more(self, number: int) -> Tool:
        """The end of the branch that has decided, from its records.

        The others are not played, unless what they have done is to be undone.
        """
        self.journal.decided(self.place.key)
        if self.journal.recalls:
            ends = yield self._together(len(self.branches), lambda ends: number in ends)
            return ends[number].get()
        ends = yield Together([self.branches[number]], 1, bool)
        self._join(ends)
        return ends[0].get()

    def _join(self, ends: Ends) -> None:
        """The branches meet again: waits look back to before them if they have acted."""
        scope = self.place.scope
        for _, end in sorted(ends.items()):
            if end.scope.looking is not scope.looking:
                scope.looking.joined(end.scope.looking, self.place.began)
        scope.last_key = self.place.key


def _failed(ends: Ends) -> int | None:
    return next((number for number, end in ends.items() if end.error is not None), None)
