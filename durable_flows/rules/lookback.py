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
    """Follows a handler through its journal and knows where a wait at this point begins to look."""

    def __init__(self, trigger_mark: int) -> None:
        self.trigger = Position(trigger_mark)
        self.latest = self.trigger  # of the last journal entry
        self.eligible = self.trigger  # from where the next wait looks

    def acted(self, mark: int) -> None:
        """An action was recorded: waits after it look back to the entry before it."""
        self.eligible = self.latest
        self.latest = Position(mark)

    def slept(self, mark: int, until: datetime) -> None:
        """A sleep has passed that was recorded at ``mark``: from its end on."""
        self.latest = self.eligible = Position(mark, until)

    def waited(self, mark: int) -> None:
        """A wait has ended: it moves nothing, so that waits in a row miss nothing."""
        self.latest = Position(mark)
