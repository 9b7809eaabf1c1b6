"""``flows cancel`` and ``flows replay``: the same command for many runs, with its progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from durable_flows.engine import bulk, paced
from durable_flows.errors import BulkActionOver, InvalidInput
from durable_flows.rules.selection import Selection
from durable_flows.rules.states import BulkKind, BulkState, RunState

PAUSE = 0.1  # real seconds between two looks at whether the next batch may be asked for
WIDTH = 30  # characters of the bar

CANCEL = """Cancel all unfinished runs that fit: those that rest at once, those that execute at their
next step. Needs a filter. Asks first, unless told --yes."""

REPLAY = """Do all runs that fit again, once each and paced: by default those that have failed. For each of
them a new run begins. Asks first, unless told --yes."""


def add_arguments(parser: CommandParser, kind: BulkKind) -> None:
    """What says which runs are meant, and how fast."""
    is_replay = kind == BulkKind.REPLAY
    states = [state.value for state in RunState if is_replay or state in _UNFINISHED]
    parser.add_argument("--flow", metavar="ID", help="of this flow")
    parser.add_argument(
        "--state",
        action="append",
        choices=states,
        help=f"in this state; may be given more than once (default {', '.join(_default(kind))})",
    )
    parser.add_argument("--created-after", metavar="WHEN", help="a date, or a moment in ISO text")
    parser.add_argument("--created-before", metavar="WHEN", help="a date, or a moment in ISO text")
    parser.add_argument("--reason-contains", metavar="TEXT", help="with this in their reason")
    parser.add_argument(
        "--if", dest="if_", metavar="EXPRESSION", help="an expression over event, their event"
    )
    parser.add_argument("--reason", default="", help="why, for people")
    parser.add_argument("--by", default=f"manage.py flows {kind.value}", help="who asks")
    parser.add_argument(
        "--rate",
        default="10/s" if is_replay else None,
        help="at most so many on the average, as in 10/s, 100/m or 5/h (default "
        f"{'%(default)s' if is_replay else 'no limit'})",
    )
    parser.add_argument("--dry-run", action="store_true", help="only count them")
    parser.add_argument("--yes", action="store_true", help="do not ask")


_UNFINISHED = (RunState.QUEUED, RunState.STARTED)


def _default(kind: BulkKind) -> tuple[str, ...]:
    states = (RunState.FAILED,) if kind == BulkKind.REPLAY else _UNFINISHED
    return tuple(state.value for state in states)


def run(
    kind: BulkKind,
    options: dict[str, Any],
    out: OutputWrapper,
    *,
    ask: Callable[[str], str] = input,
) -> None:
    """Count, ask, and carry it out here; ticks elsewhere help, and go on if this process dies.

    It is begun here too, so that nobody need route: a router that does the same changes nothing.

    Raises:
        CommandError: an argument means nothing, or nobody is there to be asked.
    """
    try:
        selection = _selection(kind, options)
        count = bulk.count(selection)
        out.write(f"{_runs(count)} {'fits' if count == 1 else 'fit'}")
        if options["dry_run"] or not count or not (options["yes"] or _is_sure(kind, count, ask)):
            return
        wanted = {name: options[name] for name in ("reason", "rate", "by")}
        bulk_id = bulk.ask(kind, selection, **wanted)
    except InvalidInput as error:
        raise CommandError(str(error)) from error
    try:
        bulk.begin(bulk.as_id(bulk_id))
        _carry_out(bulk_id, out)
    except KeyboardInterrupt:
        _break_off(bulk_id, out)


def _selection(kind: BulkKind, options: dict[str, Any]) -> Selection:
    what = bulk.CANCEL_ALL if kind == BulkKind.CANCEL else bulk.REPLAY
    names = ("created_after", "created_before", "reason_contains", "if_")
    return bulk.selection(
        what,
        options["flow"],
        options["state"] or _default(kind),
        **{name: options[name] for name in names},
    )


def _is_sure(kind: BulkKind, count: int, ask: Callable[[str], str]) -> bool:
    try:
        return ask(f"{kind.value.capitalize()} {_runs(count)}? [y/N] ").strip().lower() == "y"
    except EOFError:
        raise CommandError("Nobody is there to be asked: say --yes.") from None


def _carry_out(bulk_id: str, out: OutputWrapper) -> None:
    bar = _Bar(out)
    while True:
        paced.count_on(bulk.as_id(bulk_id))
        asked = paced.next_batch(bulk.as_id(bulk_id))
        progress = bulk.bulk_progress(bulk_id)
        bar.show(progress)
        if progress.state != BulkState.RUNNING:
            break
        if asked is None:
            time.sleep(PAUSE)
    out.write(f"{bulk_id} {progress.state}: asked for {_runs(progress.done)}\n")


def _break_off(bulk_id: str, out: OutputWrapper) -> None:
    with suppress(BulkActionOver):
        bulk.cancel_bulk(bulk_id, reason="interrupted")
    done = bulk.bulk_progress(bulk_id).done
    out.write(f"\n{bulk_id} is broken off; what it has asked for stays: {_runs(done)}\n")


class _Bar:
    """A line that is written again and again; on what is no terminal, nothing."""

    def __init__(self, out: OutputWrapper) -> None:
        self._out = out
        self._is_shown = out.isatty()

    def show(self, progress: bulk.Progress) -> None:
        """How far it has come."""
        if not self._is_shown:
            return
        end = "\n" if progress.state != BulkState.RUNNING else ""
        text = f"\r{_how_far(progress)}, asked for {progress.done:,}"
        self._out.write(text + end, ending="")
        self._out.flush()


def _how_far(progress: bulk.Progress) -> str:
    if progress.total is None:
        return f"[{'?' * WIDTH}] {progress.seen:,}, counting how many there are"
    part = min(1.0, progress.seen / progress.total) if progress.total else 1.0
    return f"[{'#' * int(part * WIDTH):<{WIDTH}}] {progress.seen:,} of {progress.total:,}"


def _runs(count: int) -> str:
    return f"{count:,} run{'s'[: count != 1]}"
