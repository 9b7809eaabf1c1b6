"""Signals: events for the one step that waits for a name.

A signal is a command, addressed to its name. It ends the wait as any event does; what is particular is
that one step waits for a name at a time, which a unique index sees to, that one step gets it, whichever
run that belongs to, and that it is kept for whoever comes, until it expires.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from durable_flows.engine import ingest, keeping
from durable_flows.engine.history import Claim, Waiting
from durable_flows.errors import InvalidEvent
from durable_flows.rules import clock, events, keys, signals, values
from durable_flows.rules.options import longest_wait
from durable_flows.rules.values import Object

KEPT = "1 day"


def send_signal(
    name: str,
    data: Object | None = None,
    *,
    expires: str | float | timedelta = KEPT,
    id: str | None = None,
) -> str:
    """Send a signal to the step that waits for this name, or will; joins the caller's transaction.

    Args:
        name: 1 to 200 printable characters.
        data: a JSON object for the step.
        expires: how long it is kept for a step that does not wait yet; at most 366 days.
        id: your own id for it; of several signals of one name and one id only the first is kept.

    Returns:
        The signal's id; for a repeated ``id`` that of the first.

    Raises:
        InvalidOption: ``name`` cannot be read.
        InvalidDuration: ``expires`` cannot be read.
        InvalidEvent: ``data`` or ``id`` cannot be stored.
    """
    what = f"send_signal({name!r})"
    signals.check_name(name, what)
    now = clock.now()
    until = now + longest_wait(expires, what=f"{what}, expires=")
    carried = keeping.said(_checked({} if data is None else data), name)
    said = signals.carried(name, carried, sent_at=now, until=until)
    try:
        return str(ingest.command(events.SIGNALLED, name, said, key=id))
    except InvalidEvent as error:  # the sender knows nothing of the command around it
        pointer = error.pointer.replace("/data/data", "/data", 1)
        raise InvalidEvent(error.problem, pointer=pointer) from error


def _checked(data: object) -> dict[str, Any]:
    """The data of a signal as a dict."""
    found = values.opened(data)
    if not isinstance(found, dict):
        raise InvalidEvent(
            f"the data of a signal are a JSON object, not {type(data).__name__}", pointer="/data"
        )
    return found


def request(claim: Claim, key: str, name: str, patience: timedelta) -> Waiting:
    """The wait of a step for a signal, not yet registered."""
    now = clock.now()
    return Waiting(
        id=keys.wait_id(claim.run_id, key, claim.generation),
        key=key,
        event_name=events.SIGNALLED,
        paths=signals.PATHS,
        criteria=name,
        expression="",
        match=keys.match_hash(events.SIGNALLED, signals.PATHS, [name]),
        eligible_from=0,
        routed_since=None,
        received_since=None,
        created_at=now,
        expires_at=now + patience,
    )
