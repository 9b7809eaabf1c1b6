"""Parts that are away, or go away and come back: what waits for them goes on all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.system import System, running

SPEED = 14400.0  # a day is 6 seconds

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]

SEND = """
import django
django.setup()
from durable_flows import send
send("app/user.created", {"user": {"id": 1}}, user={"email": "ada@example.com"})
"""

ROUTE_AND_CRASH = """
import os, signal
import django
django.setup()
from durable_flows.engine.route import route
assert route().events == 1
os.kill({postgres}, signal.SIGQUIT)  # before anything of it need be on the disk
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("outages"), speed=SPEED) as system:
        yield system


@pytest.fixture
def system(installed: System) -> Iterator[System]:
    yield installed
    installed.stop()
    installed.clear()


def send(system: System) -> None:
    system.run_python(SEND)


def waiting(system: System) -> bool:
    return system.count("durable_flows_due WHERE state = 'waiting'") == 1


def ended(system: System) -> bool:
    return system.query("SELECT state FROM durable_flows_run") == [("completed",)]


def test_a_sleeper_wakes_though_beat_is_dead_and_its_workers_are_idle(system: System) -> None:
    system.start_worker("only")
    send(system)
    system.until(lambda: waiting(system), "the run waits")
    system.until(lambda: ended(system), "a day has passed and the run has ended")


def test_a_worker_comes_back_after_its_database_was_restarted(system: System) -> None:
    system.start_worker("only")
    send(system)
    system.until(lambda: waiting(system), "the run waits")
    system.postgres.restart()
    system.until(lambda: ended(system), "the worker has found its database again")


def test_routing_that_a_crash_of_the_database_undid_is_done_again(system: System) -> None:
    send(system)
    system.run_python(ROUTE_AND_CRASH.format(postgres=system.postgres.pid))
    system.postgres.restart(crash=True)
    system.start_worker("only")
    system.until(lambda: ended(system), "the run has ended, and is the only one")


def test_what_was_sent_while_no_worker_was_there_is_done_when_one_comes(system: System) -> None:
    send(system)
    system.broker.restart()  # it keeps nothing: the doorbell is lost
    system.start_worker("late")
    system.until(lambda: ended(system), "the run has ended")
