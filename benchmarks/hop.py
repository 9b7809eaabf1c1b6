"""What a latency is measured against: a bare Celery task, from ``delay()`` to its first line.

The same worker, broker and settings. The system is idle: each sample begins when the one before it is
over, after a pause of random length.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence

from benchmarks.stamps import Stamps

SAMPLES = 200
PAUSE = (0.005, 0.025)  # seconds, from and to


def samples(one: Callable[[], float], *, quick: bool) -> list[float]:
    """Milliseconds, sorted; ``one`` returns seconds."""
    return sorted(_after_a_pause(one) * 1_000 for _ in range(10 if quick else SAMPLES))


def bare_task(stamps: Stamps) -> float:
    """Seconds from ``delay()`` to the start of the task's body."""
    from benchmarks.tasks import bare

    began = time.monotonic()
    bare.delay()
    return stamps.next() - began


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least figure that so many percent do not exceed."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def rest() -> None:
    """Pause, so that samples do not keep step with anything."""
    time.sleep(random.uniform(*PAUSE))


def _after_a_pause(one: Callable[[], float]) -> float:
    rest()
    return one()
