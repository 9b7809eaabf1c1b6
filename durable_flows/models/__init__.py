"""The facts. The engine writes them; nobody else does."""

from __future__ import annotations

from durable_flows.models.actions import BulkAction
from durable_flows.models.events import Event, EventKey, EventMatch, Signature
from durable_flows.models.processes import Audience, Counter, Deployment, Floor, Purge, Tick
from durable_flows.models.runs import Admission, Attempt, Due, Run, RunWarning, Step
from durable_flows.models.waits import Approval, Fanout, Wait

__all__ = [
    "Event",
    "EventKey",
    "Signature",
    "EventMatch",
    "Run",
    "Due",
    "Step",
    "Attempt",
    "Admission",
    "RunWarning",
    "Wait",
    "Fanout",
    "Approval",
    "BulkAction",
    "Deployment",
    "Audience",
    "Floor",
    "Counter",
    "Tick",
    "Purge",
]
