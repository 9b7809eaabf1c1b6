"""What a step is measured against: psycopg alone, one INSERT and its COMMIT at a time.

The loop is written as one writes it with psycopg: a connection as it comes, ``execute``, ``commit``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

TABLE = """
CREATE TABLE IF NOT EXISTS benchmarks_bare (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, output text NOT NULL
)
"""
INSERT = "INSERT INTO benchmarks_bare (key, output) VALUES (%s, %s)"


class BareLoop:
    """A loop of INSERT + COMMIT on one connection."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._connection.execute(TABLE)

    def rate(self, inserts: int) -> float:
        """Insert so many rows; return how many a second."""
        cursor = self._connection.cursor()
        began = time.perf_counter()
        for number in range(inserts):
            cursor.execute(INSERT, (f"s{number}", "null"))
            self._connection.commit()
        return inserts / (time.perf_counter() - began)


@contextmanager
def bare_loop(conninfo: str) -> Iterator[BareLoop]:
    """The loop, warm: its statement is prepared and its table is there."""
    with psycopg.connect(conninfo) as connection:
        loop = BareLoop(connection)
        loop.rate(100)
        yield loop
