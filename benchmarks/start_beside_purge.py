"""How much longer does a start take while a million ended runs are being purged beside it?

From the call of ``send()`` to the first line of the first step, as in `start_latency`, while ``manage.py
flows purge`` goes on in a process of its own: in its transactions, and with its rests. The reference is
the same load on the same tables without it. The runs ended forty days ago, with two steps and an event
each; they are filled in by ``INSERT … SELECT generate_series``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from benchmarks import fill, hop
from benchmarks.question import AtMost, Pair, Question, Row
from benchmarks.stage import EMPTY, ROOT, STOP_SECONDS, finish_filling, wait_until, worker
from benchmarks.stamps import Stamps, listening
from benchmarks.start_latency import start

QUICK = 30_000
ENDED = 1_000_000  # runs that are there to be purged; ``--ended`` says otherwise


@contextmanager
def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
    fill.ended(EMPTY, QUICK if quick else ENDED, days=40)
    finish_filling(EMPTY)
    _pause()
    with listening() as stamps, worker(1) as process:

        def figure() -> list[float]:
            return [_p50(stamps, process, quick=quick)]

        def beside() -> list[float]:
            with _purging() as purge:
                found = figure()
                if purge.poll() is not None:
                    raise RuntimeError(
                        "the purge was over before the last sample: fill in more runs"
                    )
            return found

        figure()
        yield Pair(ours=beside, reference=figure)


def _p50(stamps: Stamps, process: subprocess.Popen[bytes], *, quick: bool) -> float:
    return hop.percentile(hop.samples(lambda: start(stamps, process), quick=quick), 50)


@contextmanager
def _purging() -> Iterator[subprocess.Popen[bytes]]:
    """A purge that is under way, in a process of its own, until the end of the block."""
    before = _turn()
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "flows", "purge"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        begun = f"EXISTS (SELECT 1 FROM durable_flows_purge WHERE turn > {before} AND notes <> '')"
        wait_until(begun, process=process, seconds=60)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
        _pause()


def _turn() -> int:
    from durable_flows.models import Purge

    return Purge.objects.values_list("turn", flat=True).first() or 0


def _pause() -> None:
    """The ticks of the worker are not to go on with it for a while."""
    from durable_flows.engine import purge
    from durable_flows.models import Purge
    from durable_flows.rules import clock

    now = clock.now()
    row = {"held_until": now, "next_at": now + timedelta(seconds=purge.EVERY * 0.9)}
    Purge.objects.update_or_create(
        id=purge.THE_ROW, defaults=row, create_defaults={**row, "turn": 0}
    )


QUESTION = Question(
    name="start_beside_purge",
    asks="send() to first step beside a purge of 1,000,000 ended runs, and without; p50",
    rows=(Row(name="start_beside_purge", unit=("ms", "ms"), target=AtMost(1.5)),),
    broker=True,
    ready=ready,
)
