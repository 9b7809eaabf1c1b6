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
from collections.abc import Sequence
from dataclasses import replace

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


def route() -> int:
    """Route everything that is to be routed now. Returns the number of events.

    Leaves at once if another router is at work: after each batch that one looks for more.
    """
    clocksync.synchronise()
    count = 0
    while True:
        new_runs = _admit_batch()
        if new_runs is None:
            return count
        failpoints.reach("between_routing_transactions")
        settled = _settle_batch(new_runs)
        if settled is None:
            return count
        count += settled


def _admit_batch() -> list[uuid.UUID] | None:
    """The first transaction. None: nothing to do, or another router does it."""
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return None
        batch = stored.unrouted("true", now=clock.now(), most=conf.settings().ROUTE_BATCH)
        if not batch:
            return None
        batch = _number(batch)
        starts = [start for event in batch for start in _starts(event)]
        signatures.write(admit.cancel_signatures(starts))
        _note_matches(batch)
        new_runs = admit.start_runs(starts)
        sql.on_commit(lambda: _ring_for(starts))
    return new_runs


def _settle_batch(new_runs: Sequence[uuid.UUID]) -> int | None:
    """The second transaction: anew, what is numbered and not routed. None: another router does it."""
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return None
        batch = stored.unrouted(
            "e.routed IS NOT NULL", now=clock.now(), most=conf.settings().ROUTE_BATCH
        )
        hits = settle.offer(batch) + settle.look_back_for_cancels(new_runs)
        settle.end_cancel_waits(hits)
        cancel.ask({hit.run_id: f"event {hit.event.name} {hit.event_id}" for hit in hits})
        refused = _obey([event for event in batch if event.event.name in _COMMANDS])
        _mark_routed(batch, refused)
        failpoints.reach("before_routed_commit")
    return len(batch)


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


def _starts(event: Routed) -> list[admit.Start]:
    """The runs that an event asks for."""
    if event.event.name == events.START:
        flow = registry.find(event.target)
        return [admit.Start(flow_id=event.target, flow=flow, trigger=event)]
    return [
        admit.Start(flow_id=flow.id, flow=flow, trigger=event)
        for flow in registry.listening(event.event.name)
    ]


def _note_matches(batch: Sequence[Routed]) -> None:
    """Write what the events match, for waits that will look back."""
    in_use = signatures.read({event.event.name for event in batch})
    rows = [
        (match, event.routed, event.id)
        for event in batch
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


_COMMANDS = frozenset({events.CANCEL, events.RETRY})


def _obey(commands: Sequence[Routed]) -> dict[uuid.UUID, str]:
    """Carry commands out, in order. Returns event → why it was refused."""
    refused = {}
    for command in commands:
        try:
            _obey_one(command)
        except (IllegalTransition, UnknownRun) as error:
            refused[command.id] = str(error)
            logger.warning("command %s %s was refused: %s", command.event.name, command.id, error)
    return refused


def _obey_one(command: Routed) -> None:
    run_id = uuid.UUID(command.target)
    if command.event.name == events.CANCEL:
        cancel.ask({run_id: command.event.data.get("reason") or f"command {command.id}"})
    else:
        admit.go_on(run_id, command)


def _mark_routed(batch: Sequence[Routed], refused: dict[uuid.UUID, str]) -> None:
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


def _ring_for(starts: Sequence[admit.Start]) -> None:
    for queue in {start.queue for start in starts}:
        ring.drain(queue)
