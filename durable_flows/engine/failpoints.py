"""Named places at which a worker may be made to end as if it had been killed.

A developer's tool: with ``DURABLE_FLOWS_FAILPOINT=step_ran:3`` in its environment a process kills
itself (SIGKILL: nothing is cleaned up) when it comes to that place for the third time. Without the
variable a place costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from durable_flows.errors import InvalidSetting

VARIABLE = "DURABLE_FLOWS_FAILPOINT"

#: Every place, roughly in the order in which a run comes to them.
PLACES = frozenset(
    {
        # routing, first transaction
        "events_numbered",
        "events_withdrawn",
        "history_taken_over",
        "runs_admitted",
        "between_routing_transactions",
        # routing, second transaction
        "looked_back_for_cancels",
        "command_obeyed",
        "waits_resumed",
        "children_settled",
        "before_routed_commit",
        "batch_routed",
        "before_quarantine",
        "between_pieces",
        # claim
        "claimed",
        "claim_read",
        "histories_read",
        "deadline_noted",
        # journal
        "step_ran",
        "step_recorded",
        "attempt_recorded",
        "before_send_commit",
        "before_atomic_commit",
        "before_race_commit",
        # waits
        "signature_written",
        "wait_registered",
        "looked_back",
        "before_timeout",
        "before_settle_commit",
        "wait_settled",
        # invoked runs
        "before_invoke_commit",
        "before_map_commit",
        "map_advanced",
        "invoke_registered",
        "before_child_settled",
        "ends_told",
        "children_cancelled",
        # events about ends
        "ends_announced",
        "ends_made_up_for",
        # putting away
        "before_suspend",
        "suspended",
        "before_hand_back",
        "handed_back",
        "before_give_back",
        "given_back",
        "before_end",
        "before_end_commit",
        "ends_written",
        # housekeeping
        "tick_taken",
        "before_bulk_commit",
        "bulk_carried_on",
        "before_deadlines_commit",
        "floor_kept",
        "unparked",
        "purge_taken",
        "before_purge_commit",
        "purged",
    }
)


class Killed(BaseException):
    """Raised by a trap to end the worker here."""


Trap = Callable[[str, str], None]


def reach(place: str, detail: str = "") -> None:
    """The engine has come to ``place``."""
    if trap is not None:
        trap(place, detail)


def from_environment(text: str) -> Trap | None:
    """The trap that a value of the variable asks for; none if it is empty.

    Raises:
        InvalidSetting: it names no place, or no number.
    """
    if not text:
        return None
    place, _, number = text.partition(":")
    if place not in PLACES:
        raise InvalidSetting(
            f"{VARIABLE}={text!r}: the engine has no place {place!r}; it has "
            f"{', '.join(sorted(PLACES))}"
        )
    if not (number.isascii() and number.isdecimal() and int(number) > 0):
        raise InvalidSetting(
            f"{VARIABLE}={text!r}: after the place comes a colon and the number of the visit at which "
            f"the process ends, from 1 on, as in {place}:1"
        )
    return _kill_at(place, int(number))


def _kill_at(place: str, visit: int) -> Trap:
    lock = threading.Lock()
    left = visit

    def trap(reached: str, detail: str) -> None:
        nonlocal left
        if reached != place:
            return
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return trap


#: Called with the name of the place and what it is about, e.g. ``("step_ran", "charge")``.
trap: Trap | None = from_environment(os.environ.get(VARIABLE, ""))
