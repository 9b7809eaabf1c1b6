"""How far back a wait looks.

A flow that acts and then waits for the reply must not miss a reply that was faster than its wait. So a
wait sees every event since before the last action of its flow: since the position noted in the journal
entry *before* that action, or in the routing of the trigger if there is none. The position is a value
of the routing counter, so that no two machines' clocks are compared. A sleep means "from then on".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the order of routing; after a sleep also the earliest moment of routing."""

    mark: int
    since: datetime | None = None


class LookBack:
    """Follows a handler, or a branch of it, through its journal and knows where a wait begins to look.

    Attributes:
        trigger: the routing of the run's own event.
        latest: the last journal entry.
        eligible: from where the next wait looks.
        has_acted: whether this branch has recorded an action.
    """

    def __init__(self, trigger_mark: int, since: int | None = None) -> None:
        """Begin at the trigger, or at that of the run whose first steps this one has taken over."""
        self.trigger = Position(trigger_mark)
        self.latest = self.eligible = self.trigger if since is None else Position(since)
        self.has_acted = False

    def branch(self) -> LookBack:
        """That of a branch which begins here."""
        found = LookBack(self.trigger.mark)
        found.latest, found.eligible = self.latest, self.eligible
        return found

    def acted(self, began: Position, mark: int) -> None:
        """An action was recorded that began at ``began``: waits after it look back to there.

        Another entry since then is of an action that went on at the same time: the reply to the one that
        began first must not be missed either. Actions that were taken over lie before the trigger; the
        run's own look back to there at most: a reply to another run's action is none to them.
        """
        self.has_acted = True
        if began.mark < self.trigger.mark <= mark:
            began = self.trigger
        elif began is self.latest:  # as a rule
            self.eligible, self.latest = began, Position(mark)
            return
        alone = began.mark >= self.latest.mark
        self.eligible = began if alone else min(self.eligible, began, key=_mark)
        self.latest = max(self.latest, Position(mark), key=_mark)

    def slept(self, mark: int, until: datetime) -> None:
        """A sleep has passed that was recorded at ``mark``: from its end on."""
        self.latest = self.eligible = Position(mark, until)

    def waited(self, mark: int) -> None:
        """A wait has ended: it moves nothing, so that waits in a row miss nothing."""
        self.latest = max(self.latest, Position(mark), key=_mark)

    def joined(self, branch: LookBack, began: Position) -> None:
        """A branch that began at ``began`` has ended: as one action, if it has acted."""
        if branch.has_acted:
            self.acted(began, branch.latest.mark)
        else:
            self.waited(branch.latest.mark)


def _mark(position: Position) -> int:
    return position.mark
