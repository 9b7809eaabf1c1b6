"""What code sends by Django's signal `durable_flows.signals.emit`: it need not know the engine."""

from __future__ import annotations

from typing import Any

from durable_flows import signals
from durable_flows.engine import ingest


def listen() -> None:
    """Send what is emitted from now on."""
    signals.emit.connect(_send, dispatch_uid="durable_flows")


def _send(*, sender: Any, signal: Any, **fields: Any) -> list[str]:
    return ingest.send(**fields)
