"""A real process that is killed at each step of an async flow's saga; another one goes on with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path

import pytest

from durable_flows.engine import failpoints
from tests.chaos.errands.project import BACK, TICK, Project
from tests.servers import postgres_server

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]

SAIL = "import django; django.setup(); from durable_flows import send; send('trip/sailed')"
#: How often a voyage comes to these places: between an intent and what was meant, between two undos, …
VISITS = {"step_recorded": 9, "step_ran": 4, "before_suspend": 1, "before_end": 1}
DONE = [
    *("task[1]/flight", "task[1]/hotel", "sink"),
    *("task[1]/hotel#undo", "task[1]/flight#undo"),
]


@pytest.fixture(scope="module")
def sailing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Path]]:
    """A voyage that nobody executes yet, and where its copies may write."""
    directory = tmp_path_factory.mktemp("sagas")
    with postgres_server(durable=False) as postgres:
        project = Project(postgres, "sailing", directory)
        project.create()
        project.run("-c", SAIL)
        yield project, directory


@pytest.mark.parametrize(
    ("place", "visit"),
    [(place, visit) for place, most in VISITS.items() for visit in range(1, most + 1)],
)
def test_a_saga_whose_process_is_killed_is_undone_by_the_next(
    place: str, visit: int, sailing: tuple[Project, Path]
) -> None:
    original, directory = sailing
    with closing(original.copy(f"{place}_{visit}", directory)) as project:
        victim = project.start(*TICK, **{failpoints.VARIABLE: f"{place}:{visit}"})
        assert victim.wait(60) == -signal.SIGKILL, project.said()
        project.start(*TICK)
        project.until(lambda: not project.unfinished(), "the voyage has ended")
        assert project.query("SELECT flow, state FROM durable_flows_run") == [("voyage", "failed")]
        assert project.count("durable_flows_runwarning") == 0
        (keys,) = project.steps_of("voyage")
        assert keys[-len(BACK) :] == BACK
        seen = [step for _, step in project.seen()]
        assert [step for step, _ in groupby(seen)] == DONE
        # A record may come to be written while its neighbour is in the middle of a step.
        assert len(seen) - len(DONE) <= 1
        assert len(seen) > len(DONE) or place != "step_ran"
