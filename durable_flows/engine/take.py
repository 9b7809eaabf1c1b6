"""The first transaction of routing: takes events in hand, numbers them, and admits the runs they start.

Everything in it is keyed, so that doing it again adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from durable_flows import conf
from durable_flows.engine import (
    admit,
    broadcast,
    conditions,
    deployments,
    failpoints,
    quarantine,
    ring,
    signatures,
    sql,
    stored,
    withdraw,
)
from durable_flows.engine.hand import Hand, Routing
from durable_flows.engine.stored import Routed
from durable_flows.models import Event, EventMatch
from durable_flows.rules import causality, clock, events


def take_batch(hand: Hand, done: Routing) -> bool:
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


def _admit(hand: Hand, done: Routing) -> None:
    starts, skips = _starts(hand.events)
    hand.cancellable = [start for start in starts if start.flow and start.flow.cancel_on]
    signatures.write(admit.cancel_signatures(starts))
    _note_matches(hand.events, signatures.read({event.name for event in hand.events}))
    admit.start_runs(starts)
    admit.note_skips(skips)
    done.queues |= {start.queue for start in starts}


def _take(hand: Hand) -> None:
    """Take the next events in hand, in order; those that may have killed a router one by one."""
    mine = stored.all_of(broadcast.NOT_UNDERWAY, hand.shard.events, deployments.may_route())
    found = stored.unrouted(mine, now=clock.now(), most=hand.most)
    guilty = [event for event in found if quarantine.is_guilty(event)]
    quarantine.set_aside(guilty)
    events = [event for event in found if event not in guilty]
    hand.events = quarantine.first_innocent(events)
    hand.in_part = len(hand.events) < len(events)
    hand.events = withdraw.take_back(hand.events)


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


def backfill(starts: Sequence[admit.Start]) -> None:
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
