"""Decides by expressions: which flows an event starts, and which of its candidates a wait takes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from durable_flows.engine import notes
from durable_flows.engine.stored import Routed
from durable_flows.errors import ExpressionFailed
from durable_flows.registry import Flow, registry
from durable_flows.rules import events, expressions
from durable_flows.rules.equalities import NEW, OWN
from durable_flows.rules.events import Event

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


def starts_of(routed: Routed) -> Starts:
    """The flows that an event starts. A command starts the flow it names, or none."""
    if routed.target:
        return Starts((routed.target,) if routed.name == events.START else (), {})
    flow_ids, failed = [], {}
    for flow in registry.listening(routed.name):
        try:
            if _starts(flow, routed):
                flow_ids.append(flow.id)
        except ExpressionFailed as error:
            failed[flow.id] = f"if_ came to nothing: {error}"
    return Starts(tuple(flow_ids), failed)


def _starts(flow: Flow, routed: Routed) -> bool:
    """Whether any trigger is met; one that cannot be evaluated matters only if no other is met."""
    failure: ExpressionFailed | None = None
    for listener in registry.listeners(routed.name):
        if listener.flow is not flow:
            continue
        if listener.trigger.if_ is None:
            return True
        try:
            if expressions.holds(listener.trigger.condition(), expressions.document(routed.event)):
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
