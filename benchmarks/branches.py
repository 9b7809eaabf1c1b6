"""How well do branches go on beside each other? Steps that do nothing but wait, as for a network.

Ten of 200 ms in ``step.parallel``, and fifty of 100 ms in ``asyncio.gather``, in one process; the
reference is a run of the same flow with one of them. From the claim to the end of the run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import alone


@contextmanager
def ready(conninfo: str, quick: bool, *, event: str, count: int) -> Iterator[Pair]:
    samples = 1 if quick else 5
    with alone():
        _seconds(event, 1)
        yield Pair(
            ours=lambda: [_median(event, count, samples)],
            reference=lambda: [_median(event, 1, samples)],
        )


def _median(event: str, count: int, samples: int) -> float:
    return statistics.median(_seconds(event, count) for _ in range(samples)) * 1_000


def _seconds(event: str, count: int) -> float:
    from benchmarks import flows
    from durable_flows.engine import execute, ring, route
    from durable_flows.testing import run_of, send

    event_id = send(getattr(flows, event), {"count": count})
    route.route()
    began = time.monotonic()
    execute.drain(ring.default_queue(), seconds=60)
    seconds = time.monotonic() - began
    run = run_of(event_id)
    if run.state != "completed" or len(run.steps) != count:
        raise RuntimeError(f"the run is {run.state} after {len(run.steps)} steps: {run.error}")
    return seconds


def _question(name: str, asks: str, event: str, count: int, most: float) -> Question:
    prepare: Callable[[str, bool], AbstractContextManager[Pair]] = partial(
        ready, event=event, count=count
    )
    return Question(
        name=name,
        asks=asks,
        rows=(Row(name=name, unit=("ms", "ms"), target=AtMost(most)),),
        broker=False,
        ready=prepare,
    )


QUESTIONS = [
    _question(
        "parallel_steps",
        "10 parallel steps of 200 ms, and 1",
        "PARALLEL",
        10,
        2,
    ),
    _question(
        "async_steps",
        "50 steps of 100 ms in asyncio.gather, and 1",
        "GATHERED",
        50,
        3,
    ),
]
