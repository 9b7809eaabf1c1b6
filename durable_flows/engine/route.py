"""Routes events: who starts, who resumes, who is cancelled.

One router at a time, for each shard if there are several, in two transactions. The first (`take`) numbers
the events and admits runs. The second (`offer`) offers the events to the waits, cancels, retries, and
marks them routed. A router that dies between the two leaves events that are numbered but not routed: the
next one does both again, with the same numbers.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress

from django.db import DatabaseError

from durable_flows import conf
from durable_flows.engine import (
    broadcast,
    clocksync,
    deployments,
    failpoints,
    offer,
    quarantine,
    ring,
    sql,
    stored,
    take,
    turns,
)
from durable_flows.engine.hand import Hand, Routing
from durable_flows.engine.shards import Shard, all_shards
from durable_flows.rules import clock

RING_ON_SECONDS = 0.5  # real seconds between two bells for a newer deployment
_rung_on = float("-inf")


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
        turns.take(lambda: _route_all(done))
    return done


def _route_all(done: Routing) -> None:
    shards = all_shards()
    random.shuffle(shards)  # several routers begin at several ends
    for shard in shards:
        _route_shard(shard, done)


def _route_shard(shard: Shard, done: Routing) -> None:
    pieces = broadcast.Pieces()
    limit = most = conf.settings().ROUTE_BATCH
    while True:
        hand = Hand(shard, most)
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


def _route_batch(hand: Hand, done: Routing) -> bool:
    """Route one batch. False: nothing is left to do, or another router does it."""
    if not take.take_batch(hand, done):
        return False
    if not hand.events:
        hand.broadcasts = _is_more_to_do(hand.shard)
        return hand.broadcasts
    failpoints.reach("between_routing_transactions")
    take.backfill(hand.cancellable)
    offer.offer_hand(hand, done)
    failpoints.reach("batch_routed")
    _ring(done)
    done.batches += 1
    return hand.was_not_all or hand.broadcasts or _is_more_to_do(hand.shard)


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


def _blame(hand: Hand, error: Exception) -> None:
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
