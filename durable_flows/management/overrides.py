"""Settings that a command must have its own way, whatever the project says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings


@contextmanager
def flows_settings(**values: Any) -> Iterator[None]:
    """Let these names in DURABLE_FLOWS have these values inside the block."""
    before = getattr(settings, "DURABLE_FLOWS", {})
    settings.DURABLE_FLOWS = {**before, **values}
    try:
        yield
    finally:
        settings.DURABLE_FLOWS = before
