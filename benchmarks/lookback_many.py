"""What does it cost a new wait to look back over a million events of the name that it waits for?

All of them were routed after the run's trigger, so all of them are in its window; one has its key.
The look-back alone is timed, with the end of the wait that it brings about: in slices that the engine
executes. The reference looks back over 100. The events are filled in by ``INSERT … SELECT
generate_series``, with the matches that a router would have noted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from benchmarks import fill
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import CROWDED, EMPTY, alone, finish_filling


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    from benchmarks.flows import AWAITED

    many, few, samples = (5_000, 100, 3) if quick else (1_000_000, 100, 30)
    for alias, count in ((CROWDED, many), (EMPTY, few)):
        fill.signature(alias, event_name=AWAITED, paths=["data.key"])
        fill.events(alias, count - samples, event_name=AWAITED)
        _send_awaited(alias, samples)
        finish_filling(alias)
        _look_back(alias, samples)
    yield Pair(
        ours=lambda: [_look_back(CROWDED, samples)],
        reference=lambda: [_look_back(EMPTY, samples)],
    )


def _send_awaited(alias: str, samples: int) -> None:
    """The newest of the events: those that will be found."""
    from benchmarks.flows import AWAITED
    from durable_flows import Event, send
    from durable_flows.engine import route

    with alone(alias):
        send([Event(AWAITED, {"key": f"k{number}"}) for number in range(samples)])
        route.route()


def _look_back(alias: str, samples: int) -> float:
    """The median of so many: milliseconds that a wait looks back."""
    from benchmarks.flows import WAITING
    from durable_flows import Event, send
    from durable_flows.engine import execute, ring, route, settle
    from durable_flows.engine.history import Claim, Waiting
    from durable_flows.models import Run

    found = []
    the_look_back = settle.look_back

    def timed(claim: Claim, wait: Waiting) -> Waiting:
        began = time.perf_counter()
        ended = the_look_back(claim, wait)
        found.append(time.perf_counter() - began)
        return ended

    with alone(alias), mock.patch.object(settle, "look_back", timed):
        ids = send([Event(WAITING, {"key": f"k{number}"}) for number in range(samples)])
        route.route()
        runs = Run.objects.using(alias).filter(event_id__in=ids)
        runs.update(mark=fill.BEFORE_ALL)  # as if their triggers had come before all those events
        execute.drain(ring.default_queue(), seconds=60)
    if runs.filter(result="true").count() != samples or len(found) != samples:
        raise RuntimeError(f"{samples} waits were to find an event, {len(found)} looked for one")
    return statistics.median(found) * 1_000


QUESTION = Question(
    name="lookback_many",
    asks="look-back of one wait over 1,000,000 events of its name, and over 100",
    rows=(Row(name="lookback_many", unit=("ms", "ms"), target=AtMost(2)),),
    broker=False,
    ready=ready,
)
