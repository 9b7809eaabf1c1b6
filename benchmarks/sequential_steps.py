"""How many steps a second does one run make, one after the other?

One run of 1,000 steps that do nothing, in one process through the engine's own drain, from its claim
to its end. Each step is a commit, and so is each insert of the reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.question import AtLeast, Pair, Question, Row
from benchmarks.reference import bare_loop
from benchmarks.stage import alone


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    steps = 100 if quick else 1_000
    with bare_loop(conninfo) as loop, alone():
        _rate(10)
        yield Pair(ours=lambda: [_rate(steps)], reference=lambda: [loop.rate(steps)])


def _rate(steps: int) -> float:
    """Make a run of so many steps; return how many a second."""
    from benchmarks.flows import MANY_STEPS
    from durable_flows.engine import execute, ring, route
    from durable_flows.testing import run_of, send

    event_id = send(MANY_STEPS, {"steps": steps})
    route.route()
    began = time.perf_counter()
    execute.drain(ring.default_queue(), seconds=600)
    seconds = time.perf_counter() - began
    run = run_of(event_id)
    if run.state != "completed" or len(run.steps) != steps:
        raise RuntimeError(f"the run is {run.state} after {len(run.steps)} steps: {run.error}")
    return steps / seconds


QUESTION = Question(
    name="sequential_steps",
    asks="no-op steps of one run of 1,000, one worker",
    rows=(Row(name="sequential_steps", unit=("steps/s", "inserts/s"), target=AtLeast(0.75)),),
    broker=False,
    ready=ready,
)
