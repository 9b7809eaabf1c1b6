"""Durable functions inside a Django project. This is the front door.

Everything is imported when it is first asked for, so that ``flows.py`` and settings can import it at
any time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    # declare
    "flow",
    "On",
    "CancelOn",
    "Retries",
    "Exponential",
    "Fixed",
    "Delays",
    "Timeouts",
    "FlowSubject",
    "Middleware",
    "model_event",
    # in a handler
    "Event",
    "EventType",
    "Run",
    "Step",
    "AsyncStep",
    "Awaited",
    "Decision",
    "Signal",
    "NonRetriableError",
    "RetryAfterError",
    "StepError",
    "InvokeError",
    "InvokeTimeout",
    # ask
    "send",
    "asend",
    "flows_update",
    "flows_bulk_create",
    "cancel",
    "retry",
    "rerun",
    "decide",
    "send_signal",
    "skip",
    "withdraw",
    "cancel_all",
    "replay",
    "cancel_bulk",
    "bulk_progress",
    # errors
    "DurableFlowsError",
    "InvalidInput",
    "InvalidEvent",
]

if TYPE_CHECKING:
    from durable_flows.bulk_changes import flows_bulk_create, flows_update
    from durable_flows.declare import flow
    from durable_flows.engine.approvals import Decision, decide
    from durable_flows.engine.async_step import AsyncStep
    from durable_flows.engine.bulk import bulk_progress, cancel_all, cancel_bulk, replay
    from durable_flows.engine.commands import cancel, rerun, retry, skip, withdraw
    from durable_flows.engine.ingest import asend, send
    from durable_flows.engine.run import Run
    from durable_flows.engine.signals import send_signal
    from durable_flows.engine.tools.step import Step
    from durable_flows.errors import (
        DurableFlowsError,
        InvalidEvent,
        InvalidInput,
        InvokeError,
        InvokeTimeout,
        NonRetriableError,
        RetryAfterError,
        StepError,
    )
    from durable_flows.middleware import Middleware
    from durable_flows.model_events import model_event
    from durable_flows.rules.backoff import Delays, Exponential, Fixed, Retries
    from durable_flows.rules.event_types import EventType
    from durable_flows.rules.events import Event
    from durable_flows.rules.options import Awaited, CancelOn, On, Timeouts
    from durable_flows.rules.signals import Signal
    from durable_flows.subjects import FlowSubject

_HOMES = {
    "durable_flows.declare": ("flow",),
    "durable_flows.middleware": ("Middleware",),
    "durable_flows.rules.options": ("On", "CancelOn", "Timeouts", "Awaited"),
    "durable_flows.rules.backoff": ("Retries", "Exponential", "Fixed", "Delays"),
    "durable_flows.rules.event_types": ("EventType",),
    "durable_flows.rules.events": ("Event",),
    "durable_flows.rules.signals": ("Signal",),
    "durable_flows.subjects": ("FlowSubject",),
    "durable_flows.model_events": ("model_event",),
    "durable_flows.bulk_changes": ("flows_update", "flows_bulk_create"),
    "durable_flows.engine.run": ("Run",),
    "durable_flows.engine.tools.step": ("Step",),
    "durable_flows.engine.async_step": ("AsyncStep",),
    "durable_flows.engine.approvals": ("Decision", "decide"),
    "durable_flows.engine.ingest": ("send", "asend"),
    "durable_flows.engine.signals": ("send_signal",),
    "durable_flows.engine.bulk": ("cancel_all", "replay", "cancel_bulk", "bulk_progress"),
    "durable_flows.engine.commands": ("cancel", "retry", "rerun", "skip", "withdraw"),
    "durable_flows.errors": (
        "NonRetriableError",
        "RetryAfterError",
        "StepError",
        "InvokeError",
        "InvokeTimeout",
        "DurableFlowsError",
        "InvalidInput",
        "InvalidEvent",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
