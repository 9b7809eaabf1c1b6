"""Routes events: who starts, who resumes, who is cancelled.

One router at a time, in two transactions. The first numbers the events and admits runs; everything in
it is keyed, so that doing it again adds nothing. The second, which sees what the first committed and
whatever slices have committed meanwhile, offers the events to the waits, cancels, retries, and marks
them routed. A router that dies between the two leaves events that are numbered but not routed: the
next one does both again, with the same numbers.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from durable_flows import conf
from durable_flows.engine import (
    admit,
    cancel,
    clocksync,
    failpoints,
    ring,
    settle,
    signatures,
    sql,
    stored,
)
from durable_flows.engine.stored import Routed
from durable_flows.errors import IllegalTransition, UnknownRun
from durable_flows.models import Event, EventMatch
from durable_flows.registry import registry
from durable_flows.rules import clock, events

logger = logging.getLogger(__name__)

LOCK = 0x646C6F77  # "dlow": the advisory lock of the one router


@dataclass(slots=True)
class Routing:
    """What has been routed: how many events, and on which queues there is something to do now."""

    events: int = 0
    queues: set[str] = field(default_factory=set)


def route() -> Routing:
    """Route everything that is to be routed now.

    Rings for the queues on which there is something to do, but for those that this worker serves
    itself: its task goes on to drain them. Leaves at once if another router is at work: after each
    batch that one looks for more.
    """
    clocksync.synchronise()
    done = Routing()
    while (new_runs := _admit_batch(done)) is not None:
        failpoints.reach("between_routing_transactions")
        if not _settle_batch(done, new_runs):
            break
    for queue in done.queues - ring.served():
        ring.drain(queue)
    return done


def _admit_batch(done: Routing) -> list[uuid.UUID] | None:
    """The first transaction. None: nothing to do, or another router does it."""
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return None
        batch = stored.unrouted("true", now=clock.now(), most=conf.settings().ROUTE_BATCH)
        if not batch:
            return None
        batch = _number(batch)
        starts = _starts(batch)
        _backfill(signatures.write(admit.cancel_signatures(starts)), starts)
        _note_matches(batch, signatures.read({event.name for event in batch}))
        new_runs = admit.start_runs(starts)
    done.queues |= {start.queue for start in starts}
    return new_runs


def _settle_batch(done: Routing, new_runs: Sequence[uuid.UUID]) -> bool:
    """The second transaction: anew, what is numbered and not routed. False: another router does it."""
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return False
        batch = stored.unrouted(
            "e.routed IS NOT NULL", now=clock.now(), most=conf.settings().ROUTE_BATCH
        )
        refused = _obey([event for event in batch if event.name in _COMMANDS])
        queues, hits = settle.offer(batch)
        hits += settle.look_back_for_cancels(new_runs)
        settle.end_cancel_waits(hits)
        cancel.ask({hit.run_id: f"event {hit.event.name} {hit.event_id}" for hit in reversed(hits)})
        _mark_routed(batch, refused)
        failpoints.reach("before_routed_commit")
    done.events += len(batch)
    done.queues |= queues
    return True


def _number(batch: Sequence[Routed]) -> list[Routed]:
    """Give events their numbers in the order of routing.

    The numbers are drawn after the events were read: whatever was committed before a slice noted the
    counter, and is routed, has a number below; whatever was committed later gets one above.
    """
    new = [event for event in batch if not event.routed]
    numbers = dict(zip((event.id for event in new), sql.draw("routed", len(new)), strict=True))
    source, columns = sql.table(Event, "t", {"id": list(numbers), "routed": list(numbers.values())})
    sql.execute(
        f"UPDATE durable_flows_event SET routed = t.routed FROM {source} "
        "WHERE durable_flows_event.id = t.id",
        columns,
    )
    return [replace(event, routed=numbers.get(event.id, event.routed)) for event in batch]


def _starts(batch: Sequence[Routed]) -> list[admit.Start]:
    """The runs that events ask for, in order."""
    default_queue = ring.default_queue()
    return [
        admit.Start.of(flow_id, event, default_queue)
        for event in batch
        for flow_id in _flows_of(event)
    ]


def _flows_of(event: Routed) -> list[str]:
    if event.name == events.START:
        return [event.target]
    return [flow.id for flow in registry.listening(event.name)]


def _note_matches(batch: Sequence[Routed], in_use: signatures.Signatures) -> None:
    """Write what the events match, for waits that will look back."""
    rows = [
        (match, event.routed, event.id)
        for event in batch
        if event.name in in_use
        for match in signatures.hashes_of(event.event, in_use)
    ]
    sql.insert(
        EventMatch,
        {
            "match": [row[0] for row in rows],
            "routed": [row[1] for row in rows],
            "event_id": [row[2] for row in rows],
        },
    )


def _backfill(new: signatures.Signatures, starts: Sequence[admit.Start]) -> None:
    """Match, by signatures that cancel rules use for the first time, what may cancel these runs.

    Only what arrived after a trigger and was routed before it: a trigger that was long in coming.
    """
    if new:
        since = min(start.trigger.mark for start in starts)
        _note_matches(stored.routed_since(since, list(new)), new)


_COMMANDS = frozenset({events.CANCEL, events.RETRY})


def _obey(commands: Sequence[Routed]) -> dict[uuid.UUID, str]:
    """Carry commands out, in order. Returns event → why it was refused."""
    refused = {}
    for command in commands:
        try:
            _obey_one(command)
        except (IllegalTransition, UnknownRun) as error:
            refused[command.id] = str(error)
            logger.warning("command %s %s was refused: %s", command.name, command.id, error)
    return refused


def _obey_one(command: Routed) -> None:
    run_id = uuid.UUID(command.target)
    if command.name == events.CANCEL:
        cancel.ask({run_id: command.event.data.get("reason") or f"command {command.id}"})
    else:
        admit.go_on(run_id, command)


def _mark_routed(batch: Sequence[Routed], refused: Mapping[uuid.UUID, str]) -> None:
    sql.execute(
        "UPDATE durable_flows_event SET routed_at = %(now)s::timestamptz "
        f"WHERE {sql.among('id', 'ids')}",
        {"now": clock.now(), "ids": [event.id for event in batch]},
    )
    for event_id, error in refused.items():
        sql.execute(
            "UPDATE durable_flows_event SET error = %(error)s WHERE id = %(id)s",
            {"id": event_id, "error": error},
        )
