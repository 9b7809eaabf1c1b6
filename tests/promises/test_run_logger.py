"""The logger of a run: each line once, however often its code is replayed."""

from __future__ import annotations

import logging

import pytest

from durable_flows import Fixed, Retries, flow, send
from durable_flows.testing import advance, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger=__name__)

    def lines() -> list[str]:
        found = [record for record in caplog.records if record.name == __name__]
        assert all(record.flow == "tells" and record.run_id for record in found)
        return [record.getMessage().partition(": ")[2] for record in found]

    return lines


def test_a_line_between_steps_is_logged_once(said):
    @flow("tells", on="go")
    def tells(step, run):
        run.logger.info("begins")
        step.run("one", lambda: 1)
        run.logger.info("after %s", "one")
        step.sleep("nap", "1h")
        run.logger.info("awake")
        step.wait_for_event("reply", event="reply", timeout="1h")
        run.logger.info("answered")

    run = played()
    advance("1h")
    send("reply")
    drain()
    assert again(run).state == "completed"
    assert said() == ["begins", "after one", "awake", "answered"]


def test_it_says_which_run_it_is_about(caplog):
    caplog.set_level(logging.INFO, logger=__name__)

    @flow("tells", on="go")
    def tells(run):
        run.logger.warning("look", extra={"more": 7})

    run = played()
    (record,) = [one for one in caplog.records if one.name == __name__]
    assert record.getMessage() == f"tells {run.id}: look"
    assert (record.run_id, record.more) == (run.id, 7)


def test_a_steps_function_always_speaks(said):
    @flow("tells", on="go", retries=Retries(1, backoff=Fixed("10s")))
    def tells(step, run):
        def work() -> None:
            run.logger.info("works")
            if len(said()) == 1:
                raise ConnectionError("not yet")

        step.run("work", work)
        step.sleep("nap", "1h")

    played()
    advance("2h")
    assert said() == ["works", "works"]


def test_branches_are_told_apart(said):
    @flow("tells", on="go")
    def tells(step, run):
        def branch(name: str, duration: str) -> None:
            run.logger.info("%s begins", name)
            step.sleep(f"nap {name}", duration)
            run.logger.info("%s ends", name)
            step.run(f"end {name}", lambda: None)

        step.parallel(lambda: branch("a", "1h"), lambda: branch("b", "2h"))

    played()
    advance("3h")
    assert said() == ["a begins", "b begins", "a ends", "b ends"]


def test_async_flows_have_it_too(said):
    @flow("tells", on="go")
    async def tells(step, run):
        run.logger.info("begins")
        await step.sleep("nap", "1h")
        run.logger.info("ends")

    played()
    advance("1h")
    assert said() == ["begins", "ends"]
