"""Corrects the process's clock against the database's, once a minute."""

from __future__ import annotations

import time

from durable_flows.engine import sql
from durable_flows.rules import clock

SAMPLE_SECONDS = 60.0
_sampled = float("-inf")


def synchronise() -> None:
    """Ask the database for the time, unless this process did within the last minute.

    Works inside a transaction too: ``clock_timestamp()`` does not stand still there.
    """
    global _sampled
    if time.monotonic() - _sampled < SAMPLE_SECONDS or not sql.postgres():
        return
    asked = time.time()
    ((database,),) = sql.execute("SELECT clock_timestamp()")
    clock.correct(database, asked=asked, answered=time.time())
    _sampled = time.monotonic()
