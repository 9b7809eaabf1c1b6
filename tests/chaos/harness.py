"""Kills random workers while errands are run, and says what that did.

The dice are seeded; what the operating system makes of them is not. So a report says what was hit.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.errands.project import CELERY, TICK, Project

PACE = 0.75  # seconds from one kill to the next, on average
UNPROVEN = 0.1  # of the kills hit anybody, all others one of whom the witness has heard
CREW = {"tick": (TICK, 3), "celery": ((*CELERY, "-c", "2", "--without-gossip"), 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done and what was killed.

    Attributes:
        seconds: from the first errand to the end of the last run.
        runs: how many came to their end.
        killed: whole workers by kind, and single processes of the pool of a Celery worker.
        plain: calls of functions of plain steps; repeated: those of which no record was kept.
        atomic, atomic_repeated: the same of atomic steps.
        effects: rows that atomic steps have written; once for each run that has such a step.
    """

    seconds: float
    runs: int
    killed: dict[str, int]
    plain: int
    repeated: int
    atomic: int
    atomic_repeated: int
    effects: int

    def __str__(self) -> str:
        killed = ", ".join(f"{n} {what}" for what, n in sorted(self.killed.items()))
        return (
            f"{sum(self.killed.values())} kills ({killed}) in {self.seconds:.0f} s; "
            f"{self.runs:,} runs ended; {self.plain:,} calls of plain steps, {self.repeated} of them "
            f"repeated; {self.atomic:,} calls of atomic steps, {self.atomic_repeated} of them "
            f"repeated, {self.effects:,} effects"
        )


@dataclass(frozen=True, slots=True)
class Worker:
    kind: str
    process: subprocess.Popen[bytes]


@dataclass(slots=True)
class Crew:
    """The workers. Whoever is killed is replaced at once."""

    project: Project
    dice: random.Random
    at_work: list[Worker] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    dead: set[int] = field(default_factory=set)

    def muster(self) -> None:
        """Start all."""
        for kind, (_, number) in CREW.items():
            for _ in range(number):
                self._start(kind)

    def strike(self) -> None:
        """Kill a random worker with all its processes, or a single one of a Celery worker's pool."""
        worker = self._choose()
        pool = list(children(worker.process.pid))
        if pool and self.dice.random() < 0.5:
            victim = self.dice.choice(pool)
            self.dead.add(victim)
            self.killed["of a pool"] += 1
            os.kill(victim, signal.SIGKILL)
            return
        self.at_work.remove(worker)
        self.dead |= {worker.process.pid, *pool}
        self.killed[worker.kind] += 1
        assert worker.process.poll() is None, f"it ended by itself\n{self.project.said()}"
        self.project.kill(worker.process)
        self._start(worker.kind)

    def _choose(self) -> Worker:
        if self.dice.random() < UNPROVEN:
            return self.dice.choice(self.at_work)
        proven: list[Worker] = []

        def anybody() -> bool:
            heard = {pid for (pid,) in self.project.seen("pid")}
            proven[:] = [
                w for w in self.at_work if heard & {w.process.pid, *children(w.process.pid)}
            ]
            return bool(proven)

        self.project.until(anybody, "somebody works")
        return self.dice.choice(proven)

    def _start(self, kind: str) -> None:
        command, _ = CREW[kind]
        worker = Worker(kind, self.project.start(*command))
        self.at_work.append(worker)


def rampage(project: Project, kills: int, seed: int) -> Report:
    """Run errands while ``kills`` workers are killed, and look through the books at the end."""
    crew = Crew(project, random.Random(seed))
    crew.muster()
    started = time.monotonic()
    sender = project.start("-m", "tests.chaos.errands.send")
    for _ in range(kills):
        time.sleep(crew.dice.uniform(0, 2 * PACE))
        crew.strike()
    sender.terminate()
    assert sender.wait(30) == 0, project.said()
    project.until(lambda: not project.unfinished(), "nothing is stuck")
    return audit(project, crew, time.monotonic() - started)


def audit(project: Project, crew: Crew, seconds: float) -> Report:
    """Compare the books of the app with those of the witness."""
    project.check(project.count("durable_flows_event WHERE name = 'trip/began'"))
    assert project.count("durable_flows_event WHERE quarantined") == 0
    repeated = +project.repeated()
    in_hand = project.in_hand(crew.dead)
    unexplained = repeated - in_hand
    assert not unexplained, f"repeated, and in no killed process's hand: {unexplained}"
    done = Counter(step for (step,) in project.seen("step"))
    again = sum(n for (_, step), n in repeated.items() if step == "write")
    return Report(
        seconds=seconds,
        runs=project.count("durable_flows_run"),
        killed=dict(crew.killed),
        plain=done.total() - done["write"],
        repeated=repeated.total() - again,
        atomic=done["write"],
        atomic_repeated=again,
        effects=project.count("effect"),
    )


def children(pid: int) -> Iterator[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    yield from (int(found) for found in re.findall(r"\d+", listed.stdout))
