"""Routes events: who starts, who resumes, who is cancelled.

One router at a time, in two transactions. The first numbers the events and admits runs; everything in
it is keyed, so that doing it again adds nothing. The second, which sees what the first committed and
whatever slices have committed meanwhile, offers the events to the waits, cancels, retries, and marks
them routed. A router that dies between the two leaves events that are numbered but not routed: the
next one does both again, with the same numbers.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from django.db import DatabaseError

from durable_flows import conf
from durable_flows.engine import (
    admit,
    broadcast,
    cancel,
    clocksync,
    conditions,
    deployments,
    failpoints,
    lookback,
    quarantine,
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


@dataclass(slots=True)
class _Hand:
    """The events that this router has in hand.

    Attributes:
        most: how many it may take.
        events: what it took.
        in_part: whether it left some of what it may take to the next hand.
        broadcasts: whether there may be events that are settled in pieces.
    """

    most: int
    events: Sequence[Routed] = ()
    in_part: bool = False
    broadcasts: bool = False


def route() -> Routing:
    """Route everything that is to be routed now.

    Rings for the queues on which there is something to do, but for those that this worker serves
    itself: its task goes on to drain them. Leaves at once if another router is at work: that one
    looks once more after it has given up the lock. Does nothing if a newer deployment is there to do it.

    A batch that raises is halved until the event that raises is alone. At its second failure alone
    that event is set aside, and those behind it go on.

    Raises:
        DatabaseError: the database failed, which is no event's fault: what was in hand is left to
            the next router.
    """
    clocksync.synchronise()
    deployments.announce()
    done, pieces = Routing(), broadcast.Pieces()
    limit = most = conf.settings().ROUTE_BATCH
    while True:
        hand = _Hand(most)
        try:
            if not _route_batch(hand, done):
                break
            if hand.broadcasts and not _settle_piece(pieces, done):
                break
        except Exception as error:
            _ring(done)
            _blame(hand, error)
            most = max(1, len(hand.events) // 2)
        else:
            most = min(limit, 2 * (len(hand.events) if hand.in_part else hand.most))
    return done


def _route_batch(hand: _Hand, done: Routing) -> bool:
    """Route one batch. False: nothing is left to do, or another router does it."""
    if not _admit_batch(hand, done):
        return False
    if not hand.events:
        hand.broadcasts = _is_more_to_do()
        return hand.broadcasts
    failpoints.reach("between_routing_transactions")
    _settle_hand(hand, done)
    failpoints.reach("batch_routed")
    _ring(done)
    done.batches += 1
    return True


def _is_more_to_do() -> bool:
    """Whether an event has come meanwhile. What others must route, others are told of."""
    mine = stored.any_unrouted(clock.now(), deployments.may_route())
    if mine is False:
        _ring_on()
    return bool(mine)


def _ring_on() -> None:
    """This bell was meant for a newer deployment: ring once more, a moment later and not too often."""
    global _rung_on
    if time.monotonic() - _rung_on >= RING_ON_SECONDS:
        _rung_on = time.monotonic()
        ring.route_in(RING_ON_SECONDS)


RING_ON_SECONDS = 0.5
_rung_on = float("-inf")


def _blame(hand: _Hand, error: Exception) -> None:
    """What follows from an error: it is raised again if it is nobody's fault.

    One event alone is to blame. Several are not: they are taken anew, fewer at a time.
    """
    at_fault = hand.events and not sql.is_transient(error)
    if at_fault and len(hand.events) == 1:
        quarantine.count_failure(hand.events[0], error)
        return
    with suppress(DatabaseError):  # else they are thought to have killed this router
        quarantine.give_back(hand.events)
    if not at_fault:
        raise error


def _ring(done: Routing) -> None:
    """For a first batch this worker's own task goes on to drain; a stream of them needs others."""
    for queue in done.queues if done.batches else done.queues - ring.served():
        ring.drain(queue)


def _admit_batch(hand: _Hand, done: Routing) -> bool:
    """The first transaction. False: another router is at work."""
    with sql.atomic():
        if not sql.try_lock(LOCK):
            return False
        _take(hand)
        if not hand.events:
            return True
        hand.events = batch = _number(hand.events)
        failpoints.reach("events_numbered")
        starts, skips = _starts(batch)
        _backfill(signatures.write(admit.cancel_signatures(starts)), starts)
        _note_matches(batch, signatures.read({event.name for event in batch}))
        admit.start_runs(starts)
        admit.note_skips(skips)
    done.queues |= {start.queue for start in starts}
    return True


def _take(hand: _Hand) -> None:
    """Take the next events in hand, in order; those that may have killed a router one by one."""
    clause, params = deployments.may_route()
    whole = f"{broadcast.NOT_UNDERWAY} AND {clause}", params
    found = stored.unrouted(whole, now=clock.now(), most=hand.most)
    guilty = [event for event in found if quarantine.is_guilty(event)]
    quarantine.set_aside(guilty)
    events = [event for event in found if event not in guilty]
    hand.events = quarantine.first_innocent(events)
    hand.in_part = len(hand.events) < len(events)


def _settle_hand(hand: _Hand, done: Routing) -> None:
    """Settle what is in hand, in order: together, or fewer at once if too many waits match."""
    parts = [hand.events]
    while parts:
        part = parts.pop(0)
        if not _settle_batch(part, hand, done):
            half = len(part) // 2
            parts[:0] = [part[:half], part[half:]]


def _settle_batch(part: Sequence[Routed], hand: _Hand, done: Routing) -> bool:
    """The second transaction: what is in hand, and that no other router has routed meanwhile.

    Due rows are locked once, sorted, before anything is written.

    Returns:
        False if more waits match than one transaction should end: nothing was done.
    """
    with sql.atomic():
        sql.wait_for_lock(LOCK)
        batch, before = _still_in_hand(part, hand)
        commands = [event for event in batch if event.name in _COMMANDS]
        judge = conditions.Judge()
        found = settle.offer(batch, judge, before=before)
        if found.is_crowded and len(batch) > 1:
            return False
        late = lookback.for_cancels(_triggers_of_cancellable(batch), judge)
        settle.lock_due({*found.run_ids, *(hit.run_id for hit in late), *_targets(commands)})
        retried, refused = _obey(commands)
        again = settle.offer(batch, judge, run_ids=retried) if retried else settle.Found()
        done.queues |= settle.resume(found) | settle.resume(again)
        cancel.by_rules([*found.cancels, *late, *again.cancels])
        judge.note()
        if found.is_crowded:
            broadcast.begin(batch[0])
            hand.broadcasts = True
        else:
            _mark_routed(batch, refused)
            done.events += len(batch)
        failpoints.reach("before_routed_commit")
    return True


def _still_in_hand(part: Sequence[Routed], hand: _Hand) -> tuple[list[Routed], list[Routed]]:
    """What nobody else has routed, or begun to; and the events that are being settled in pieces."""
    open_ = stored.still_unrouted([event.id for event in part])
    hand.broadcasts = hand.broadcasts or bool(open_ - {event.id for event in part})
    before = broadcast.underway() if hand.broadcasts else []
    taken = {event.id for event in before}
    return [event for event in part if event.id in open_ - taken], before


def _settle_piece(pieces: broadcast.Pieces, done: Routing) -> bool:
    """The next piece of an event that very many waits match. False: another router is at work."""
    try:
        is_done = False
        while not is_done:
            with sql.atomic():
                if not sql.try_lock(LOCK):
                    return False
                is_done = broadcast.settle_piece(pieces, deployments.may_route())
    except Exception as error:
        if sql.is_transient(error):
            raise
        broadcast.count_failure(pieces, error)
    failpoints.reach("between_pieces")
    done.queues |= pieces.queues
    done.events, pieces.routed = done.events + pieces.routed, 0
    done.batches += 1
    _ring(done)
    return True


def _triggers_of_cancellable(batch: Sequence[Routed]) -> list[uuid.UUID]:
    """The events of which a run may have been started that has cancel rules."""
    flows = {flow.id for flow in registry if flow.cancel_on}
    started = [event.id for event in batch if flows.intersection(_flows_that_listen(event))]
    again = [start.trigger.id for start in _reruns(batch) if start.flow_id in flows]
    return started + again


def _targets(commands: Sequence[Routed]) -> set[uuid.UUID]:
    return {uuid.UUID(command.target) for command in commands}


def _number(batch: Sequence[Routed]) -> list[Routed]:
    """Give events their numbers in the order of routing, and note that they are in hand.

    The numbers are drawn after the events were read: whatever was committed before a slice noted the
    counter, and is routed, has a number below; whatever was committed later gets one above.
    """
    new = [event for event in batch if not event.routed]
    numbers = dict(zip((event.id for event in new), sql.draw("routed", len(new)), strict=True))
    numbered = [replace(event, routed=numbers.get(event.id, event.routed)) for event in batch]
    source, columns = sql.table(
        Event,
        "t",
        {
            "id": [event.id for event in numbered],
            "routed": [event.routed for event in numbered],
            "attempts": [quarantine.begun(event, alone=len(batch) == 1) for event in numbered],
        },
    )
    sql.execute(
        f"UPDATE durable_flows_event SET routed = t.routed, attempts = t.attempts FROM {source} "
        "WHERE durable_flows_event.id = t.id",
        columns,
    )
    return numbered


def _starts(batch: Sequence[Routed]) -> tuple[list[admit.Start], list[admit.Skip]]:
    """The runs that events ask for, in order, and where it could not be told."""
    default_queue = ring.default_queue()
    again = {start.asked.id: start for start in _reruns(batch)}
    starts, skips = [], []
    for event in batch:
        if event.id in again:
            starts.append(again[event.id])
        asked = conditions.starts_of(event)
        starts += [admit.Start.of(flow_id, event, default_queue) for flow_id in asked.flow_ids]
        skips += [
            admit.Skip(event_id=event.id, flow_id=flow_id, reason=reason)
            for flow_id, reason in asked.failed.items()
        ]
    return starts, skips


def _reruns(batch: Sequence[Routed]) -> list[admit.Start]:
    """The runs that are asked for by commands to do others again."""
    commands = [event for event in batch if event.name == events.RERUN]
    return admit.reruns(commands, ring.default_queue())


def _flows_that_listen(event: Routed) -> list[str]:
    """The flows that it may have started."""
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
        since = min(start.asked.mark for start in starts)
        _note_matches(stored.routed_since(since, list(new)), new)


_COMMANDS = frozenset({events.CANCEL, events.RETRY, events.RERUN})


def _obey(commands: Sequence[Routed]) -> tuple[list[uuid.UUID], dict[uuid.UUID, str]]:
    """Carry commands out, in order. Returns the runs that go on, and command → why it was refused."""
    retried, refused = [], {}
    for command in commands:
        run_id = uuid.UUID(command.target)
        try:
            if command.name == events.CANCEL:
                cancel.ask({run_id: command.event.data.get("reason") or f"command {command.id}"})
            elif command.name == events.RERUN:  # the first transaction has started it
                admit.check_rerun(command)
            else:
                admit.go_on(run_id, command)
                retried.append(run_id)
            failpoints.reach("command_obeyed", command.name)
        except (IllegalTransition, UnknownRun) as error:
            refused[command.id] = str(error)
            logger.warning("command %s %s was refused: %s", command.name, command.id, error)
    return retried, refused


def _mark_routed(batch: Sequence[Routed], refused: Mapping[uuid.UUID, str]) -> None:
    stored.mark_routed([event.id for event in batch])
    for event_id, error in refused.items():
        sql.execute(
            "UPDATE durable_flows_event SET error = %(error)s WHERE id = %(id)s",
            {"id": event_id, "error": error},
        )
