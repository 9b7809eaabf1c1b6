"""Carries out bulk actions: the next batch of each, as fast as it may go.

Each batch is a transaction: it takes the row of the bulk action, asks for the next runs, in the order of
their ids, and notes how far it has come. So what dies is gone on with where it was, each run is asked
for once, and two that carry on at once do not do the same.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from durable_flows import conf, models
from durable_flows.engine import bulk, failpoints, ingest, sql
from durable_flows.rules import clock, events
from durable_flows.rules.selection import Selection
from durable_flows.rules.states import BulkKind, BulkState

logger = logging.getLogger(__name__)

BATCHES = 10  # of one bulk action in one tick
ACTIONS = 100  # in one tick


def carry_on() -> int:
    """Carry on with the bulk actions whose time has come. Returns for how many runs was asked.

    One that fails, since its expression cannot be read here for instance, holds up nobody.
    """
    due = (
        models.BulkAction.objects.using(conf.settings().DATABASE)
        .filter(state=BulkState.RUNNING, next_at__lte=clock.now())
        .order_by("next_at")
        .values_list("pk", flat=True)[:ACTIONS]
    )
    return sum(_carry_on(bulk_id) for bulk_id in list(due))


def _carry_on(bulk_id: uuid.UUID) -> int:
    count = 0
    try:
        for _ in range(BATCHES):
            asked = next_batch(bulk_id)
            if asked is None:
                break
            count += asked
    except Exception:
        logger.exception("bulk action %s could not be carried on with; trying again", bulk_id)
    return count


def next_batch(bulk_id: uuid.UUID) -> int | None:
    """One batch, in a transaction of its own.

    Returns:
        For how many runs was asked; None: its time has not come, it is over, or somebody else is at it.
    """
    with sql.atomic():
        rows = sql.execute(
            "SELECT kind, filters, reason, rate, place, next_at, created_at "
            "FROM durable_flows_bulkaction WHERE id = %(id)s AND state = 'running' "
            "AND next_at <= %(now)s FOR UPDATE SKIP LOCKED",
            {"id": bulk_id, "now": clock.now()},
        )
        if not rows:
            return None
        batch = _Batch.of(bulk_id, rows[0])
        found = batch.read()
        _ask(batch, found.asked)
        _note(batch, found)
        failpoints.reach("before_bulk_commit", batch.kind)
    failpoints.reach("bulk_carried_on", batch.kind)
    return len(found.asked)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a batch has found.

    Attributes:
        asked: the runs that fit.
        seen: how many were looked at.
        place: the last of these.
        is_last: whether there are no more.
    """

    asked: list[uuid.UUID]
    seen: int
    place: uuid.UUID
    is_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    bulk_id: uuid.UUID
    kind: str
    selection: Selection
    reason: str
    rate: float | None
    place: uuid.UUID
    next_at: datetime
    created_at: datetime

    @classmethod
    def of(cls, bulk_id: uuid.UUID, row: sql.Row) -> _Batch:
        kind, filters, reason, rate, place, next_at, created_at = row
        return cls(
            bulk_id=bulk_id,
            kind=kind,
            selection=Selection.from_dict(json.loads(filters)),
            reason=reason,
            rate=rate,
            place=sql.uid(place),
            next_at=sql.moment(next_at),
            created_at=sql.moment(created_at),
        )

    @property
    def most(self) -> int:
        """For how many runs may be asked now: what has come together since, in two ticks at most."""
        if self.rate is None:
            return bulk.AT_ONCE
        waited = (clock.now() - self.next_at) / timedelta(seconds=1)
        together = min(waited, _two_ticks() / timedelta(seconds=1))
        return min(bulk.AT_ONCE, 1 + int(together * self.rate))

    def read(self) -> _Found:
        """The next runs that fit, as far as they may be asked for now."""
        runs = bulk.existing(self.created_at).selected(self.selection).filter(pk__gt=self.place)
        page = list(runs.order_by("pk").only("pk", "event_id")[: bulk.AT_ONCE])
        fits = bulk.fitting(self.selection, page)
        asked: list[uuid.UUID] = []
        for number, run in enumerate(page):
            if run.pk in fits and len(asked) == self.most:
                return _Found(asked, seen=number, place=page[number - 1].pk)
            if run.pk in fits:
                asked.append(run.pk)
        place = page[-1].pk if page else self.place
        return _Found(asked, seen=len(page), place=place, is_last=len(page) < bulk.AT_ONCE)

    def next_after(self, asked: int) -> datetime:
        """When the next may be asked for."""
        if self.rate is None:
            return self.next_at
        earliest = max(self.next_at, clock.now() - _two_ticks())
        return earliest + timedelta(seconds=asked / self.rate)


def _ask(batch: _Batch, run_ids: Sequence[uuid.UUID]) -> None:
    """The commands, each with the id of what it came from."""
    name = events.CANCEL if batch.kind == BulkKind.CANCEL else events.RERUN
    why = batch.reason or f"bulk action {batch.bulk_id}"
    ingest.command_all(name, dict.fromkeys(run_ids, {"reason": why, "bulk": str(batch.bulk_id)}))


def _note(batch: _Batch, found: _Found) -> None:
    state = BulkState.DONE if found.is_last else BulkState.RUNNING
    sql.execute(
        "UPDATE durable_flows_bulkaction SET seen = seen + %(seen)s, done = done + %(asked)s, "
        "place = %(place)s, next_at = %(next_at)s::timestamptz, state = %(state)s, "
        "ended_at = %(ended_at)s::timestamptz WHERE id = %(id)s",
        {
            "id": batch.bulk_id,
            "seen": found.seen,
            "asked": len(found.asked),
            "place": found.place,
            "next_at": batch.next_after(len(found.asked)),
            "state": state.value,
            "ended_at": clock.now() if found.is_last else None,
        },
    )


def _two_ticks() -> timedelta:
    return clock.real(2 * conf.settings().TICK_SECONDS)
