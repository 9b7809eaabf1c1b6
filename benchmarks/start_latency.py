"""How long does an idle system take from an event to the first step of the run that it starts?

From the call of ``send()`` to the first line of the step's function in a Celery worker with one
prefork process: INSERT and COMMIT, the bell through Redis, routing, the claim. The reference is the
p50 of a bare Celery task, for both rows.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import hop
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import NOTHING_LEFT, wait_until, worker
from benchmarks.stamps import Stamps, listening


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    with listening() as stamps, worker(1) as process:

        def bare() -> list[float]:
            p50 = hop.percentile(hop.samples(lambda: hop.bare_task(stamps), quick=quick), 50)
            return [p50, p50]

        def ours() -> list[float]:
            found = hop.samples(lambda: start(stamps, process), quick=quick)
            return [hop.percentile(found, 50), hop.percentile(found, 99)]

        ours()
        yield Pair(ours=ours, reference=bare)


def start(stamps: Stamps, process: subprocess.Popen[bytes]) -> float:
    """Seconds from ``send()`` to the first step's function."""
    from benchmarks.flows import STAMPED
    from durable_flows import send

    wait_until(NOTHING_LEFT, process=process, seconds=30)
    hop.rest()
    began = time.monotonic()
    send(STAMPED)
    return stamps.next() - began


QUESTION = Question(
    name="start_latency",
    asks="send() to first step, idle, prefork -c 1; p50 and p99",
    rows=(
        Row(name="start_latency_p50", unit=("ms", "ms"), target=AtMost(2.4)),
        Row(name="start_latency_p99", unit=("ms", "ms"), target=AtMost(4)),
    ),
    broker=True,
    ready=ready,
)
