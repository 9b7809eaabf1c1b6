"""Sagas: steps that are undone, in reverse order, if the run fails or is cancelled.

That a step is going to be tried is recorded before it is: its intent. What has an intent is undone, also
where nobody knows what came of it. What is to be undone, and how, is learnt by replaying the handler,
which begins no new step then; that undoing has begun, and why, is a step of its own, so that it is gone
on with after a crash, whatever the handler would do now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable_flows.engine.journal import Journal
from durable_flows.engine.scopes import Place, Scope, Tool, Write
from durable_flows.errors import InvalidOption, StepError, UndoFailed
from durable_flows.rules.backoff import Retries
from durable_flows.rules.replays import INTENT, UNDO
from durable_flows.rules.states import StepKind

UNDOING = "saga#undo"  # the step that says that undoing has begun

#: Executes a function as a step, or finds that it has been.
Perform = Callable[[Place, Callable[[], Any], Retries, bool], Tool]


@dataclass(frozen=True, slots=True)
class Remedy:
    """How a step is undone.

    Attributes:
        undo: called with the step's result, and its own arguments.
        args, kwargs: those.
        retries: the policy of undoing.
        atomic: whether it is undone in one transaction with its record.
    """

    undo: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    retries: Retries
    atomic: bool


class Remedies:
    """What the handler, as far as it was replayed, has said about how its steps are undone."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[str, Remedy] = {}

    def note(self, key: str, remedy: Remedy) -> None:
        """The step of this key would be undone so."""
        if not callable(remedy.undo):
            raise InvalidOption(
                f"saga step {key!r}: undo= is a function of the step's result and arguments, not "
                f"{remedy.undo!r}"
            )
        self._known[key] = remedy

    @property
    def is_complete(self) -> bool:
        """Whether it is known how everything is undone that is to be."""
        return all(key in self._known for key in self._left())

    def intend(self, key: str) -> None:
        """Record that a step is going to be tried."""
        if self._journal.find(key + INTENT) is None:
            self._journal.record(key + INTENT, StepKind.INTENT)

    def undo_all(self, scope: Scope, perform: Perform) -> Tool:
        """Undo whatever has an intent, the last first.

        Args:
            scope: the line in which that is done.
            perform: does one.

        Returns:
            What could not be undone: step → why.
        """
        failed: dict[str, str] = {}
        for key in self._left():
            remedy = self._known.get(key)
            if remedy is None:
                failed[key] = "the handler does not come to it any more, so nobody knows how"
                continue
            place = Place(key + UNDO, scope, scope.looking.latest)
            result = yield from self._result(key)
            work = partial(remedy.undo, result, *remedy.args, **remedy.kwargs)
            try:
                yield from perform(place, work, remedy.retries, remedy.atomic)
            except StepError as error:
                failed[key] = self._journal.values.told(error, key + UNDO)
        yield Write(partial(self._warn, failed))
        return failed

    def give_up(self, why: str) -> dict[str, str]:
        """Undo nothing more. Returns what is not undone: step → why."""
        failed = dict.fromkeys(self._left(), why)
        self._warn(failed)
        return failed

    def _warn(self, failed: Mapping[str, str]) -> None:
        for key, why in failed.items():
            self._journal.warn(key + UNDO, f"not undone: {why}")

    def _left(self) -> list[str]:
        """The steps that are to be undone and are not yet, the last first."""
        intended = [key.removesuffix(INTENT) for key in reversed(self._journal.intents)]
        return [key for key in intended if not self._journal.is_done(key + UNDO)]

    def _result(self, key: str) -> Tool:
        """What a step returned; None where that is not known, or it failed: then it has no value."""
        recorded = self._journal.find(key)
        if recorded is None:
            return None
        return (yield Write(lambda: self._journal.read(recorded)))


def not_undone(failed: Mapping[str, str], reason: str) -> UndoFailed:
    """The error of a run of which not everything could be undone."""
    listed = "; ".join(f"{key!r} ({why})" for key, why in failed.items())
    return UndoFailed(f"not undone: {listed}; the run had failed: {reason}")
