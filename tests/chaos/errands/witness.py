"""What was really done, and by which process: on a database of its own, committed at once."""

from __future__ import annotations

import os
import random
import time

from django.db import connections

#: The witness has this table, and so has the app's database: there atomic steps write.
TABLE = """
CREATE TABLE effect (
    n bigserial, project text NOT NULL, run uuid NOT NULL, step text NOT NULL, pid integer NOT NULL
);
CREATE INDEX effect_run ON effect (project, run);
"""
PROJECT = os.environ.get("ERRANDS_DATABASE", "")
#: Seconds between an effect and the report of it, at most.
EFFORT = float(os.environ.get("ERRANDS_EFFORT", "0"))


def tell(run: str, step: str, alias: str = "witness") -> None:
    """Something was done."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO effect (project, run, step, pid) VALUES (%s, %s, %s, %s)",
            [PROJECT, run, step, os.getpid()],
        )


def do(run: str, step: str) -> None:
    """Something is done, and it is a while before that is reported."""
    tell(run, step)
    dawdle()


def dawdle() -> None:
    time.sleep(random.uniform(0, EFFORT))


def times(run: str, step: str) -> int:
    """How often it was done."""
    with connections["witness"].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM effect WHERE project = %s AND run = %s AND step = %s",
            [PROJECT, run, step],
        )
        return int(cursor.fetchone()[0])
