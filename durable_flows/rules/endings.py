"""The events that tell of the ends of runs: which there are, and what they carry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from durable_flows.rules.states import TERMINAL, RunState

FAILED: Final = "flows/function.failed"
FINISHED: Final = "flows/function.finished"
CANCELLED: Final = "flows/function.cancelled"

#: What anybody may listen to and wait for, and nobody but the engine sends.
NAMES: Final = (FAILED, FINISHED, CANCELLED)


def names(state: str) -> tuple[str, ...]:
    """The events that tell of such an end."""
    return tuple(name for name in (FINISHED, particular(state)) if name in NAMES)


def states(name: str) -> list[str]:
    """The kinds of ends of which the event of this name tells."""
    return [state for state in sorted(TERMINAL) if name in names(state)]


def particular(state: str) -> str:
    """The event that tells of ends of this kind only, if there is one."""
    return f"flows/function.{state}"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run has ended; ``event``, ``error`` and ``result`` are JSON text.

    Attributes:
        version: its flow's; 0 if that was given none.
        started: whether it had begun to execute, be it in an earlier generation.
        event: its trigger.
        error: of a failed run, as it is recorded.
        result: of a completed run; None if it is known to be too long.
    """

    flow_id: str
    version: int
    run_id: str
    generation: int
    state: str
    started: bool
    reason: str
    event: str
    error: str | None = None
    result: str | None = None


def document(end: End, *, most: int) -> str:
    """What an event about this end carries, as JSON text.

    Trigger and error are always there, whole. ``events`` and ``result`` are null, and named in
    ``left_out``, where all would have more than ``most`` bytes with them.
    """
    parts = {
        "function_id": json.dumps(end.flow_id),
        "version": str(end.version),
        "run_id": json.dumps(end.run_id),
        "generation": str(end.generation),
        "state": json.dumps(end.state),
        "started": json.dumps(end.started),
        "reason": json.dumps(end.reason, ensure_ascii=False),
        "event": end.event,
    }
    if end.state == RunState.FAILED:
        parts["error"] = end.error or "null"
    room = most - sum(len(f'"{name}":{text},'.encode()) for name, text in parts.items())
    left_out = []
    for name, text in _further(end).items():
        size = len(text.encode()) if text is not None else most + 1
        if size > room:
            left_out.append(name)
        parts[name] = "null" if text is None or size > room else text
        room -= 0 if name in left_out else size
    parts["left_out"] = json.dumps(left_out)
    return "{" + ",".join(f'"{name}":{text}' for name, text in parts.items()) + "}"


def _further(end: End) -> dict[str, str | None]:
    """What may be left out, the more important first."""
    if end.state == RunState.COMPLETED:
        return {"result": end.result, "events": f"[{end.event}]"}
    return {"events": f"[{end.event}]"}
