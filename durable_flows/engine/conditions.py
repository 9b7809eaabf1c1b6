"""Decides by expressions: which flows an event starts, and which of its candidates a wait takes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from durable_flows.engine import notes
from durable_flows.engine.stored import Routed
from durable_flows.errors import ExpressionFailed
from durable_flows.registry import registry
from durable_flows.rules import events, expressions
from durable_flows.rules.equalities import NEW, OWN
from durable_flows.rules.events import Event
from durable_flows.rules.options import On

Verdict = Callable[[Event], bool]


@dataclass(frozen=True, slots=True)
class Starts:
    """What an event starts.

    Attributes:
        flow_ids: each once, whichever of its triggers are met.
        failed: flow id → why it could not be told whether the event starts it.
    """

    flow_ids: tuple[str, ...]
    failed: dict[str, str]


_NOTHING = Starts((), {})


def starts_of(routed: Routed) -> Starts:
    """The flows that an event starts. A command starts the flow it names, or none."""
    if routed.target:
        if routed.name in (events.START, events.INVOKE):
            return Starts((routed.target,), {})
        return _NOTHING
    listeners = registry.listeners(routed.name)
    if not listeners:
        return _NOTHING
    flow_ids, failed = [], {}
    for listener in listeners:
        try:
            if not listener.conditional or _is_met(listener.conditional, routed):
                flow_ids.append(listener.flow.id)
        except ExpressionFailed as error:
            failed[listener.flow.id] = f"if_ came to nothing: {error}"
    return Starts(tuple(flow_ids), failed)


def are_asked(batch: Iterable[Routed]) -> bool:
    """Whether any expression is evaluated to tell what these events start."""
    names = {routed.name for routed in batch if not routed.target}
    return any(listener.conditional for name in names for listener in registry.listeners(name))


def _is_met(triggers: Sequence[On], routed: Routed) -> bool:
    """Whether any is met. One that comes to nothing matters only if no other is met."""
    document = expressions.document(routed.event)
    failure: ExpressionFailed | None = None
    for trigger in triggers:
        try:
            if expressions.holds(trigger.condition(), document):
                return True
        except ExpressionFailed as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return False


class Judge:
    """Evaluates what the paths of waits cannot say, and remembers what came to nothing."""

    def __init__(self) -> None:
        self._warnings: dict[tuple[uuid.UUID, str], str] = {}

    def of(self, run_id: uuid.UUID, about: str, expression: str, own: Event) -> Verdict:
        """Decides on candidates for a wait of this run; ``about`` is what a warning is about."""
        mine = expressions.document(own)

        def accepts(candidate: Event) -> bool:
            documents = {OWN: mine, NEW: expressions.document(candidate)}
            try:
                return expressions.evaluate(expression, documents)
            except ExpressionFailed as error:
                self._warnings.setdefault(
                    (run_id, about),
                    f"if_ came to nothing on event {candidate.public_id}, which did not match: {error}",
                )
                return False

        return accepts

    def note(self) -> None:
        """Leave a warning on the runs whose conditions came to nothing."""
        notes.warn(self._warnings)
