"""The same command for many runs: chosen by a filter, paced, a batch at a time.

It is asked for by a command, as anything is: the router stores the bulk action, under the command's id. The
runs are those that were there when it was asked for; whether they fit is looked at when their turn has
come. See `paced` for that.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from typing import Any

from django.utils import timezone

from durable_flows import conf, models
from durable_flows.engine import ingest, ring, sql, stored
from durable_flows.errors import BulkActionOver, ExpressionFailed, InvalidOption, UnknownBulkAction
from durable_flows.flows import Flow
from durable_flows.querysets import RunQuerySet
from durable_flows.rules import clock, events, expressions, payload
from durable_flows.rules.selection import Selection, per_second
from durable_flows.rules.states import TERMINAL, BulkKind, BulkState, RunState

AT_ONCE = 500  # runs asked for in one transaction
SPAN = 5_000  # runs among which one statement looks for those that fit: a filter may find few
NOBODY = uuid.UUID(int=0)
CANCEL_ALL, REPLAY = "cancel_all()", "replay()"

When = datetime | date | str | None


def cancel_all(
    flow: Flow | str | None = None,
    *,
    state: str | Iterable[str] = (RunState.QUEUED, RunState.STARTED),
    created_after: When = None,
    created_before: When = None,
    reason_contains: str | None = None,
    if_: str | None = None,
    reason: str = "",
    rate: str | None = None,
    by: str = "",
) -> str:
    """Ask for all unfinished runs to be cancelled that fit; joins the caller's transaction.

    Args:
        flow: of this flow, or of its id.
        state: in any of these states: ``"queued"``, ``"started"``.
        created_after: at that moment or later: a datetime, a date or ISO text.
        created_before: before that moment.
        reason_contains: text within their reason.
        if_: an expression over ``event``, the event that started them.
        reason: noted on the runs.
        rate: at most so many, on the average: ``"10/s"``, ``"100/m"``, ``"5/h"``. Default: no limit.
        by: who asks, for people.

    Returns:
        The bulk action's id, for `bulk_progress` and `cancel_bulk`. The ticks carry it out.

    Raises:
        InvalidOption, InvalidDuration, InvalidExpression: an argument cannot be understood, or
            nothing says which runs are meant.
        InvalidEvent: they cannot be stored, or are too large together for an event.
    """
    asked = selection(
        CANCEL_ALL,
        flow,
        state,
        created_after=created_after,
        created_before=created_before,
        reason_contains=reason_contains,
        if_=if_,
    )
    return ask(BulkKind.CANCEL, asked, reason=reason, rate=rate, by=by)


def replay(
    flow: Flow | str | None = None,
    *,
    state: str | Iterable[str] = (RunState.FAILED,),
    created_after: When = None,
    created_before: When = None,
    reason_contains: str | None = None,
    if_: str | None = None,
    reason: str = "",
    rate: str = "10/s",
    by: str = "",
) -> str:
    """Ask for all runs that fit to be done again, once each; joins the caller's transaction.

    For each of them a new run begins, as by `rerun`.

    Args:
        flow: of this flow, or of its id.
        state: in any of these states, by default the failed ones.
        created_after: at that moment or later: a datetime, a date or ISO text.
        created_before: before that moment.
        reason_contains: text within their reason, which of a failed run names the error.
        if_: an expression over ``event``, the event that started them.
        reason: noted on the commands.
        rate: at most so many, on the average: ``"10/s"``, ``"100/m"``, ``"5/h"``.
        by: who asks, for people.

    Returns:
        The bulk action's id, for `bulk_progress` and `cancel_bulk`. The ticks carry it out.

    Raises:
        InvalidOption, InvalidDuration, InvalidExpression: an argument cannot be understood.
        InvalidEvent: they cannot be stored, or are too large together for an event.
    """
    asked = selection(
        REPLAY,
        flow,
        state,
        created_after=created_after,
        created_before=created_before,
        reason_contains=reason_contains,
        if_=if_,
    )
    return ask(BulkKind.REPLAY, asked, reason=reason, rate=rate, by=by)


def cancel_bulk(bulk_id: str | uuid.UUID, *, reason: str = "") -> str:
    """Ask for a bulk action to go no further; joins the caller's transaction.

    What it has asked for already stays asked for.

    Args:
        bulk_id: as `cancel_all` or `replay` returned it.
        reason: why, or who asks; noted on the command.

    Returns:
        The bulk action's id.

    Raises:
        UnknownBulkAction: there is none of this id.
        BulkActionOver: it is done, or has been cancelled.
        InvalidOption: ``reason`` is no text.
    """
    action = _action(bulk_id)
    _check_text("cancel_bulk()", "reason", reason)
    if action.state != BulkState.RUNNING:
        raise _over(action)
    ingest.command(events.STOP_BULK, str(action.pk), {"reason": reason} if reason else {})
    return str(action.pk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a bulk action has come.

    Attributes:
        kind: cancel or replay.
        state: running, done or cancelled; running from the moment it was asked for.
        total: runs that its filter finds, its expression left out of account; None while these are
            being counted.
        seen: how many of them it has looked at.
        done: for how many it has asked: those that still fitted.
    """

    kind: str
    state: str
    total: int | None
    seen: int
    done: int


def bulk_progress(bulk_id: str | uuid.UUID) -> Progress:
    """How far a bulk action has come.

    Raises:
        UnknownBulkAction: there is none of this id.
    """
    action = _action(bulk_id)
    return Progress(
        kind=action.kind,
        state=action.state,
        total=action.total if action.counted is None else None,
        seen=action.seen,
        done=action.done,
    )


def stop(bulk_id: uuid.UUID) -> None:
    """Let it go no further; inside the router's transaction.

    Raises:
        UnknownBulkAction, BulkActionOver: there is nothing to stop.
    """
    rows = sql.execute(
        "UPDATE durable_flows_bulkaction SET state = 'cancelled', ended_at = %(now)s::timestamptz "
        "WHERE id = %(id)s AND state = 'running' RETURNING id",
        {"id": bulk_id, "now": clock.now()},
    )
    if not rows:
        raise _over(_action(bulk_id))


# -- which runs ------------------------------------------------------------------------------


def existing(at: datetime) -> RunQuerySet:
    """The runs that were there at that moment."""
    return models.Run.objects.using(conf.settings().DATABASE).filter(created_at__lte=at)


def span(
    selection: Selection, at: datetime, after: uuid.UUID
) -> tuple[RunQuerySet, uuid.UUID | None]:
    """Those that fit among the next runs, as far as their columns say: as many as one look may cost.

    Args:
        selection: which.
        at: that were there at that moment.
        after: behind this one, in the order of ids.

    Returns:
        They, in this order, and the last run that was looked at; None: there are no more behind them.
    """
    known = models.Run.objects.using(conf.settings().DATABASE).filter(pk__gt=after).order_by("pk")
    walked = known.filter(flow=selection.flow) if selection.flow else known
    last = walked.values_list("pk", flat=True)[SPAN - 1 : SPAN].first()
    found = existing(at).selected(selection).filter(pk__gt=after).order_by("pk")
    return (found.filter(pk__lte=last) if last else found), last


def count(selection: Selection) -> int:
    """How many runs fit now, looked at one by one where there is an expression."""
    runs = existing(clock.now()).selected(selection)
    if not selection.if_:
        return runs.count()
    runs, found, place = runs.order_by("pk").only("pk", "event_id"), 0, NOBODY
    while page := list(runs.filter(pk__gt=place)[:AT_ONCE]):
        found += len(fitting(selection, page))
        place = page[-1].pk
    return found


def fitting(selection: Selection, page: Sequence[models.Run]) -> set[uuid.UUID]:
    """Those whose events fit. An expression that comes to nothing does not."""
    if not selection.if_:
        return {run.pk for run in page}
    asked = expressions.condition(selection.if_, what="if_", names=expressions.TRIGGER)
    triggers = stored.events_by_id({run.event_id for run in page})

    def holds(run: models.Run) -> bool:
        try:
            event = triggers.get(run.event_id)
            return event is not None and expressions.holds(asked, expressions.document(event))
        except ExpressionFailed:
            return False

    return {run.pk for run in page if holds(run)}


# -- asking for it -----------------------------------------------------------------------------


def selection(what: str, flow: Any, state: str | Iterable[str], **filters: Any) -> Selection:
    """Which runs a caller means. Raises what `cancel_all` does."""
    if not isinstance(flow, Flow | str | None) or flow == "":
        raise InvalidOption(f"{what} takes a flow or the id of one, not {flow!r}")
    flow_id = flow.id if isinstance(flow, Flow) else flow or ""
    zone = timezone.get_current_timezone()
    found = Selection.of(what, flow=flow_id, states=state, tz=zone, **filters)
    if what == CANCEL_ALL:
        _check_cancellable(found)
    return found


def _check_cancellable(found: Selection) -> None:
    if ended := sorted(TERMINAL.intersection(found.states)):
        raise InvalidOption(
            f"{CANCEL_ALL}: a run that is {ended[0]} has ended: it cannot be cancelled"
        )
    if replace(found, states=()) == Selection():
        raise InvalidOption(
            f"{CANCEL_ALL} would cancel every run there is: name a flow, a time or an expression; "
            "created_before=now is everything"
        )


def ask(kind: BulkKind, asked: Selection, *, reason: str, rate: str | None, by: str) -> str:
    """Store the command that begins a bulk action. Returns its id, which is that of both."""
    what = CANCEL_ALL if kind == BulkKind.CANCEL else REPLAY
    for name, text in (("reason", reason), ("by", by)):
        _check_text(what, name, text)
    carried = {
        "selection": asdict(asked),
        "reason": reason,
        "by": by,
        "rate": None if rate is None else per_second(rate, what=f"{what}, rate="),
    }
    return str(ingest.command(events.BEGIN_BULK, kind.value, carried, _same))


def _same(command_id: uuid.UUID) -> uuid.UUID:
    """One router takes what begins and what stops a bulk action."""
    return command_id


def begin(command_id: uuid.UUID) -> None:
    """Store the bulk action that this command asks for, unless that was done before."""
    rows = sql.execute(
        "SELECT target, data, received_at FROM durable_flows_event WHERE id = %(id)s",
        {"id": command_id},
    )
    kind, data, asked_at = rows[0]
    asked = payload.loads(data)
    sql.insert(
        models.BulkAction,
        {
            "id": [command_id],
            "kind": [kind],
            "filters": [json.dumps(asked["selection"])],
            "reason": [asked["reason"]],
            "created_by": [asked["by"]],
            "rate": [asked["rate"]],
            "state": [BulkState.RUNNING.value],
            "total": [0],
            "counted": [NOBODY],
            "seen": [0],
            "done": [0],
            "place": [NOBODY],
            "next_at": [clock.now()],
            "created_at": [sql.moment(asked_at)],
        },
    )
    sql.on_commit(ring.tick)


def as_id(bulk_id: Any) -> uuid.UUID:
    """Raise `UnknownBulkAction` unless this is an id."""
    try:
        return uuid.UUID(str(bulk_id))
    except ValueError:
        raise UnknownBulkAction(f"{bulk_id!r} is no id: ids are UUIDs") from None


def _action(bulk_id: Any) -> models.BulkAction:
    wanted = as_id(bulk_id)
    actions = models.BulkAction.objects.using(conf.settings().DATABASE)
    return actions.filter(pk=wanted).first() or _asked_for(wanted)


def _asked_for(bulk_id: uuid.UUID) -> models.BulkAction:
    """One that the router has not begun yet. Raises `UnknownBulkAction`."""
    commands = models.Event.objects.using(conf.settings().DATABASE).filter(name=events.BEGIN_BULK)
    command = commands.filter(pk=bulk_id).only("target", "quarantined", "error").first()
    if command is None:
        raise UnknownBulkAction(f"there is no bulk action {bulk_id}")
    if command.quarantined:
        why = command.error.partition("\n")[0]
        raise UnknownBulkAction(
            f"bulk action {bulk_id} has not begun, its command was set aside: {why}"
        )
    return models.BulkAction(id=bulk_id, kind=command.target, counted=NOBODY)


def _over(action: models.BulkAction) -> BulkActionOver:
    return BulkActionOver(f"bulk action {action.pk} is over: {action.state}")


def _check_text(what: str, name: str, text: Any) -> None:
    if not isinstance(text, str) or "\0" in text:
        raise InvalidOption(f"{what}: {name}= is text without NUL, not {text!r}")
