"""Random workers are killed while they work: nothing is lost, stuck, or written twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.chaos.errands.project import Project
from tests.servers import postgres_server, redis_server

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]

KILLS = int(os.environ.get("DURABLE_FLOWS_CHAOS_KILLS") or 20)
SEED = int(os.environ.get("DURABLE_FLOWS_CHAOS_SEED") or 1)


def test_a_rampage_loses_nothing_and_repeats_only_what_killed_processes_had_in_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgres_server(durable=False) as postgres, redis_server() as broker:
        project = Project(
            *(postgres, "errands", tmp_path),
            CELERY_BROKER_URL=broker.url,
            ERRANDS_LEASE="4",
            ERRANDS_POISON="1000000",  # whom the dice hit again and again is not to blame
            ERRANDS_EFFORT="0.05",
        )
        with project.created():
            report = harness.rampage(project, KILLS, SEED)
    with capsys.disabled():
        print(f"\n{report}")
    assert sum(report.killed.values()) == KILLS
    assert report.repeated + report.atomic_repeated, (
        "no kill has hit a step: this run has shown nothing"
    )
