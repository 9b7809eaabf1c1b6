"""What was really done, and by which process: on a database of its own, committed at once."""

from __future__ import annotations

import os

from django.db import connections

#: Both databases have this table; in the app's own one, atomic steps write.
TABLE = (
    "CREATE TABLE effect (n bigserial, run uuid NOT NULL, step text NOT NULL, pid integer NOT NULL)"
)
INDEX = "CREATE INDEX effect_run ON effect (run)"


def tell(run: str, step: str, alias: str = "witness") -> None:
    """Something is done now."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO effect (run, step, pid) VALUES (%s, %s, %s)", [run, step, os.getpid()]
        )


def times(run: str, step: str) -> int:
    """How often it was done."""
    with connections["witness"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM effect WHERE run = %s AND step = %s", [run, step])
        return int(cursor.fetchone()[0])
