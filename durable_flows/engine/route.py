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
    batches: int = 0
    queues: set[str] = field(default_factory=set)


def route() -> Routing:
    """Route everything that is to be routed now.

    Rings for the queues on which there is something to do, but for those that this worker serves
    itself: its task goes on to drain them. Leaves at once if another router is at work: that one
    looks once more after it has given up the lock.
    """
    clocksync.synchronise()
    done = Routing()
    while True:
        admitted = _admit_batch(done)
        if admitted is None or (not admitted and not stored.any_unrouted(clock.now())):
            break
        failpoints.reach("between_routing_transactions")
        settled = not admitted or _settle_batch(done)
        _ring(done)  # also for what was admitted here and is settled by another router
        if not settled:
            break
        done.batches += 1
    return done


def _ring(done: Routing) -> None:
    """For a first batch this worker's own task goes on to drain; a stream of them needs others."""
    for queue in done.queues if done.batches else done.queues - ring.served():
        ring.drain(queue)


def _admit_batch(done: Routing) -> bool | None:
    """The first transaction. False: there was nothing to do; None: another router does it."""
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return None
        batch = stored.unrouted("true", now=clock.now(), most=conf.settings().ROUTE_BATCH)
        if not batch:
            return False
        batch = _number(batch)
        failpoints.reach("events_numbered")
        starts = _starts(batch)
        _backfill(signatures.write(admit.cancel_signatures(starts)), starts)
        _note_matches(batch, signatures.read({event.name for event in batch}))
        admit.start_runs(starts)
    done.queues |= {start.queue for start in starts}
    return True


def _settle_batch(done: Routing) -> bool:
    """The second transaction: anew, what is numbered and not routed. False: another router does it.

    Due rows are locked once, sorted, before anything is written.
    """
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return False
        batch = stored.unrouted(
            "e.routed IS NOT NULL", now=clock.now(), most=conf.settings().ROUTE_BATCH
        )
        commands = [event for event in batch if event.name in _COMMANDS]
        found = settle.offer(batch)
        late = settle.look_back_for_cancels(_triggers_of_cancellable(batch))
        settle.lock_due({*found.run_ids, *(hit.run_id for hit in late), *_targets(commands)})
        retried, refused = _obey(commands)
        again = settle.offer(batch, retried) if retried else settle.Found()
        done.queues |= settle.resume(found) | settle.resume(again)
        _cancel([*found.cancels, *late, *again.cancels])
        _mark_routed(batch, refused)
        failpoints.reach("before_routed_commit")
    failpoints.reach("batch_routed")
    done.events += len(batch)
    return True


def _cancel(hits: Sequence[settle.CancelHit]) -> None:
    """Cancel the runs whose rules were hit; where several were, for the first reason."""
    reasons = {hit.run_id: f"event {hit.event_name} {hit.event_id}" for hit in reversed(hits)}
    cancel.ask(reasons)
    settle.end_cancel_waits(hits)


def _triggers_of_cancellable(batch: Sequence[Routed]) -> list[uuid.UUID]:
    """The events of which a run may have been started that has cancel rules."""
    flows = {flow.id for flow in registry if flow.cancel_on}
    return [event.id for event in batch if flows.intersection(_flows_of(event))]


def _targets(commands: Sequence[Routed]) -> set[uuid.UUID]:
    return {uuid.UUID(command.target) for command in commands}


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


def _obey(commands: Sequence[Routed]) -> tuple[list[uuid.UUID], dict[uuid.UUID, str]]:
    """Carry commands out, in order. Returns the runs that go on, and command → why it was refused."""
    retried, refused = [], {}
    for command in commands:
        run_id = uuid.UUID(command.target)
        try:
            if command.name == events.CANCEL:
                cancel.ask({run_id: command.event.data.get("reason") or f"command {command.id}"})
            else:
                admit.go_on(run_id, command)
                retried.append(run_id)
            failpoints.reach("command_obeyed", command.name)
        except (IllegalTransition, UnknownRun) as error:
            refused[command.id] = str(error)
            logger.warning("command %s %s was refused: %s", command.name, command.id, error)
    return retried, refused


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
