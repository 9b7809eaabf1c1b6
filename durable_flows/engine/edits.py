"""A step of a run that is done again: where it stands, and what it may be given instead.

What is given is recorded in the shape in which the step's tool reads it back. Of a wait, the tool is told
by what is recorded; by its rows among the waits where that is nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from durable_flows import conf, models
from durable_flows.engine import keeping
from durable_flows.engine.approvals import Decision
from durable_flows.errors import InvalidOption, UnknownStep
from durable_flows.middleware import About, Chain
from durable_flows.rules import clock, events, payload, replays, signals
from durable_flows.rules.events import DECIDED, SIGNALLED, Event
from durable_flows.rules.signals import Signal
from durable_flows.rules.states import StepKind, WaitKind

STEPS_NAMED = 20  # in an error, of those that a run has recorded

_RETURNS: dict[str, type] = {SIGNALLED: Signal, DECIDED: Decision}
_NO_OUTPUT: dict[str, str] = {
    StepKind.SLEEP: "is a sleep, which has no output",
    StepKind.RACE: "is a race, which has no output: which branch has won is decided by executing it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A step that a run has come to.

    Attributes:
        run: the run.
        key: the step's key.
        seq: its place among the recorded steps, or that which it would have had.
        kind: which tool.
        parts: the keys of its waits, if it is one with several.
        flow: the run's.
    """

    run: uuid.UUID
    key: str
    seq: int
    kind: str
    parts: tuple[str, ...] = ()
    flow: str = ""

    @classmethod
    def of(cls, run: uuid.UUID, key: str, flow: str) -> Place:
        """Where this step stands. Raises `UnknownStep`."""
        recorded = {
            name: (seq, kind)
            for name, seq, kind in _rows(models.Step, run)
            .order_by("seq")
            .values_list("key", "seq", "kind")
        }
        parts = _parts(run, key, [name for name in recorded if recorded[name][1] == StepKind.WAIT])
        if key in recorded:
            seq, kind = recorded[key]
            return cls(run=run, key=key, seq=seq, kind=kind, parts=parts, flow=flow)
        kind = StepKind.WAIT if parts else _begun(run, key)
        if not kind:
            named = ", ".join(map(repr, list(recorded)[:STEPS_NAMED])) or "none"
            more = ", …" if len(recorded) > STEPS_NAMED else ""
            raise UnknownStep(
                key, f"run {run} has not come to a step {key!r}; it has recorded {named}{more}"
            )
        after = max((seq for seq, _ in recorded.values()), default=0) + 1
        return cls(run=run, key=key, seq=after, kind=kind, parts=parts, flow=flow)


def _rows(model: type[Any], run: uuid.UUID) -> Any:
    return model.objects.using(conf.settings().DATABASE).filter(run=run)


def _parts(run: uuid.UUID, key: str, recorded: Collection[str]) -> tuple[str, ...]:
    """The keys of a step's several waits, in order; none if it is no such step."""
    waits = _rows(models.Wait, run).filter(kind=WaitKind.STEP, key__startswith=f"{key}[")
    return tuple(replays.parts_of(key, [*recorded, *waits.values_list("key", flat=True)]))


def _begun(run: uuid.UUID, key: str) -> str:
    """The kind of a step that has no record yet; empty if the run has not come to it."""
    kinds = _rows(models.Wait, run).filter(key=key).values_list("kind", flat=True)
    if WaitKind.STEP in kinds:
        return StepKind.WAIT
    if WaitKind.CHILD in kinds:
        return StepKind.INVOKE
    if _rows(models.Fanout, run).filter(key=key).exists():
        return StepKind.MAP
    return StepKind.RUN if _rows(models.Attempt, run).filter(key=key).exists() else ""


# -- what it is given ------------------------------------------------------------------------


def given(input: Any, place: Place, chain: Chain) -> str:
    """What a step's function is to be called with, as JSON text.

    Args:
        input: positional arguments, or named ones.
        place: the step.
        chain: the flow's middleware.

    Raises:
        InvalidOption: the step calls no function, or these are no arguments.
        InvalidPayload: they are no JSON, or too large.
    """
    if place.kind != StepKind.RUN:
        raise InvalidOption(
            f"rerun(): step {place.key!r} calls no function of yours ({place.kind}), so it has no input="
        )
    if not isinstance(input, list | tuple | dict):
        raise InvalidOption(
            f"rerun(): input= is a list of arguments, or a dict of named ones, not {input!r}"
        )
    limits, about = conf.settings().result_limits, About("input", place.flow, place.key)
    stored = keeping.through(chain, input, about, limits, "/input")
    return payload.dumps(stored, limits=limits, pointer="/input")


# -- what it has come to ---------------------------------------------------------------------


def encoded(output: Any, place: Place, chain: Chain) -> str | None:
    """What a step is said to have come to, as JSON text in the shape that its tool reads back.

    Args:
        output: that.
        place: the step.
        chain: the flow's middleware.

    Raises:
        InvalidOption: the step has no output, or none like this.
        InvalidPayload, InvalidEvent: it is no JSON, or too large.
    """
    limits = conf.settings().result_limits
    if place.kind == StepKind.WAIT:
        output = _ended(output, place)
        if output is None:
            return None
    elif place.kind in (StepKind.SEND, StepKind.MAP):
        _check_list(output, place)
    elif place.kind not in (StepKind.RUN, StepKind.INVOKE):
        why = _NO_OUTPUT.get(place.kind, f"has no output of its own ({place.kind})")
        raise InvalidOption(f"rerun(): step {place.key!r} {why}")
    if place.kind in (StepKind.RUN, StepKind.INVOKE, StepKind.MAP):
        about = About("step", place.flow, place.key)
        if place.kind == StepKind.MAP:
            output = [
                keeping.through(chain, item, about, limits, f"/output/{number}")
                for number, item in enumerate(output)
            ]
        else:
            output = keeping.through(chain, output, about, limits, "/output")
    return payload.dumps(output, limits=limits, pointer="/output")


def _check_list(output: Any, place: Place) -> None:
    what = "runs, so output= is the list of their results"
    if place.kind == StepKind.SEND:
        what = "events, so output= is the list of their ids"
    is_list = isinstance(output, list | tuple)
    if not is_list or (
        place.kind == StepKind.SEND and not all(isinstance(one, str) for one in output)
    ):
        raise InvalidOption(f"rerun(): step {place.key!r} sends {what}, not {output!r}")


def _ended(output: Any, place: Place) -> Any:
    """What a wait is recorded with that has ended so."""
    taken = list if place.parts else _returns(place)
    if taken is list:
        return _all_ended(output, place)
    if output is None:
        return None
    if not isinstance(output, taken or Event | Signal | Decision):
        wanted = "an Event, a Signal or a Decision" if taken is None else f"a {taken.__name__}"
        wanted = "an Event" if taken is Event else wanted
        what = {Signal: "a signal", Decision: "an approval"}.get(taken or Event, "an event")
        raise InvalidOption(
            f"rerun(): step {place.key!r} waits for {what}: output= is {wanted}, or None for its "
            f"timeout, not {output!r}"
        )
    if isinstance(output, Event):
        return _as_dict(output, "/output")
    return _as_command(output)


def _all_ended(output: Any, place: Place) -> list[Any]:
    """The same for several waits; of those for which nothing is said the time is over."""
    listed = [] if output is None else output
    count = len(place.parts) or _recorded_count(place)
    if (
        not isinstance(listed, list | tuple)
        or (count and len(listed) > count)
        or not all(one is None or isinstance(one, Event) for one in listed)
    ):
        most = f" {count}" if count else ""
        raise InvalidOption(
            f"rerun(): step {place.key!r} waits for several events: output= is a list of{most}, each an "
            f"Event, or None for what has not come, not {output!r}"
        )
    said = [one and _as_dict(one, f"/output/{number}") for number, one in enumerate(listed)]
    return said + [None] * (count - len(said))


def _recorded_count(place: Place) -> int:
    """How many events a step has got or missed that was given them."""
    step = _rows(models.Step, place.run).filter(key=place.key).only("output").first()
    return len(payload.loads(step.output)) if step and step.output else 0


def _as_dict(event: Event[Any], pointer: str) -> dict[str, Any]:
    seal, limits = keeping.sealing(), conf.settings().event_limits
    encoded = events.encode(
        event, limits=limits, pointer=pointer, seal=seal and partial(seal, event.name)
    )
    document = replace(event, ts=event.ts or clock.now()).as_dict()
    user = encoded.user and payload.loads(encoded.user)
    return {**document, "data": payload.loads(encoded.data), "user": user}


def _as_command(output: Any) -> dict[str, Any]:
    """The command by which the wait would have ended."""
    try:
        name = output.name if isinstance(output, Signal) else DECIDED
        stored = replace(output, data=keeping.said(output.data, name, pointer="/output/data"))
        event = signals.told(stored) if isinstance(stored, Signal) else stored.told()
    except (AttributeError, TypeError) as error:
        raise InvalidOption(f"rerun(): output= has a field that cannot be read: {error}") from error
    limits = conf.settings().event_limits
    events.encode(Event("output", output.data), limits=limits, pointer="/output")
    return replace(event, ts=clock.now()).as_dict()


def _returns(place: Place) -> type | None:
    """What the tool of this wait returns; None if nothing tells it any more."""
    for run in _origins(place.run):
        step = _rows(models.Step, run).filter(key=place.key).only("output", "error").first()
        recorded = payload.loads(step.output) if step and step.output else None
        if isinstance(recorded, list):
            return list
        if recorded is not None:
            return _RETURNS.get(recorded["name"], Event)
        if step and step.error:  # of waits those for signals alone can fail
            return Signal
        waits = _rows(models.Wait, run).filter(key=place.key, kind=WaitKind.STEP)
        for name in waits.values_list("event_name", flat=True)[:1]:
            return _RETURNS.get(name, Event)
    return None


def _origins(run: uuid.UUID) -> Iterator[uuid.UUID]:
    """This run, and those whose first steps it has taken over: the waits that timed out stay with them."""
    runs = models.Run.objects.using(conf.settings().DATABASE)
    found: uuid.UUID | None = run
    while found is not None:
        yield found
        found = runs.filter(pk=found).values_list("origin", flat=True).first()
