"""``flows purge``: removes what has been kept for long enough, or counts it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from django.core.management.base import CommandError, OutputWrapper

from durable_flows import conf, models
from durable_flows.engine import census, files, purge
from durable_flows.engine.purge import Purging
from durable_flows.errors import StorageUnavailable
from durable_flows.rules import clock

SHOWN_EVERY = 0.2  # real seconds between two looks at how far it is
RUNS = ("completed", "failed", "cancelled")

PURGE = """Remove what has been kept for long enough: ended runs with all that belongs to them, and
events. KEEP_EVENTS_DAYS, KEEP_COMPLETED_DAYS, KEEP_FAILED_DAYS and KEEP_CANCELLED_DAYS say how
long that is; what an unfinished run may need is kept. The ticks do the same, a little at a
time: this is for a first time, or after a change of the settings. It works in short
transactions with rests in between, beside whatever else goes on, and may be interrupted."""


def run(out: OutputWrapper, *, dry_run: bool, left_over_files: bool) -> None:
    """Purge, or tell what would go and what is held back.

    Raises:
        CommandError: there is no storage whose files are left over, or it does not answer.
    """
    if left_over_files:
        _sweep(out, dry_run=dry_run)
    elif dry_run:
        _count(out)
    else:
        _purge(out)


def _sweep(out: OutputWrapper, *, dry_run: bool) -> None:
    """Remove the files of runs that are gone: a worker died between its two writes."""
    if files.longest() is None:
        raise CommandError(f"STORAGES has no {files.ALIAS!r}: no result is in a file")
    runs = models.Run.objects.using(conf.settings().DATABASE)
    count = 0
    try:
        for run_id, names in files.of_runs():
            if runs.filter(pk=run_id).exists():
                continue
            count += len(names)
            for name in names if not dry_run else ():
                files.remove(name)
    except StorageUnavailable as error:
        raise CommandError(str(error)) from error
    out.write(
        f"{'Would remove' if dry_run else 'Removed'} {_some(count, 'file')} of runs that are gone."
    )


def _purge(out: OutputWrapper) -> None:
    progress = _Progress(out)
    try:
        gone: Mapping[str, int] = purge.purge_all(progress.show)
    except KeyboardInterrupt:
        progress.end()
        out.write("Interrupted; what is gone is gone, and the ticks go on.")
        return
    except StorageUnavailable as error:
        progress.end()
        raise CommandError(f"{error}. What is gone is gone; what has files there stays.") from error
    progress.end()
    out.write(f"Removed {_told(gone)}.")


def _count(out: OutputWrapper) -> None:
    progress = _Progress(out)
    found = census.take(progress.show_seen)
    progress.end()
    out.write(f"Would remove {_told(found.gone)}.")
    for line in _kept(found):
        out.write(line)


def _told(gone: Mapping[str, int]) -> str:
    runs = sum(gone.get(state, 0) for state in RUNS)
    states = ", ".join(f"{gone[state]:,} {state}" for state in RUNS if gone.get(state))
    parts = [
        f"{runs:,} run{'s'[: runs != 1]}{states and f' ({states})'}",
        _some(gone.get("events", 0), "event"),
    ]
    others = {"bulk actions": "bulk action", "deployments": "deployment"}
    parts += [_some(gone[name], one) for name, one in others.items() if gone.get(name)]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _some(count: int, one: str) -> str:
    return f"{count:,} {one}{'s'[: count != 1]}"


def _kept(found: census.Census) -> list[str]:
    lines = []
    if held := found.held.get("runs", 0):
        lines.append(
            f"{_some(held, 'run')} as old, or older, kept: others that are kept need them."
        )
    if held := found.held.get("triggers", 0):
        lines.append(
            f"{_some(held, 'event')} as old, or older, kept: the triggers of runs that are kept."
        )
    if held := found.held.get("events", 0):
        lines.append(
            f"{_some(held, 'event')} as old, or older, kept: unfinished runs may look back to them."
        )
    if found.oldest is not None:
        run = found.oldest
        lines.append(
            f"The oldest unfinished run, {run.id} of flow {run.flow!r}, was started {_age(run.created_at)} "
            "ago: what was routed since then is kept."
        )
    return lines


def _age(moment: datetime) -> str:
    passed = max(timedelta(0), clock.now() - moment)
    if passed >= timedelta(days=2):
        return f"{passed.days:,} days"
    seconds = int(passed.total_seconds())
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} h"


class _Progress:
    """A line that is written again and again; on what is no terminal, nothing."""

    def __init__(self, out: OutputWrapper) -> None:
        self._out = out
        self._is_shown = out.isatty()
        self._next = 0.0
        self._began = time.monotonic()
        self._has_written = False

    def show(self, mine: Purging) -> None:
        """How many rows are gone."""
        self._show(mine.removed, mine.created_until)

    def show_seen(self, gone: Counter[str], place: datetime) -> None:
        """How many rows were counted."""
        self._show(gone, place)

    def end(self) -> None:
        """The next line is another."""
        if self._has_written:
            self._out.write("")

    def _show(self, gone: Mapping[str, int], place: datetime | None) -> None:
        if not self._is_shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SHOWN_EVERY
        self._has_written = True
        runs = sum(gone.get(state, 0) for state in RUNS)
        until = f", now at those of {place:%Y-%m-%d}" if place else ""
        seconds = int(time.monotonic() - self._began)
        text = f"{runs:,} runs, {gone.get('events', 0):,} events{until} ({seconds:,} s)"
        self._out.write(f"\r{text:<78}", ending="")
        self._out.flush()
