"""Carries out bulk actions: the next batch of each, as fast as it may go.

Each batch is a transaction: it takes the row of the bulk action, asks for the next runs, in the order of
their ids, and notes how far it has come. So what dies is gone on with where it was, each run is asked
for once, and two that carry on at once do not do the same.

How many runs there are is counted in pieces as well, ahead of the batches: no statement looks at more runs
than `bulk.SPAN`, however few of them fit.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db.models import QuerySet

from durable_flows import conf, models
from durable_flows.engine import bulk, failpoints, ingest, sql
from durable_flows.rules import clock, events
from durable_flows.rules.selection import Selection
from durable_flows.rules.states import BulkKind, BulkState

logger = logging.getLogger(__name__)

BATCHES = 10  # of one bulk action in one tick, and pieces that are counted of it
ACTIONS = 100  # in one tick


def carry_on() -> int:
    """Carry on with the bulk actions whose time has come. Returns how many batches were done.

    One that fails, since its expression cannot be read here for instance, holds up nobody.
    """
    actions = models.BulkAction.objects.using(conf.settings().DATABASE)
    running = actions.filter(state=BulkState.RUNNING).order_by("next_at")
    _each(running.filter(counted__isnull=False), count_on)
    return _each(running.filter(next_at__lte=clock.now()), next_batch)


def _each(actions: QuerySet[models.BulkAction], do: Callable[[uuid.UUID], int | None]) -> int:
    ids = list(actions.values_list("pk", flat=True)[:ACTIONS])
    return sum(_in_turn(bulk_id, do) for bulk_id in ids)


def _in_turn(bulk_id: uuid.UUID, do: Callable[[uuid.UUID], int | None]) -> int:
    count = 0
    try:
        while count < BATCHES and do(bulk_id) is not None:
            count += 1
    except Exception:
        logger.exception("bulk action %s could not be carried on with; trying again", bulk_id)
    return count


def count_on(bulk_id: uuid.UUID) -> int | None:
    """Count the next piece of the runs that fit.

    Returns:
        How many were found; None: all have been counted, or it is over.
    """
    rows = sql.execute(
        "SELECT filters, created_at, counted FROM durable_flows_bulkaction "
        "WHERE id = %(id)s AND state = 'running' AND counted IS NOT NULL",
        {"id": bulk_id},
    )
    if not rows:
        return None
    filters, created_at, counted = rows[0]
    selection = Selection.from_dict(json.loads(filters))
    runs, last = bulk.span(selection, sql.moment(created_at), sql.uid(counted))
    found = runs.count()
    # Whoever has counted the same piece meanwhile has moved the place on.
    sql.execute(
        "UPDATE durable_flows_bulkaction SET total = total + %(found)s, counted = %(last)s "
        "WHERE id = %(id)s AND counted = %(counted)s",
        {"id": bulk_id, "found": found, "last": last, "counted": sql.uid(counted)},
    )
    return found


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
        found = replace(found, asked=_still_there(found.asked))
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
        seen: how many that fit, their expression left out of account, were looked at.
        place: the last run that was looked at, whether it fitted or not.
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
        runs, last = bulk.span(self.selection, self.created_at, self.place)
        page = list(runs.only("pk", "event_id")[: bulk.AT_ONCE])
        fits = bulk.fitting(self.selection, page)
        asked: list[uuid.UUID] = []
        for number, run in enumerate(page):
            if run.pk in fits and len(asked) == self.most:
                return _Found(asked, seen=number, place=page[number - 1].pk)
            if run.pk in fits:
                asked.append(run.pk)
        if len(page) == bulk.AT_ONCE:
            return _Found(asked, seen=len(page), place=page[-1].pk)
        return _Found(asked, seen=len(page), place=last or self.place, is_last=last is None)

    def next_after(self, asked: int) -> datetime:
        """When the next may be asked for."""
        if self.rate is None:
            return self.next_at
        earliest = max(self.next_at, clock.now() - _two_ticks())
        return earliest + timedelta(seconds=asked / self.rate)


def _still_there(run_ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Those that no purge has taken away, nor does before the commands about them are stored."""
    if not run_ids:
        return []
    rows = sql.execute(
        f"SELECT id FROM durable_flows_run WHERE {sql.among('id', 'runs')} ORDER BY id FOR KEY SHARE",
        {"runs": list(run_ids)},
    )
    return [sql.uid(row[0]) for row in rows]


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
        "ended_at = %(ended_at)s::timestamptz, "
        # Whoever has seen all has counted all.
        "total = CASE WHEN %(is_last)s AND counted IS NOT NULL THEN seen + %(seen)s ELSE total END, "
        "counted = CASE WHEN NOT %(is_last)s THEN counted END WHERE id = %(id)s",
        {
            "id": batch.bulk_id,
            "seen": found.seen,
            "asked": len(found.asked),
            "place": found.place,
            "next_at": batch.next_after(len(found.asked)),
            "state": state.value,
            "ended_at": clock.now() if found.is_last else None,
            "is_last": found.is_last,
        },
    )


def _two_ticks() -> timedelta:
    return clock.real(2 * conf.settings().TICK_SECONDS)
