"""The second transaction of routing: offers events to whatever waits, and marks them routed.

It sees what the first has committed, and whatever slices have committed meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from durable_flows.engine import (
    broadcast,
    cancel,
    children,
    conditions,
    failpoints,
    fanout,
    lookback,
    obey,
    quarantine,
    settle,
    sql,
    stored,
)
from durable_flows.engine.hand import Hand, Routing
from durable_flows.engine.stored import Routed


def offer_hand(hand: Hand, done: Routing) -> None:
    """Offer what is in hand, in order: together, or fewer at once if too many waits match."""
    parts = [hand.events]
    while parts:
        part = parts.pop(0)
        if not _settle_batch(part, hand, done):
            half = len(part) // 2
            parts[:0] = [part[:half], part[half:]]


def _settle_batch(part: Sequence[Routed], hand: Hand, done: Routing) -> bool:
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


def _still_in_hand(part: Sequence[Routed], hand: Hand) -> tuple[list[Routed], list[Routed]]:
    """What nobody else has routed, or begun to; and the events that are being settled in pieces."""
    ids = {event.id for event in part}
    open_ = stored.still_unrouted(list(ids), hand.shard.events)
    hand.broadcasts = hand.broadcasts or bool(open_ - ids)
    if ids - open_:  # others were here meanwhile
        open_ |= quarantine.lift(ids - open_)
    before = broadcast.underway(hand.shard.events) if hand.broadcasts else []
    taken = {event.id for event in before}
    return [event for event in part if event.id in open_ - taken], before


def _mark_routed(batch: Sequence[Routed], refused: Mapping[uuid.UUID, str]) -> None:
    stored.mark_routed([event.id for event in batch])
    for event_id, error in refused.items():
        sql.execute(
            "UPDATE durable_flows_event SET error = %(error)s WHERE id = %(id)s",
            {"id": event_id, "error": error},
        )
