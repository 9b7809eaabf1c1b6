"""How many events a second does one router route, if each starts a run?

5,000 events are stored; then this process routes until none is left. Only routing is timed: to the
commit that marks the last event, with a run and a due row for each. One connection, and so has the
reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.question import AtLeast, Pair, Question, Row
from benchmarks.reference import bare_loop
from benchmarks.stage import alone, clear


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    events, inserts = (100, 100) if quick else (5_000, 2_000)
    with bare_loop(conninfo) as loop, alone():
        _rate(100)
        yield Pair(ours=lambda: [_rate(events)], reference=lambda: [loop.rate(inserts)])


def _rate(count: int) -> float:
    """Store so many events and route them; return how many a second."""
    from benchmarks.flows import THREE_STEPS
    from durable_flows import Event, send
    from durable_flows.engine import route
    from durable_flows.models import Due

    clear()
    send([Event(THREE_STEPS, {"number": number}) for number in range(count)])
    began = time.perf_counter()
    routed = route.route().events
    seconds = time.perf_counter() - began
    if (routed, Due.objects.count()) != (count, count):
        raise RuntimeError(f"of {count} events {routed} were routed to {Due.objects.count()} runs")
    return count / seconds


QUESTION = Question(
    name="routing",
    asks="5,000 events that each start a run, one router",
    rows=(Row(name="routing", unit=("events/s", "inserts/s"), target=AtLeast(4)),),
    broker=False,
    ready=ready,
)
