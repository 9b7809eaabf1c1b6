"""How long does an idle system take from an awaited event to the next step of the run that waits?

From the call of ``send()`` to the first line of the next step's function in a Celery worker with one
prefork process. The reference is the p50 of a bare Celery task, for both rows.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import hop
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import NOTHING_LEFT, wait_until, worker
from benchmarks.stamps import Stamps, listening

IT_WAITS = "EXISTS (SELECT 1 FROM durable_flows_due WHERE state = 'waiting')"


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    with listening() as stamps, worker(1) as process:

        def bare() -> list[float]:
            p50 = hop.percentile(hop.samples(lambda: hop.bare_task(stamps), quick=quick), 50)
            return [p50, p50]

        def ours() -> list[float]:
            found = hop.samples(lambda: _resume(stamps, process), quick=quick)
            return [hop.percentile(found, 50), hop.percentile(found, 99)]

        ours()
        yield Pair(ours=ours, reference=bare)


def _resume(stamps: Stamps, process: subprocess.Popen[bytes]) -> float:
    """Seconds from the ``send()`` of the awaited event to the next step's function."""
    from benchmarks.flows import AWAITED, RESUMED
    from durable_flows import send

    data = {"key": str(uuid.uuid4())}
    wait_until(NOTHING_LEFT, process=process, seconds=30)
    send(RESUMED, data)
    wait_until(IT_WAITS, process=process, seconds=30)
    hop.rest()
    began = time.monotonic()
    send(AWAITED, data)
    return stamps.next() - began


QUESTION = Question(
    name="resume_latency",
    asks="send() of the awaited event to next step, idle, prefork -c 1; p50 and p99",
    rows=(
        Row(name="resume_latency_p50", unit=("ms", "ms"), target=AtMost(2.7)),
        Row(name="resume_latency_p99", unit=("ms", "ms"), target=AtMost(4.5)),
    ),
    broker=True,
    ready=ready,
)
