"""Carries out what commands ask of runs and events, inside the router's second transaction."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from durable_flows.engine import admit, bulk, cancel, failpoints, skip, withdraw
from durable_flows.engine.stored import Routed
from durable_flows.errors import (
    AlreadyDelivered,
    BulkActionOver,
    IllegalTransition,
    NotWaiting,
    RunHasEnded,
    UnknownBulkAction,
    UnknownEvent,
    UnknownRun,
)
from durable_flows.rules import events

logger = logging.getLogger(__name__)

REFUSALS = (
    AlreadyDelivered,
    BulkActionOver,
    IllegalTransition,
    NotWaiting,
    RunHasEnded,
    UnknownBulkAction,
    UnknownEvent,
    UnknownRun,
)


@dataclass(slots=True)
class Obeyed:
    """What came of commands.

    Attributes:
        retried: the runs that go on.
        skipped: the runs that are to be woken.
        refused: command → why it was not carried out.
    """

    retried: list[uuid.UUID] = field(default_factory=list)
    skipped: list[uuid.UUID] = field(default_factory=list)
    refused: dict[uuid.UUID, str] = field(default_factory=dict)


def commands(batch: Iterable[Routed]) -> list[Routed]:
    """Those of these events that ask for something which is done here."""
    return [event for event in batch if event.name in _OBEY]


def is_late(command: Routed) -> bool:
    """Whether it is carried out when events have ended waits: an event is worth more than a skip."""
    return command.name == events.SKIP


def targets(asked: Sequence[Routed]) -> set[uuid.UUID]:
    """The runs concerned, whose due rows are to be locked."""
    return {_target(command) for command in asked if command.name in _LOCKING}


def obey(asked: Sequence[Routed]) -> Obeyed:
    """Carry commands out, in order; the due rows of their runs are locked."""
    done = Obeyed()
    for command in asked:
        try:
            _OBEY[command.name](command, done)
            failpoints.reach("command_obeyed", command.name)
        except REFUSALS as error:
            done.refused[command.id] = str(error)
            logger.warning("command %s %s was refused: %s", command.name, command.id, error)
    return done


def _cancel(command: Routed, done: Obeyed) -> None:
    cancel.ask({_target(command): command.event.data.get("reason") or f"command {command.id}"})


def _retry(command: Routed, done: Obeyed) -> None:
    admit.go_on(_target(command), command)
    done.retried.append(_target(command))


def _rerun(command: Routed, done: Obeyed) -> None:
    admit.check_rerun(command)  # the first transaction has started it


def _skip(command: Routed, done: Obeyed) -> None:
    skip.cut_short(_target(command), command.event.data["step"])
    done.skipped.append(_target(command))


def _withdraw(command: Routed, done: Obeyed) -> None:
    withdraw.check(_target(command))  # the first transaction has taken it back


def _begin_bulk(command: Routed, done: Obeyed) -> None:
    bulk.begin(command.id)


def _stop_bulk(command: Routed, done: Obeyed) -> None:
    bulk.stop(_target(command))


def _target(command: Routed) -> uuid.UUID:
    return uuid.UUID(command.target)


_OBEY: dict[str, Callable[[Routed, Obeyed], None]] = {
    events.CANCEL: _cancel,
    events.RETRY: _retry,
    events.RERUN: _rerun,
    events.SKIP: _skip,
    events.WITHDRAW: _withdraw,
    events.BEGIN_BULK: _begin_bulk,
    events.STOP_BULK: _stop_bulk,
}
_LOCKING = frozenset({events.CANCEL, events.RETRY, events.SKIP})
