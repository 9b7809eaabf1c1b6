"""A run that ends the interpreter of whoever executes it, in real processes."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from durable_flows import conf
from tests.chaos.errands.project import TICK, Project
from tests.servers import postgres_server

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]

SEND = """
import django
django.setup()
from durable_flows import Event, send
shared = [Event("trip/shared", {"n": n}) for n in range(9)]
send([*shared[:4], Event("trip/aborted"), *shared[4:]])
"""


def test_a_run_that_aborts_the_interpreter_fails_alone_and_its_neighbours_complete(
    tmp_path: Path,
) -> None:
    with (
        postgres_server(durable=False) as postgres,
        Project(postgres, "errands", tmp_path).created() as project,
    ):
        project.run("-c", SEND)
        deaths = work_until_all_is_done(project)
        check(project, deaths)


def work_until_all_is_done(project: Project) -> list[int]:
    """Start a worker whenever one has died. Returns how they died."""
    deaths: list[int] = []
    worker: subprocess.Popen[bytes] = project.start(*TICK)

    def is_done() -> bool:
        nonlocal worker
        if worker.poll() is not None:
            deaths.append(worker.returncode)
            worker = project.start(*TICK)
        return not project.unfinished()

    project.until(is_done, "the one has failed and nine have completed")
    return deaths


def check(project: Project, deaths: list[int]) -> None:
    alone = conf.DEFAULTS.POISON_CLAIMS
    assert deaths == [-signal.SIGABRT] * (1 + alone), "once in company, and then alone"
    ends = Counter(project.query("SELECT flow, state, error::json->>'name' FROM durable_flows_run"))
    assert ends == {("neighbour", "completed", None): 9, ("abort", "failed", "PoisonRun"): 1}
    assert Counter(step for (step,) in project.seen("step")) == {
        "pack": 10,
        "unpack": 9,
        "crash": 1 + alone,
    }
