"""What is noted about a run for those who wonder why it does not do what they thought."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from durable_flows.engine import sql
from durable_flows.models import RunWarning
from durable_flows.rules import clock

PARKED = "parked"  # what a warning is about that says why no process can execute a run

ORDER = "order of steps"  # and of one that says how the code fits what is recorded no more
LEFT_BEHIND = "left behind"  # and of one that says that a branch was not waited for


def warn(warnings: Mapping[tuple[uuid.UUID, str], str]) -> None:
    """Note warnings: (run, what it is about) → message. The first about anything stands.

    Whoever holds locks notes last: two may note the same, and one waits for the other.
    """
    rows = sorted(warnings.items())
    now = clock.now()
    sql.insert(
        RunWarning,
        {
            "run_id": [run_id for (run_id, _), _ in rows],
            "about": [about for (_, about), _ in rows],
            "message": [message for _, message in rows],
            "warned_at": [now] * len(rows),
        },
    )


def cancel_rule(number: int | str) -> str:
    """How a warning names one of a flow's cancel rules."""
    return f"cancel_on[{number}]"


def unknown_flow(flow_id: str) -> str:
    """What a run waits for is to be done by a flow that no process knows."""
    return (
        f"UnknownFlow: no worker that is alive has a flow {flow_id!r} in its code. What was asked for "
        "waits until one has; if its id is misspelt, cancel this run, mend the code and rerun it"
    )


def nothing_matches(event_name: str, missing: Sequence[str]) -> str:
    """A condition compares with a value that the run's own event does not have."""
    return (
        f"the run's own event {event_name!r} has no value at {', '.join(missing)}: "
        "no event can ever match"
    )
