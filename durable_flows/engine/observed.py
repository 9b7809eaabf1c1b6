"""Tells those who observe what has happened, once it is committed.

Whoever listens is user code, and no part of what the engine does: it may fail, or be slow, and changes
nothing but the time. Nobody is told twice by a process; what a process that dies has not told, nobody is
told. Callers look whether anybody listens (``if signals.run_ended.receivers:``) before they make up facts.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

from django.dispatch import Signal

from durable_flows import models, signals
from durable_flows.engine import sql
from durable_flows.engine.history import Claim, Recorded
from durable_flows.engine.senders import Sender, sending_as
from durable_flows.rules import causality, clock
from durable_flows.rules.states import StepKind

logger = logging.getLogger(__name__)

Facts = Mapping[str, Any]

#: The steps of which it is told; others are marks of the engine's own. A sleep is recorded as it begins.
_STEPS = frozenset({StepKind.RUN, StepKind.SEND, StepKind.WAIT, StepKind.INVOKE, StepKind.MAP})


def tell(
    signal: Signal,
    sender: type[Any],
    happened: Iterable[Facts],
    *,
    around: Callable[[Facts], AbstractContextManager[None]] = lambda facts: nullcontext(),
) -> None:
    """Tell all who listen of what has happened, when the open transaction is committed.

    Args:
        signal: which they listen to.
        sender: the model of what it is about.
        happened: one call of each receiver for each.
        around: in which it is called.
    """
    told = list(happened)
    if told:
        sql.on_commit(lambda: _tell(signal, sender, told, around))


def _tell(
    signal: Signal,
    sender: type[Any],
    told: Sequence[Facts],
    around: Callable[[Facts], AbstractContextManager[None]],
) -> None:
    for facts in told:
        try:
            with around(facts):
                signal.send_robust(
                    sender, **facts
                )  # which logs what a receiver raises, and its name
        except (Exception, SystemExit):
            logger.exception("not all could be told of %s", facts)


def events(
    stored: Iterable[tuple[uuid.UUID, str, uuid.UUID | None, datetime]], received_at: datetime
) -> None:
    """These events are stored: each by id, name, the run that has sent it, and delivery time."""
    tell(
        signals.event_received,
        models.Event,
        (
            {
                "event_id": str(event_id),
                "name": name,
                "run_id": str(run_id or ""),
                "received_at": received_at,
                "deliver_at": deliver_at,
            }
            for event_id, name, run_id, deliver_at in stored
        ),
    )


def starts(claims: Iterable[Claim]) -> None:
    """These runs begin."""
    begun = {str(claimed.run_id): claimed for claimed in claims}
    tell(
        signals.run_started,
        models.Run,
        (
            {
                "run_id": run_id,
                "flow": claimed.flow_id,
                "version": claimed.version,
                "generation": claimed.generation,
                "queue": claimed.queue,
                "event_id": str(claimed.event_id),
                "created_at": claimed.created_at,
            }
            for run_id, claimed in begun.items()
        ),
        around=lambda facts: sending_as(_sender(begun[facts["run_id"]])),
    )


def _sender(claimed: Claim) -> Sender:
    """A run that begins, as whoever sends what its observers send."""
    depth = causality.depth_of_sent(claimed.depth, since=claimed.created_at, now=clock.now())
    return Sender(
        run_id=claimed.run_id,
        depth=depth,
        subject=claimed.subject,
        context=claimed.event.context,
    )


def step(claimed: Claim, recorded: Recorded, attempt: int) -> None:
    """This step is recorded."""
    if recorded.kind not in _STEPS:
        return
    facts = {
        "run_id": str(claimed.run_id),
        "flow": claimed.flow_id,
        "generation": claimed.generation,
        "step": recorded.key,
        "kind": str(recorded.kind),
        "state": str(recorded.state),
        "attempt": attempt,
    }
    tell(signals.step_finished, models.Step, [facts])
