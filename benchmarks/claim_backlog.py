"""What does a claim cost while a million runs sleep and 100,000 are due?

And what, if in addition somebody has held a snapshot open (a dump, a report) since before the last
200,000 runs were executed, so that what the index says of those cannot be cleaned away? One claim of
ten runs, as a worker makes it, after a tick; the reference claims ten runs from a table that has no
others.

The rows are filled in by ``INSERT … SELECT generate_series``: a due row for each sleeper; event, run
and due row for whatever is due; the 200,000 are inserted, claimed and deleted by a statement each,
evenly spread over the hour before the oldest that is due.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import fill
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import CROWDED, EMPTY, alone, clear, finish_filling, snapshot


@contextmanager
def backlog(conninfo: str, quick: bool) -> Iterator[Pair]:
    sleepers, due = (5_000, 1_000) if quick else (1_000_000, 100_000)
    fill.sleepers(CROWDED, sleepers)
    fill.due(CROWDED, due)
    finish_filling(CROWDED)
    samples = 3 if quick else 50
    _claims_of_backlog(samples)
    yield Pair(
        ours=lambda: [_claims_of_backlog(samples)],
        reference=lambda: [_claims_of_all(samples)],
    )


@contextmanager
def backlog_and_snapshot(conninfo: str, quick: bool) -> Iterator[Pair]:
    with snapshot(CROWDED):
        fill.handled(CROWDED, 1_000 if quick else 200_000)
        with backlog(conninfo, quick) as pair:
            yield pair


def _claims_of_backlog(samples: int) -> float:
    """The median of so many: milliseconds of a claim."""
    with alone(CROWDED):
        _tick()
        return statistics.median(_claim() for _ in range(samples)) * 1_000


def _claims_of_all(samples: int) -> float:
    """The same where nothing is due but what is claimed."""
    from durable_flows import conf

    found = []
    with alone(EMPTY):
        for _ in range(samples):
            clear(EMPTY)
            fill.due(EMPTY, conf.settings().CLAIM_BATCH)
            _tick()
            found.append(_claim())
    return statistics.median(found) * 1_000


def _tick() -> None:
    """As one that comes when the last is long past."""
    from durable_flows import conf
    from durable_flows.engine import tick
    from durable_flows.models import Tick

    Tick.objects.using(conf.settings().DATABASE).all().delete()
    if not tick.tick():
        raise RuntimeError("another tick has just been here")


def _claim() -> float:
    """Seconds of one claim."""
    from durable_flows import conf
    from durable_flows.engine import leases, ring
    from durable_flows.engine.claim import claim

    most = conf.settings().CLAIM_BATCH
    began = time.perf_counter()
    claims = claim(ring.default_queue(), most)
    seconds = time.perf_counter() - began
    if len(claims) != most:
        raise RuntimeError(f"{most} runs were to be claimed, {len(claims)} were")
    for claimed in claims:
        leases.release(claimed.run_id, claimed.lease)
    return seconds


QUESTIONS = (
    Question(
        name="claim_backlog",
        asks="claim with 1,000,000 asleep and 100,000 due, and with none",
        rows=(Row(name="claim_backlog", unit=("ms", "ms"), target=AtMost(2)),),
        broker=False,
        ready=backlog,
    ),
    Question(
        name="claim_backlog_snapshot",
        asks="the same with a snapshot held open over 200,000 runs",
        rows=(Row(name="claim_backlog_snapshot", unit=("ms", "ms"), target=AtMost(2)),),
        broker=False,
        ready=backlog_and_snapshot,
    ),
)
