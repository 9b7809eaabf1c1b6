"""How many statements and commits does a recorded step cost?

Counted on the wire, in a trace of libpq's: those of a run of 200 steps less those of a run of 100, so
that claim and end drop out. No time is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import alone
from tests.wire import Wire, traced


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    with alone():
        _run(10)
        yield Pair(ours=lambda: _per_step(100), reference=lambda: [1, 1])


def _per_step(steps: int) -> list[float]:
    """Statements and commits a step."""
    few, many = _undisturbed(steps), _undisturbed(2 * steps)
    return [
        (many.statements - few.statements) / steps,
        (many.commits - few.commits) / steps,
    ]


def _undisturbed(steps: int) -> Wire:
    """The run that sent least: one that had to wait for the machine looks at its claim once more."""
    return min((_run(steps) for _ in range(3)), key=lambda wire: wire.statements)


def _run(steps: int) -> Wire:
    """What a run of so many steps sends."""
    from django.db import connection

    from benchmarks.flows import MANY_STEPS
    from durable_flows.engine import clocksync, execute, ring, route
    from durable_flows.testing import run_of, send

    event_id = send(MANY_STEPS, {"steps": steps})
    route.route()
    connection.close()  # a new one does not reach its greatest age meanwhile
    asked_once = mock.patch.object(clocksync, "SAMPLE_SECONDS", math.inf)  # what time it is
    with asked_once, traced(connection) as wire:
        execute.drain(ring.default_queue(), seconds=60)
    recorded = len(run_of(event_id).steps)
    if recorded != steps:
        raise RuntimeError(f"{recorded} steps were recorded instead of {steps}")
    return wire


QUESTION = Question(
    name="statements",
    asks="statements and commits of a recorded no-op step",
    rows=(
        Row(name="statements", unit=("statements", "step"), target=AtMost(1)),
        Row(name="commits", unit=("commits", "step"), target=AtMost(1)),
    ),
    broker=False,
    ready=ready,
)
