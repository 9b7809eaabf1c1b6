"""Gets an answer from a database that gave none.

A connection that breaks at a COMMIT leaves it open whether it was one. So whoever writes here does it
with statements that may be repeated: fenced by a lease, and keyed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError

from durable_flows.engine import sql

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_ANSWER = (OperationalError, InterfaceError)
FIRST_PAUSE = 0.05  # real seconds before the second try; doubled each time
LONGEST_PAUSE = 1.0


def until_answered(ask: Callable[[bool], T], *, seconds: Callable[[], float]) -> T:
    """Ask until the database answers, on a new connection where the old one is broken.

    Args:
        ask: told whether it is a repetition: then an earlier try may have had its effect.
        seconds: real seconds that are left to go on trying; asked anew before each try.

    Raises:
        OperationalError, InterfaceError: there was no answer in that time; or at the first failure,
            if a transaction is open: it cannot be gone on with.
    """
    pause, again = FIRST_PAUSE, False
    while True:
        try:
            return ask(again)
        except NO_ANSWER as error:
            if sql.connection().in_atomic_block or seconds() <= pause:
                raise
            logger.warning("no answer from the database (%s); asking again in %g s", error, pause)
            _drop_broken_connection()
            time.sleep(pause)
            pause, again = min(2 * pause, LONGEST_PAUSE), True


def _drop_broken_connection() -> None:
    """Only what is broken: a handler may be reading from a connection that is not."""
    wrapper = sql.connection()
    if wrapper.connection is not None and not wrapper.is_usable():
        wrapper.close()
