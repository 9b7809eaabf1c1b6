"""How long does it take from the claim of a run with 1,000 recorded steps to its first new one?

The reference is a run with 10. Recorded steps are filled in by ``INSERT … SELECT generate_series``,
also those of a hundred other runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import fill
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import EMPTY, alone, finish_filling
from benchmarks.stamps import Stamps, listening


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    samples, others = (2, 1_000) if quick else (20, 100_000)
    fill.steps(EMPTY, others)
    finish_filling(EMPTY)
    with listening() as stamps, alone(MAX_STEPS=2_000):
        _first_new(stamps, recorded=100, samples=3)
        yield Pair(
            ours=lambda: [_first_new(stamps, recorded=1_000, samples=samples)],
            reference=lambda: [_first_new(stamps, recorded=10, samples=samples)],
        )


def _first_new(stamps: Stamps, *, recorded: int, samples: int) -> float:
    """The median of so many: milliseconds from claim to first new step."""
    return statistics.median(_once(stamps, recorded) for _ in range(samples)) * 1_000


def _once(stamps: Stamps, recorded: int) -> float:
    from benchmarks.flows import REPLAYED
    from durable_flows.engine import execute, ring, route
    from durable_flows.testing import run_of, send

    event_id = send(REPLAYED, {"recorded": recorded})
    route.route()
    fill.recorded(EMPTY, run_of(event_id).id, recorded)
    began = time.monotonic()
    execute.drain(ring.default_queue(), seconds=60)
    seconds = stamps.next() - began
    run = run_of(event_id)
    if run.state != "completed" or len(run.steps) != recorded + 1:
        raise RuntimeError(f"the run is {run.state} after {len(run.steps)} steps: {run.error}")
    return seconds


QUESTION = Question(
    name="replay_1000",
    asks="claim to first new step, 1,000 steps recorded, and 10",
    rows=(Row(name="replay_1000", unit=("ms", "ms"), target=AtMost(10)),),
    broker=False,
    ready=ready,
)
