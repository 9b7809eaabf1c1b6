"""The pages of the Django admin: one file a page. Nothing here can be edited; runs can be commanded."""

from durable_flows.admin import events, runs, waits  # noqa: F401  (they register themselves)
from durable_flows.admin.subjects import FlowRunsMixin

__all__ = ["FlowRunsMixin"]
