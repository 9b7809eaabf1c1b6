"""What does it cost to route an event that resumes one of a million waits for its name?

Of all these waits, each with a key of its own, one matches. The reference routes the same event in a
database that has 1,000. The million is filled in by ``INSERT … SELECT generate_series``: waits and
their due rows, as the engine writes them; the waits that are matched come from the engine itself.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import fill
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import CROWDED, EMPTY, alone, finish_filling


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    from benchmarks.flows import AWAITED

    many, few, samples = (5_000, 1_000, 3) if quick else (1_000_000, 1_000, 30)
    for alias, count in ((CROWDED, many), (EMPTY, few)):
        fill.waits(alias, count, event_name=AWAITED)
        finish_filling(alias)
        _route_one(alias, samples)
    yield Pair(
        ours=lambda: [_route_one(CROWDED, samples)],
        reference=lambda: [_route_one(EMPTY, samples)],
    )


def _route_one(alias: str, samples: int) -> float:
    """The median of so many: milliseconds to route an event that resumes one run."""
    from benchmarks.flows import AWAITED, WAITING
    from durable_flows import Event, send
    from durable_flows.engine import execute, ring, route
    from durable_flows.models import Wait

    keys = [str(uuid.uuid4()) for _ in range(samples)]
    with alone(alias):
        send([Event(WAITING, {"key": key}) for key in keys])
        route.route()
        execute.drain(ring.default_queue(), seconds=60)
        before = Wait.objects.using(alias).filter(outcome="event").count()
        found = []
        for key in keys:
            send(AWAITED, {"key": key})
            began = time.perf_counter()
            route.route()
            found.append(time.perf_counter() - began)
        settled = Wait.objects.using(alias).filter(outcome="event").count() - before
    if settled != samples:
        raise RuntimeError(f"{samples} events were to resume a run each, {settled} did")
    return statistics.median(found) * 1_000


QUESTION = Question(
    name="settle_many",
    asks="route an event that resumes one of 1,000,000 waits, and of 1,000",
    rows=(Row(name="settle_many", unit=("ms", "ms"), target=AtMost(1.5)),),
    broker=False,
    ready=ready,
)
