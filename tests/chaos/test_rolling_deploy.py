"""Two versions of a project at work side by side, under load, with real processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chaos.errands.project import TICK, Project
from tests.servers import postgres_server

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]

SOME = 20  # runs that end between two changes of the workers
FEW = 5  # trips, of many runs each, that began while the new version was known


def start(project: Project, version: str) -> subprocess.Popen[bytes]:
    return project.start(*TICK, ERRANDS_VERSION=version)


def let_some_end(project: Project) -> None:
    ended = "durable_flows_run WHERE ended_at IS NOT NULL"
    target = project.count(ended) + SOME
    project.until(lambda: project.count(ended) >= target, "runs come to their end")


def test_no_event_is_lost_for_a_new_flow_while_workers_of_two_versions_alternate(
    tmp_path: Path,
) -> None:
    with (
        postgres_server(durable=False) as postgres,
        Project(postgres, "errands", tmp_path, ERRANDS_ENOUGH="40").created() as project,
    ):
        alternate(project)


def alternate(project: Project) -> None:
    old = [start(project, "old"), start(project, "old")]
    sender = project.start("-m", "tests.chaos.errands.send")
    let_some_end(project)
    new = start(project, "new")
    project.until(lambda: project.count("durable_flows_deployment") == 2, "the new one is known")
    ((known_since,),) = project.query("SELECT max(arrival) FROM durable_flows_event")
    for _ in range(2):
        let_some_end(project)
        project.kill(old.pop(0))
        old.append(start(project, "old"))
        let_some_end(project)
        project.kill(new)
        new = start(project, "new")
    let_some_end(project)
    for process in (sender, *old):
        process.terminate()
        assert process.wait(30) == 0, project.said()
    project.until(lambda: not project.unfinished(), "nothing is stuck")

    project.check(project.count("durable_flows_event WHERE name = 'trip/began'"))
    began = f"durable_flows_event e WHERE name = 'trip/began' AND arrival > {known_since}"
    assert project.count(began) > FEW
    greeted = "SELECT 1 FROM durable_flows_run r WHERE r.event_id = e.id AND r.flow = 'newcomer'"
    assert project.count(f"{began} AND NOT EXISTS ({greeted} AND r.state = 'completed')") == 0
