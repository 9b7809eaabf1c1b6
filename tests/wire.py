"""What goes over the wire between psycopg and PostgreSQL, counted in a trace of libpq's."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Wire:
    """What one connection was told.

    Attributes:
        statements: those that were executed, BEGIN and COMMIT among them.
        commits: how often a transaction came to its end, be it one of a single statement.
    """

    statements: int = 0
    commits: int = 0


@contextmanager
def traced(connection: Any) -> Iterator[Wire]:
    """Count what Django's connection is told inside the block; the count is there after it."""
    connection.ensure_connection()
    libpq = connection.connection.pgconn
    wire = Wire()
    with tempfile.TemporaryFile() as trace:
        libpq.trace(trace.fileno())
        try:
            yield wire
        finally:
            libpq.untrace()
        trace.seek(0)
        said = trace.read().decode(errors="replace")
    for answers in re.findall(r"^.*?\tB\t.*?\tReadyForQuery\t \w", said, re.MULTILINE | re.DOTALL):
        done = len(re.findall(r"\tB\t\d+\tCommandComplete\t", answers))
        wire.statements += done
        # A statement that is only prepared is none, and outside a transaction there is none to end.
        wire.commits += bool(done) and answers.endswith("I")
