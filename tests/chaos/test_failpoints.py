"""A real process that is killed at each place of the engine; another one finishes what it began."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache

import pytest

from durable_flows.engine import failpoints
from tests.chaos.errands.project import CELERY, TICK, Project
from tests.servers import postgres_server

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]

TRIPS = 4
AT_ONCE = 4  # cases: most of their time they wait, for leases and timers

#: For whom two waits are very many.
EASILY_CROWDED = """
import sys
import django
django.setup()
from django.core.management import execute_from_command_line
from durable_flows.engine import settle
settle.PIECE = 2
execute_from_command_line(sys.argv)
"""
#: Who comes to these places; all others are on the way of `flows tick --loop`.
WORKER = {
    "tick_taken": (*CELERY, "-P", "solo"),
    "between_pieces": ("-c", EASILY_CROWDED, *TICK[1:]),
}
#: Who comes there is told to stop while a run has a step in hand.
TOLD_TO_STOP = {"before_hand_back", "handed_back"}
#: An event that cannot be routed: the journeys themselves have none.
SPOIL = """
CREATE TEMP TABLE spoilt AS SELECT * FROM durable_flows_event WHERE name = 'trip/called-off' LIMIT 1;
UPDATE spoilt SET id = gen_random_uuid(), arrival = arrival + 1000000, data = '{';
INSERT INTO durable_flows_event SELECT * FROM spoilt;
"""
#: An event of which the time is over: of the journeys themselves all is young.
OLD = """
CREATE TEMP TABLE old AS SELECT * FROM durable_flows_event LIMIT 1;
UPDATE old SET id = '00000000-0000-7000-8000-000000000001', name = 'trip/old', target = '', key = '',
routed = 1, routed_at = '2001-01-01', received_at = '2001-01-01';
INSERT INTO durable_flows_event SELECT * FROM old;
"""
BEFORE = {"before_quarantine": SPOIL, "before_purge_commit": OLD, "purged": OLD}
#: Where the process dies with a step done and not recorded.
STEP_IN_HAND = {"step_ran", "before_atomic_commit", "before_give_back", "given_back"}


Case = Callable[[str], tuple[Project, int]]  # place → its project, the killed process


@pytest.fixture(scope="module")
def case(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Case]:
    """Plays the case of a place: all that were asked for play at once."""
    directory = tmp_path_factory.mktemp("failpoints")
    with (
        postgres_server(durable=False) as postgres,
        ExitStack() as every,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        sent = Project(postgres, "sent", directory)
        sent.create()
        sent.run("-m", "tests.chaos.errands.send", str(TRIPS))

        @cache
        def start(place: str) -> tuple[Project, Future[int]]:
            project = sent.copy(place, directory)
            every.callback(project.close)
            return project, pool.submit(play, project, place)

        if "PYTEST_XDIST_WORKER" not in os.environ:
            for item in request.session.items:
                if item.path == request.path and isinstance(item, pytest.Function):
                    start(item.callspec.params["place"])
        yield lambda place: (start(place)[0], start(place)[1].result())


def play(project: Project, place: str) -> int:
    """Let a process die at a place and another finish. Returns the id of the dead one."""
    project.execute(BEFORE.get(place, ""))
    victim = project.start(*WORKER.get(place, TICK), **{failpoints.VARIABLE: f"{place}:1"})
    if place in TOLD_TO_STOP:
        project.until(lambda: ("lift",) in project.seen("step"), "a run has its long step in hand")
        victim.terminate()
    assert victim.wait(60) == -signal.SIGKILL, project.said()
    finisher = project.start(*TICK)
    project.until(lambda: not project.unfinished(), f"all is done after a death at {place}")
    finisher.terminate()
    assert finisher.wait(30) == 0, project.said()
    project.close()
    return victim.pid


@pytest.mark.parametrize("place", sorted(failpoints.PLACES))
def test_what_a_killed_process_leaves_is_finished_by_the_next(place: str, case: Case) -> None:
    project, killed = case(place)
    with closing(project):  # the server has room for the connections of a few
        project.check(TRIPS)
        quarantined = project.count("durable_flows_event WHERE quarantined")
        assert quarantined == (place == "before_quarantine")
        repeated = +project.repeated()
        assert repeated <= project.in_hand({killed})
        if place != "before_atomic_commit":  # that step may be one of which nobody is told
            assert bool(repeated) == (place in STEP_IN_HAND)
