"""Removes what has been kept for long enough, a few rows at a time.

A pass walks through the runs and then through the events, in the order of their ids, which begin with the
time: it ends where nothing can be old enough. It is walked in short transactions, between which it rests as
long as each of them took, so that whoever works beside it is hardly held up. How far it has come stands in
one row, which is also what lets one process at a time purge: ticks ring for it, whoever takes the row goes
on for a moment, and the next one goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError

from durable_flows import conf
from durable_flows.engine import clocksync, erase, failpoints, ripe, sql
from durable_flows.engine.stop import stopping
from durable_flows.rules import clock, retention
from durable_flows.rules.retention import Notes, Pass, Stage

logger = logging.getLogger(__name__)

THE_ROW = 1
EVERY = 600.0  # real seconds between two passes
WHOLE = timedelta(days=1)  # between two that begin at the beginning
HELD = 60.0  # real seconds after which whoever has been silent for so long is not thought to purge
LOOK = 0.5  # real seconds between two looks at whether another process still purges
LOOKED_AT = 500  # rows that a statement looks at beside those that it is to find
MOST_FAILURES = 10  # of single rows in one turn

Removed = Counter[str]
Tell = Callable[["Purging"], None]


@dataclass(slots=True, kw_only=True)
class Purging:
    """The turn of this process.

    Attributes:
        turn: the fencing token.
        notes: what is noted when the turn is over.
        removed: how many rows of each kind, so far.
        size: rows of the next transaction.
        failures: rows that could not be deleted.
    """

    turn: int
    notes: Notes
    removed: Removed = field(default_factory=Counter)
    size: int = retention.FIRST
    failures: int = 0

    @property
    def place(self) -> UUID | None:
        """The last row that it has looked at; None: it is done."""
        return self.notes.underway.place if self.notes.underway else None

    @property
    def created_until(self) -> datetime | None:
        """The time of that row; None: there is none."""
        place = self.place
        return retention.moment_of(place) if place and place != retention.NOBODY else None


def is_due() -> bool:
    """Whether there may be something to do, and nobody is at it."""
    rows = sql.execute(
        f"SELECT {_NOT_HELD} AND {_IS_TIME} FROM durable_flows_purge known WHERE known.id = %(row)s",
        _moments(),
    )
    return not rows or bool(rows[0][0])


def take_turn() -> Removed | None:
    """Go on with the pass, or begin one, for ``PURGE_SECONDS`` at most.

    Returns:
        How many rows of each kind are gone; None: it is another process's turn, or too early.
    """
    clocksync.synchronise()
    mine = _take() if is_due() else None
    if mine is None:
        return None
    until = time.monotonic() + conf.settings().PURGE_SECONDS

    def goes_on() -> bool:
        return time.monotonic() < until and not stopping.is_set()

    _walk(mine, goes_on, rests=True)
    return mine.removed


def purge_all(tell: Tell | None = None, *, rests: bool = True) -> Removed:
    """A whole pass from the beginning, here and now; waits for another process that purges.

    Args:
        tell: called after each batch.
        rests: whether others are to be spared.

    Returns:
        How many rows of each kind are gone.
    """
    clocksync.synchronise()
    while (mine := _take(anew=True)) is None:
        time.sleep(LOOK)

    def goes_on() -> bool:
        if tell is not None:
            tell(mine)
        return True

    _walk(mine, goes_on, rests=rests)
    return mine.removed


# -- the walk ----------------------------------------------------------------------------------


def _walk(mine: Purging, goes_on: Callable[[], bool], *, rests: bool) -> None:
    """Walk until the pass is done, or another process has taken over."""
    try:
        while (underway := mine.notes.underway) is not None:
            if not _next_batch(mine, underway, rests=rests):
                return
            if not goes_on():
                break
    except (Exception, KeyboardInterrupt):
        with suppress(DatabaseError):  # then it is thought to be at it for a while
            _leave(mine, EVERY)
        raise
    _leave(mine, 0.0 if mine.notes.underway else EVERY)


def _next_batch(mine: Purging, underway: Pass, *, rests: bool) -> bool:
    """Look at the next rows, and delete those that may go. False: another process has taken over."""
    began = time.monotonic()
    now = _up_to_date(underway)
    if now.stage == Stage.REST:
        mine.removed += erase.rest(now.bounds)
        is_mine = _pass_by(mine, now, None)
    else:
        ids, last = _look(now, min(mine.size, conf.settings().PURGE_BATCH))
        is_mine = _delete(mine, now, ids, last) if ids else _pass_by(mine, now, last)
    if rests:
        stopping.wait(time.monotonic() - began)
    return is_mine


def _up_to_date(underway: Pass) -> Pass:
    """The same pass; what it knows of who needs what, and of the settings, is not old."""
    now = clock.now()
    if underway.is_fresh(ripe.keep(), now):
        return underway
    return replace(underway, at=now, keep=str(ripe.keep()), bounds=ripe.bounds(now))


def _look(now: Pass, size: int) -> tuple[list[UUID], UUID | None]:
    """The next rows that are old enough, and the last that was looked at."""
    span = ripe.span_of_runs if now.stage == Stage.RUNS else ripe.span_of_events
    ids, last = span(now.bounds, now.place, size + LOOKED_AT)
    return (ids, last) if len(ids) <= size else (ids[:size], ids[size - 1])


def _delete(mine: Purging, now: Pass, ids: list[UUID], last: UUID | None) -> bool:
    """Delete in one transaction, and note it there. What cannot be deleted holds up nothing else."""
    began = time.monotonic()
    notes = _after(mine.notes, now, last)
    try:
        gone, is_mine = _delete_at_once(mine.turn, now, ids, notes)
    except erase.TooMuch:
        mine.size = max(1, len(ids) // 4)
        return True
    except Exception as error:
        if sql.is_transient(error) or mine.failures > MOST_FAILURES:
            raise
        if len(ids) > 1:
            mine.size = 1
            return True
        logger.exception("%s %s could not be purged", now.stage, ids[0])
        mine.failures += 1
        return _pass_by(mine, now, last)
    failpoints.reach("purged", now.stage)
    mine.notes, mine.removed = notes, mine.removed + gone
    took = time.monotonic() - began
    mine.size = retention.next_size(len(ids), took, conf.settings().PURGE_BATCH)
    return is_mine


def _delete_at_once(turn: int, now: Pass, ids: list[UUID], notes: Notes) -> tuple[Removed, bool]:
    delete = erase.runs if now.stage == Stage.RUNS else erase.events
    with sql.atomic():
        sql.wait_briefly()
        gone = delete(now.bounds, ids)
        is_mine = _note(turn, notes)
        failpoints.reach("before_purge_commit", now.stage)
    return gone, is_mine


def _pass_by(mine: Purging, now: Pass, last: UUID | None) -> bool:
    """Go on without a deletion."""
    mine.notes = _after(mine.notes, now, last)
    return _note(mine.turn, mine.notes)


def _after(notes: Notes, now: Pass, last: UUID | None) -> Notes:
    """How far it has come when all until ``last`` has been looked at; None: the stage is over."""
    if last is not None:
        return replace(notes, underway=replace(now, place=last))
    if now.stage == Stage.RUNS:
        following = replace(now, stage=Stage.EVENTS, place=now.events_from)
        return replace(notes, underway=following, runs_from=now.bounds.runs_end)
    if now.stage == Stage.EVENTS:
        following = replace(now, stage=Stage.REST)
        return replace(notes, underway=following, events_from=now.bounds.events_end)
    return replace(notes, underway=None)


# -- the row -----------------------------------------------------------------------------------

#: Nobody is at it; and that is not so far ahead that the clock must have been put back.
_NOT_HELD = "(known.held_until <= %(now)s::timestamptz OR known.held_until > %(held)s::timestamptz)"
_IS_TIME = "(known.next_at <= %(now)s::timestamptz OR known.next_at > %(next)s::timestamptz)"


def _moments() -> dict[str, Any]:
    now = clock.now()
    return {
        "row": THE_ROW,
        "now": now,
        "held": now + clock.real(HELD),
        "next": now + clock.real(EVERY),
    }


def _take(*, anew: bool = False) -> Purging | None:
    """The row of the purge: whoever takes it goes on with the pass, or begins one."""
    condition = _NOT_HELD if anew else f"{_NOT_HELD} AND {_IS_TIME}"
    rows = sql.execute(
        "INSERT INTO durable_flows_purge AS known (id, turn, held_until, next_at, notes) "
        "VALUES (%(row)s, 1, %(held)s, %(now)s, '') "
        "ON CONFLICT (id) DO UPDATE SET turn = known.turn + 1, held_until = %(held)s "
        f"WHERE {condition} RETURNING turn, notes",
        _moments(),
    )
    if not rows:
        return None
    turn, text = rows[0]
    notes = Notes.from_text(text)
    if anew or notes.underway is None:
        notes = _begin(notes, whole=anew)
    failpoints.reach("purge_taken")
    return Purging(turn=turn, notes=notes)


def _begin(notes: Notes, *, whole: bool) -> Notes:
    """A pass: through everything now and then, or through what has come of age since the last one."""
    now = clock.now()
    if whole or not now < notes.whole_at <= now + WHOLE:
        notes = Notes(whole_at=now + WHOLE)
    begun = Pass(
        at=now,
        keep=str(ripe.keep()),
        bounds=ripe.bounds(now),
        stage=Stage.RUNS,
        place=notes.runs_from,
        events_from=notes.events_from,
    )
    return replace(notes, underway=begun)


def _note(turn: int, notes: Notes) -> bool:
    """Note how far it has come. False: another process has taken over, as this one was thought dead."""
    rows = sql.execute(
        "UPDATE durable_flows_purge SET notes = %(notes)s, held_until = %(held)s::timestamptz "
        "WHERE id = %(row)s AND turn = %(turn)s RETURNING id",
        {**_moments(), "turn": turn, "notes": notes.as_text()},
    )
    return bool(rows)


def _leave(mine: Purging, seconds: float = 0.0) -> None:
    """Let others go on, in so many real seconds."""
    now = clock.now()
    sql.execute(
        "UPDATE durable_flows_purge SET held_until = %(now)s::timestamptz, "
        "next_at = %(next_at)s::timestamptz WHERE id = %(row)s AND turn = %(turn)s",
        {"row": THE_ROW, "turn": mine.turn, "now": now, "next_at": now + clock.real(seconds)},
    )
