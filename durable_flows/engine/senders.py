"""Who sends: the run in which the calling code is executed, if there is one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from durable_flows.engine.subjects import Subject
from durable_flows.middleware import Middleware


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The run that sends an event.

    Attributes:
        depth: how deep what it sends stands in a chain of runs and events.
        subject: what it is about, and what it sends, unless that says otherwise.
        context: what was captured where its own event was sent; what it sends has that, too.
        middleware: of its flow: has its say about what it sends, after that of the settings.
    """

    run_id: uuid.UUID
    depth: int
    subject: Subject | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    middleware: tuple[Middleware, ...] = ()


_here: ContextVar[Sender | None] = ContextVar("durable_flows_sender", default=None)


def here() -> Sender | None:
    """The run that sends what is sent here, if one does."""
    return _here.get()


@contextmanager
def sending_as(sender: Sender) -> Iterator[None]:
    """Inside the block, what is sent or asked for here is sent by this run, whatever sends it."""
    token = _here.set(sender)
    try:
        yield
    finally:
        _here.reset(token)
