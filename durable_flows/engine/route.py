"""Routes events: who starts, who resumes, who is cancelled.

One router at a time, for each shard if there are several, in two transactions. The first numbers the
events and admits runs; everything in it is keyed, so that doing it again adds nothing. The second,
which sees what the first committed and whatever slices have committed meanwhile, offers the events to
the waits, cancels, retries, and marks them routed. A router that dies between the two leaves events
that are numbered but not routed: the next one does both again, with the same numbers.
"""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from django.db import DatabaseError

from durable_flows import conf
from durable_flows.engine import (
    admit,
    broadcast,
    cancel,
    children,
    clocksync,
    conditions,
    deployments,
    failpoints,
    fanout,
    lookback,
    native,
    obey,
    quarantine,
    ring,
    settle,
    signatures,
    sql,
    stored,
    withdraw,
)
from durable_flows.engine.shards import Shard, all_shards
from durable_flows.engine.stored import Routed
from durable_flows.models import Event, EventMatch
from durable_flows.rules import causality, clock, events

logger = logging.getLogger(__name__)


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
        shard: of which they are.
        most: how many it may take.
        events: what it took.
        in_part: whether it left some of what it may take to the next hand.
        cancellable: the runs of flows with cancel rules that they start.
        broadcasts: whether there may be events that are settled in pieces.
    """

    shard: Shard
    most: int
    events: Sequence[Routed] = ()
    in_part: bool = False
    cancellable: Sequence[admit.Start] = ()
    broadcasts: bool = False

    @property
    def was_not_all(self) -> bool:
        """Whether it left something behind, or may have."""
        return self.in_part or len(self.events) >= self.most


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
    done = Routing()
    if sql.postgres():
        _route_all(done)
    else:
        _turns.take(lambda: _route_all(done))
    return done


def _route_all(done: Routing) -> None:
    shards = all_shards()
    random.shuffle(shards)  # several routers begin at several ends
    for shard in shards:
        _route_shard(shard, done)


class _Turns:
    """One router at a time in this process, for SQLite, which has no lock to hold between transactions.

    Whoever finds another at work leaves: that one looks once more.
    """

    def __init__(self) -> None:
        self._lock = native.lock()
        self._asked = False

    def take(self, work: Callable[[], None]) -> None:
        """Do it, and once more if somebody has asked for it meanwhile; or leave it to who is at it."""
        self._asked = True
        while self._asked and self._lock.acquire(blocking=False):
            try:
                self._asked = False
                work()
            finally:
                self._lock.release()


_turns = _Turns()


def _forget() -> None:
    global _turns
    _turns = _Turns()  # a lock that was held by another thread of the parent stays so in a fork


os.register_at_fork(after_in_child=_forget)


def _route_shard(shard: Shard, done: Routing) -> None:
    pieces = broadcast.Pieces()
    limit = most = conf.settings().ROUTE_BATCH
    while True:
        hand = _Hand(shard, most)
        try:
            if not _route_batch(hand, done):
                break
            if hand.broadcasts and not _settle_piece(shard, pieces, done):
                break
        except Exception as error:
            _ring(done)
            _blame(hand, error)
            most = max(1, len(hand.events) // 2)
        else:
            most = min(limit, 2 * (len(hand.events) if hand.in_part else hand.most))


def _route_batch(hand: _Hand, done: Routing) -> bool:
    """Route one batch. False: nothing is left to do, or another router does it."""
    if not _admit_batch(hand, done):
        return False
    if not hand.events:
        hand.broadcasts = _is_more_to_do(hand.shard)
        return hand.broadcasts
    failpoints.reach("between_routing_transactions")
    _backfill(hand.cancellable)
    _settle_hand(hand, done)
    failpoints.reach("batch_routed")
    _ring(done)
    done.batches += 1
    return hand.was_not_all or hand.broadcasts or _is_more_to_do(hand.shard)


def _is_more_to_do(shard: Shard) -> bool:
    """Whether an event has come meanwhile. What others must route, others are told of."""
    mine = stored.any_unrouted(clock.now(), deployments.may_route(), of=shard.events)
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
    """The first transaction. False: another router is at work.

    Where conditions are to be evaluated, that what is in hand is noted is committed before.
    """
    with sql.atomic():
        if not hand.shard.try_lock():
            return False
        _take(hand)
        if not hand.events:
            return True
        hand.events = _number(hand.events)
        failpoints.reach("events_numbered")
        evaluates = conditions.are_asked(hand.events)
        if not evaluates:
            _admit(hand, done)
    if evaluates:
        with sql.atomic():
            hand.shard.wait_for_lock()
            _admit(hand, done)
    if hand.shard.count > 1 and len(hand.events) == conf.settings().ROUTE_BATCH:
        ring.route()  # there is more than this: another worker takes another shard
    return True


def _admit(hand: _Hand, done: Routing) -> None:
    starts, skips = _starts(hand.events)
    hand.cancellable = [start for start in starts if start.flow and start.flow.cancel_on]
    signatures.write(admit.cancel_signatures(starts))
    _note_matches(hand.events, signatures.read({event.name for event in hand.events}))
    admit.start_runs(starts)
    admit.note_skips(skips)
    done.queues |= {start.queue for start in starts}


def _take(hand: _Hand) -> None:
    """Take the next events in hand, in order; those that may have killed a router one by one."""
    mine = stored.all_of(broadcast.NOT_UNDERWAY, hand.shard.events, deployments.may_route())
    found = stored.unrouted(mine, now=clock.now(), most=hand.most)
    guilty = [event for event in found if quarantine.is_guilty(event)]
    quarantine.set_aside(guilty)
    events = [event for event in found if event not in guilty]
    hand.events = quarantine.first_innocent(events)
    hand.in_part = len(hand.events) < len(events)
    hand.events = withdraw.take_back(hand.events)


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
        hand.shard.wait_for_lock()
        batch, before = _still_in_hand(part, hand)
        commands = obey.commands(batch)
        judge = conditions.Judge()
        found = settle.offer(batch, judge, before=before)
        if found.is_crowded and len(batch) > 1:
            return False
        ids = {event.id for event in batch}
        started = [start.trigger.id for start in hand.cancellable if start.asked.id in ids]
        late = lookback.for_cancels(started, judge)
        over = children.over(batch)
        settle.lock_due(
            {*found.run_ids, *(hit.run_id for hit in late), *obey.targets(commands), *over.parents}
        )
        obeyed = obey.obey([command for command in commands if not obey.is_late(command)])
        retried = obeyed.retried
        again = settle.offer(batch, judge, run_ids=retried) if retried else settle.Found()
        done.queues |= settle.resume(found) | settle.resume(again)
        parents, items = children.settle(over)
        done.queues |= settle.wake([*parents, *fanout.advance(items)])
        late_commands = obey.obey([command for command in commands if obey.is_late(command)])
        done.queues |= settle.wake(late_commands.skipped)
        cancel.by_rules([*found.cancels, *late, *again.cancels])
        judge.note()
        if found.is_crowded:
            broadcast.begin(batch[0])
            hand.broadcasts = True
        else:
            _mark_routed(batch, {**obeyed.refused, **late_commands.refused})
            done.events += len(batch)
        failpoints.reach("before_routed_commit")
    return True


def _still_in_hand(part: Sequence[Routed], hand: _Hand) -> tuple[list[Routed], list[Routed]]:
    """What nobody else has routed, or begun to; and the events that are being settled in pieces."""
    ids = {event.id for event in part}
    open_ = stored.still_unrouted(list(ids), hand.shard.events)
    hand.broadcasts = hand.broadcasts or bool(open_ - ids)
    if ids - open_:  # others were here meanwhile
        open_ |= quarantine.lift(ids - open_)
    before = broadcast.underway(hand.shard.events) if hand.broadcasts else []
    taken = {event.id for event in before}
    return [event for event in part if event.id in open_ - taken], before


def _settle_piece(shard: Shard, pieces: broadcast.Pieces, done: Routing) -> bool:
    """The next piece of an event that very many waits match. False: another router is at work."""
    mine = stored.all_of(shard.events, deployments.may_route())
    try:
        is_done = False
        while not is_done:
            with sql.atomic():
                if not shard.try_lock():
                    broadcast.leave(pieces)
                    return False
                is_done = broadcast.settle_piece(pieces, mine)
    except Exception as error:
        if sql.is_transient(error):
            raise
        broadcast.count_failure(pieces, error, shard.events)
    failpoints.reach("between_pieces")
    done.queues |= pieces.queues
    done.events, pieces.routed = done.events + pieces.routed, 0
    done.batches += 1
    _ring(done)
    return True


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
        asked = conditions.starts_of(event)
        wanted = [again[event.id]] if event.id in again else []
        wanted += [admit.Start.of(flow_id, event, default_queue) for flow_id in asked.flow_ids]
        if causality.is_too_deep(event.depth):
            skips += [admit.Skip.of(start, causality.TOO_DEEP) for start in wanted]
        else:
            starts += wanted
        skips += [
            admit.Skip(event_id=event.id, flow_id=flow_id, reason=reason)
            for flow_id, reason in asked.failed.items()
        ]
    return starts, skips


def _reruns(batch: Sequence[Routed]) -> list[admit.Start]:
    """The runs that are asked for by commands to do others again."""
    commands = [event for event in batch if event.name == events.RERUN]
    return admit.reruns(commands, ring.default_queue())


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


def _backfill(starts: Sequence[admit.Start]) -> None:
    """Match what may cancel the runs just committed, by signatures of rules that are still young.

    That is what arrived after a trigger and was routed before its run was there, by a router that
    could not know the signature: a trigger that was long in coming, or another shard's router. What
    such a router has in hand even now it offers to the runs itself, since they are committed.
    """
    if not starts:
        return
    since = min(start.asked.mark for start in starts)
    names = {name for name, _ in admit.cancel_signatures(starts)}
    for name, paths, up_to in signatures.young(names, since):
        for found in stored.routed_between(name, since, up_to):
            _note_matches(found, {name: [paths]})


def _mark_routed(batch: Sequence[Routed], refused: Mapping[uuid.UUID, str]) -> None:
    stored.mark_routed([event.id for event in batch])
    for event_id, error in refused.items():
        sql.execute(
            "UPDATE durable_flows_event SET error = %(error)s WHERE id = %(id)s",
            {"id": event_id, "error": error},
        )
