"""Commands about runs and events that are there: validated, and inserted as rows.

Each joins the caller's transaction, as `ingest` does, and is carried out by the router: see `obey`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from durable_flows import conf, installed, models
from durable_flows.engine import edits, ingest, keeping
from durable_flows.engine.edits import Place
from durable_flows.engine.subjects import Subject
from durable_flows.errors import (
    IllegalTransition,
    InvalidOption,
    RunHasEnded,
    UnknownEvent,
    UnknownRun,
)
from durable_flows.registry import registry
from durable_flows.rules import clock, events, keys, payload
from durable_flows.rules.event_types import EventType, catalogue
from durable_flows.rules.states import TERMINAL, RunState
from durable_flows.rules.values import Object


def cancel(run_id: str | uuid.UUID, *, reason: str = "") -> str:
    """Ask for a run to be cancelled; joins the caller's transaction.

    Code that is executing is not interrupted: its result is recorded, no new step starts, then the
    run ends cancelled. A run that has ended by then stays as it is.

    Args:
        run_id: the run, also one that was started in this transaction.
        reason: noted on the run.

    Returns:
        The run's id.

    Raises:
        UnknownRun: ``run_id`` is no run id.
        InvalidOption: ``reason`` is no text.
    """
    run = _run_id(run_id)
    return _ask(events.CANCEL, run, _because("cancel", reason))


def retry(run_id: str | uuid.UUID, *, reason: str = "") -> str:
    """Ask for a failed run to go on from the step that failed; joins the caller's transaction.

    Args:
        run_id: the run.
        reason: why, or who asks; noted on the command.

    Returns:
        The run's id.

    Raises:
        UnknownRun: there is no such run.
        IllegalTransition: the run has not failed.
        InvalidOption: ``reason`` is no text.
    """
    run, data = _run_id(run_id), _because("retry", reason)
    row = _runs().filter(pk=run).only("state").first()
    if row is None:
        raise UnknownRun(f"there is no run {run}; was it purged, or its start rolled back?")
    if row.state != RunState.FAILED:
        raise IllegalTransition(row.state, RunState.QUEUED, "only a failed run can be retried")
    return _ask(events.RETRY, run, data)


def skip(run_id: str | uuid.UUID, step: str, *, reason: str = "") -> str:
    """Ask for a sleep, a wait or the delay before an attempt to be over now.

    Joins the caller's transaction. A sleep ends when this is carried out. A wait, for an event or for
    an invoked run, ends as by its timeout. A step that is to be tried again is tried at once.
    Of a step that waits for several events all that have not come are skipped; one of them has the
    step's key and its number, ``both[0]``. What `Step.map` waits for cannot be skipped.

    Args:
        run_id: the run.
        step: the key of the step at which it sleeps or waits; of code between steps ``after:`` and the
            key of the step before it.
        reason: why, or who asks; noted on the command.

    Returns:
        The run's id. If the run neither sleeps nor waits there when this is carried out, it is
        refused, with the reason on its row among the events.

    Raises:
        UnknownRun: there is no such run.
        RunHasEnded: it has ended.
        InvalidOption: ``step`` is no step's key, or ``reason`` no text.
    """
    run, data = _run_id(run_id), _because("skip", reason)
    _check_key("skip", step)
    state = _runs().filter(pk=run).values_list("state", flat=True).first()
    if state is None:
        raise UnknownRun(_not_there(run))
    if state in TERMINAL:
        raise RunHasEnded(run, state)
    return _ask(events.SKIP, run, {**data, "step": step})


def withdraw(event_id: str | uuid.UUID, *, reason: str = "") -> bool:
    """Ask for an event that lies in the future not to be delivered; joins the caller's transaction.

    The event is kept, and marked. Its own ``id``, if it has one, stays taken.

    Args:
        event_id: the public id, as `send` returned it.
        reason: why, or who asks; noted on the command.

    Returns:
        Whether the event is still to come. If so it is not delivered, provided that this transaction
        is committed before the event's ``ts``; a withdrawal that comes too late is refused, with the
        reason on its row among the events. False: it was delivered or withdrawn before.

    Raises:
        UnknownEvent: there is no such event.
        InvalidOption: ``reason`` is no text.
    """
    data, event = _because("withdraw", reason), _uuid(event_id)
    row = None
    if event is not None:
        rows = models.Event.objects.using(conf.settings().DATABASE).filter(pk=event, target="")
        row = rows.only("deliver_at", "routed_at", "shard").first()
    if row is None:
        raise UnknownEvent(
            f"there is no event {event_id}; was it purged, or its sending rolled back?"
        )
    if row.routed_at is not None or row.deliver_at <= clock.now():
        return False
    ingest.command(events.WITHDRAW, str(row.pk), data, shard=row.shard)
    return True


def rerun(
    run_id: str | uuid.UUID,
    *,
    from_step: str | None = None,
    data: Object | None = None,
    input: Sequence[Any] | Mapping[str, Any] | None = None,
    output: Any = ...,
    reason: str = "",
) -> str:
    """Ask for a new run of the same flow with the same event; joins the caller's transaction.

    The old run stays as it is, and may be in any state. The flow's cancel rules hold for the new one
    as well, for events that are newer than this command.

    Args:
        run_id: the run that is to be done again.
        from_step: the key of a step. What was recorded before it is taken over, and executed again is
            that step and what follows. By default everything is executed again.
        data: what the new run's handler finds in ``event.data``, in place of what the event has. If the
            event has an `EventType`, they must fit that, in the version that it has now.
        input: with ``from_step``, the key of a `Step.run`: what its function is called with. A list takes
            the place of the arguments by position, a dict that of those of its names, however the code
            passes them; the others are as the code says.
        output: with ``from_step``: what that step has come to, which is then not executed. Of a wait
            what it returns, an `Event`, a `Signal` or a `Decision`, or None for its timeout; of one for
            several events a list; of `Step.map` the list of results.
        reason: why, or who asks; noted on the command.

    Returns:
        The new run's id.

    Raises:
        UnknownRun: there is no such run, or it has been started but not been routed yet, as is the
            case for one that was started in the same transaction.
        UnknownStep: the run has never come to ``from_step``.
        InvalidPayload: ``input`` or ``output`` is no JSON value, or too large: with a JSON pointer to
            what is wrong.
        InvalidEvent: the same of ``data``.
        InvalidOption: ``input`` or ``output`` without ``from_step``, or both, or for a step that has
            none, or none like this; ``reason`` is no text.
    """
    run, asked = _run_id(run_id), _because("rerun", reason)
    row = _runs().filter(pk=run).only("flow", "event_id").first()
    if row is None:
        raise UnknownRun(_not_there(run))
    asked |= _from(run, row.flow, from_step, input, output)
    if data is not None:
        asked["event"] = str(_edited(row, data))
    run_of = partial(keys.flow_run_id, row.flow)
    command_id = ingest.command(events.RERUN, str(run), asked, run_of=run_of, limits=_room())
    return str(run_of(command_id))


# -- a step of a run that is done again --------------------------------------------------------


def _from(
    run: uuid.UUID, flow_id: str, step: str | None, input: Any, output: Any
) -> dict[str, Any]:
    """What a command to do a run again says of the step from which on, and what is edited of that."""
    if step is None:
        if input is not None or output is not ...:
            raise InvalidOption(
                "rerun(): input= and output= are those of a step: name it with from_step="
            )
        return {}
    _check_key("rerun", step)
    place = Place.of(run, step, flow_id)
    flow = registry.find(flow_id)
    chain = installed.chain(flow.middleware if flow else ())
    asked: dict[str, Any] = {"from_step": step, "before": place.seq}
    if place.parts:
        asked["parts"] = list(place.parts)
    if input is not None:
        if output is not ...:
            raise InvalidOption(
                "rerun(): a step whose output= is given is not executed; leave out its input="
            )
        asked["input"] = edits.given(input, place, chain)
    if output is not ...:
        asked |= {"kind": place.kind, "output": edits.encoded(output, place, chain)}
    return asked


def _room() -> payload.Limits:
    """What such a command may hold: the text of an output inside a text is twice as long at most."""
    limits = conf.settings()
    most = limits.MAX_EVENT_BYTES + 2 * limits.MAX_RESULT_BYTES
    return replace(limits.event_limits, max_bytes=most)


def _edited(row: models.Run, data: Object) -> uuid.UUID:
    """Store the run's event with other data, for a new run alone. Returns its id."""
    using = conf.settings().DATABASE
    event = models.Event.objects.using(using).defer("data").filter(pk=row.event_id).first()
    if event is None:
        raise UnknownRun(f"the event of run {row.pk} is no longer kept")
    type_ = _type(event.name, row.flow)
    limits = conf.settings().event_limits
    encoded = events.encode_command(
        event.name, str(row.pk), data, limits=limits, type_=type_, seal=keeping.sealing()
    )
    v = event.v if type_ is None else type_.v or ""
    whole = replace(
        encoded,
        user=event.user,
        key=event.key,
        ts=event.ts,
        v=v,
        subject=Subject.read(event.subject_type_id, event.subject_id),
        context=event.context,
    )
    return ingest.store_for_one_run(whole, depth=event.depth, sent_by=event.sender)


def _type(name: str, flow_id: str) -> EventType[Any] | None:
    """What the data of such an event have to fit, whatever the flow makes of them."""
    known, flow = catalogue.find(name), registry.find(flow_id)
    return flow.type_of(name) if known is None and flow is not None else known


# -- what they have in common ------------------------------------------------------------------


def _ask(name: str, run: uuid.UUID, data: dict[str, Any]) -> str:
    ingest.command(name, str(run), data)
    return str(run)


def _because(what: str, reason: Any) -> dict[str, Any]:
    if not isinstance(reason, str):
        raise InvalidOption(f"{what}(): reason= is text, not {reason!r}")
    return {"reason": reason} if reason else {}


def _check_key(what: str, step: Any) -> None:
    if not isinstance(step, str) or not 1 <= len(step) <= 255 or not step.isprintable():
        raise InvalidOption(f"{what}(): a step's key is text of 1 to 255 characters, not {step!r}")


def _runs() -> Any:
    return models.Run.objects.using(conf.settings().DATABASE)


def _not_there(run: uuid.UUID) -> str:
    return (
        f"there is no run {run}; was it purged, or its start rolled back? A run that was started "
        "in this transaction is there when that has been committed and routed"
    )


def _run_id(value: Any) -> uuid.UUID:
    run = _uuid(value)
    if run is None:
        raise UnknownRun(f"{value!r} is no run id: a run's id is a UUID")
    return run


def _uuid(value: Any) -> uuid.UUID | None:
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))
    except ValueError:
        return None
