"""How many runs a second go through the whole path: send, Redis, route, claim, three steps, end?

2,000 events, sent in lists of 100 by one process while a worker with N prefork processes is there and
warm; from the first send until all runs have ended. The reference has one connection whatever N.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from benchmarks.question import AtLeast, Pair, Question, Row
from benchmarks.reference import bare_loop
from benchmarks.stage import NOTHING_LEFT, wait_until, worker

AT_ONCE = 100  # events in one send


def ready(processes: int) -> Callable[[str, bool], AbstractContextManager[Pair]]:
    """The pair for a worker of so many processes."""

    @contextmanager
    def prepared(conninfo: str, quick: bool) -> Iterator[Pair]:
        runs, inserts = (40, 200) if quick else (2_000, 4_000)
        with bare_loop(conninfo) as loop, worker(processes) as process:
            _rate(process, 40 if quick else 400)
            yield Pair(ours=lambda: [_rate(process, runs)], reference=lambda: [loop.rate(inserts)])

    return prepared


def _rate(process: subprocess.Popen[bytes], runs: int) -> float:
    """Have so many runs made; return how many a second."""
    from benchmarks.flows import THREE_STEPS
    from durable_flows import Event, send

    batches = [
        [
            Event(THREE_STEPS, {"number": number})
            for number in range(first, min(first + AT_ONCE, runs))
        ]
        for first in range(0, runs, AT_ONCE)
    ]
    before = _completed()
    began = time.perf_counter()
    for batch in batches:
        send(batch)
    wait_until(NOTHING_LEFT, process=process, seconds=120)
    seconds = time.perf_counter() - began
    _check(runs, before)
    return runs / seconds


def _completed() -> tuple[int, int]:
    """Completed runs, and recorded steps, so far."""
    from durable_flows.models import Run, Step

    return Run.objects.filter(state="completed").count(), Step.objects.count()


def _check(runs: int, before: tuple[int, int]) -> None:
    now = _completed()
    made = now[0] - before[0], now[1] - before[1]
    if made != (runs, 3 * runs):
        raise RuntimeError(f"{runs} runs of three steps were asked for, (runs, steps) are {made}")


def question(processes: int, target: AtLeast) -> Question:
    name = f"three_step_runs_{processes}"
    return Question(
        name=name,
        asks=f"from send to all ended, prefork -c {processes}, 2,000 runs",
        rows=(Row(name=name, unit=("runs/s", "inserts/s"), target=target),),
        broker=True,
        ready=ready(processes),
    )


QUESTIONS = (question(1, AtLeast(0.18)), question(2, AtLeast(0.30)))
