"""Versions: several of one flow side by side, and each run with the one that has started it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from durable_flows import CancelOn, NonRetriableError, Run, Step, Timeouts, flow, rerun, retry
from durable_flows.engine.route import route
from durable_flows.errors import DuplicateFlow, InvalidOption
from durable_flows.flows import Flow
from durable_flows.models import Due
from durable_flows.registry import registry
from durable_flows.testing import advance, drain, run_of, runs_of, send
from tests.promises.staging import again, forget, played

pytestmark = pytest.mark.django_db


def declared(version: int | None = None, *, on: str = "go", **options: Any) -> Flow:
    """A flow that rests, and tells its version."""

    def handler(step: Step, run: Run) -> list[int]:
        step.sleep("rest", "1h")
        return [version or 0, run.version]

    return flow("rests", on=on, version=version, **options)(handler)


def test_a_run_stays_with_the_version_that_has_started_it():
    declared(1)
    first = played()
    declared(2)
    second = played()
    advance("1h")
    assert (again(first).version, again(first).result) == (1, [1, 1])
    assert (again(second).version, again(second).result) == (2, [2, 2])


def test_an_async_flow_has_versions_too():
    @flow("rests", on="go", version=1)
    async def one(step):
        await step.sleep("rest", "1h")
        return "one"

    run = played()

    @flow("rests", on="go", version=2)
    async def two(step):
        return "two"

    assert played().result == "two"
    advance("1h")
    assert again(run).result == "one"


def test_the_highest_version_is_the_newest_in_whatever_order_they_are_declared():
    declared(3)
    declared(10)
    declared()
    assert played().version == 10
    found = registry.find("rests")
    assert found is not None
    assert found.version == 10
    assert registry.versions("rests") == [0, 3, 10]


def test_a_flow_without_a_version_is_older_than_any_that_has_one():
    declared()
    run = played()
    assert run.version == 0
    declared(1)
    assert played().version == 1
    advance("1h")
    assert again(run).result == [0, 0]


def test_only_the_newest_version_listens():
    declared(1, on="old")
    declared(2, on="new")
    event = send("old")
    drain()
    assert runs_of(event) == []
    assert played("new").version == 2


def test_a_start_and_an_invoke_take_the_newest_version_whichever_they_name():
    old = declared(1)
    declared(2)

    @flow("parent", on="call")
    def parent(step):
        return [step.invoke("old", old), step.invoke("id", "rests")]

    run_id = old.start()
    parent_run = played("call")
    advance("3h")
    assert run_of(run_id).result == [2, 2]
    assert again(parent_run).result == [[2, 2], [2, 2]]


def test_a_rerun_takes_the_newest_version_and_a_retry_keeps_its_own():
    failing = [True]

    @flow("rests", on="go", version=1)
    def one():
        if failing:
            raise SystemExit("not yet")
        return "one"

    run = played()
    advance("1d")
    assert again(run).state == "failed"
    failing.clear()
    flow("rests", on="go", version=2)(lambda: "two")
    retry(run.id)
    second = rerun(run.id)
    drain()
    assert (again(run).version, again(run).result) == (1, "one")
    assert (run_of(second).version, run_of(second).result) == (2, "two")


def test_two_flows_of_one_id_and_one_version_are_refused():
    declared(1)
    with pytest.raises(
        DuplicateFlow, match=r"'rests', version 1 is declared twice.*another version"
    ):
        flow("rests", version=1)(lambda: None)


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.5, 2**31])
def test_what_is_no_version_is_refused(version: Any):
    with pytest.raises(InvalidOption, match="'rests': version= is a whole number from 1"):
        flow("rests", version=version)(lambda: None)


# -- a version that is gone ----------------------------------------------------------------------


def test_a_run_whose_version_is_gone_is_parked_and_says_why(caplog):
    old = declared(1)
    run = played()
    forget(old)
    declared(2)
    declared(3)
    with caplog.at_level(logging.WARNING):
        advance("1h")
    assert (again(run).state, again(run).activity) == ("started", "parked")
    said = again(run).warnings["parked"]
    assert said.startswith(
        "VersionGone: the run was started by flow 'rests', version 1, and no worker"
    )
    assert "of this flow there is: 2, 3." in said
    assert said in caplog.text


def test_a_run_of_the_time_before_versions_says_so_when_its_code_is_gone():
    old = declared()
    run = played()
    forget(old)
    declared(1)
    advance("1h")
    assert "by flow 'rests' before it had versions" in again(run).warnings["parked"]


def test_a_run_whose_version_was_gone_goes_on_when_it_is_back():
    old = declared(1)
    run = played()
    forget(old)
    declared(2)
    advance("2h")
    assert again(run).activity == "parked"
    drain()
    assert again(run).activity == "parked", "another version is no reason to go on"
    registry.add(old)
    drain()
    assert again(run).result == [1, 1]


def test_deadlines_and_cancel_rules_are_those_of_the_version_that_has_started_the_run():
    old = declared(1, timeouts=Timeouts(finish="10m"), cancel_on=CancelOn("stop"))
    first = played()
    declared(2)
    second = played()
    advance("10m")
    assert (again(first).reason, again(second).state) == ("timeout: finish", "started")
    forget(old)
    send("stop")
    drain()
    assert again(second).state == "started"


def test_a_deadline_that_a_newer_version_puts_off_stands_for_the_runs_of_the_older_one():
    declared(1, timeouts=Timeouts(finish="10m"))
    first = played()
    declared(2, timeouts=Timeouts(finish="30m"))
    advance("10m")
    assert (again(first).state, again(first).reason) == ("cancelled", "timeout: finish")


def test_a_retried_run_has_the_deadline_and_the_cancel_rules_of_its_version():
    failing = [True]

    @flow("rests", on="go", version=1, cancel_on=CancelOn("stop"), timeouts=Timeouts(start="2h"))
    def one(step):
        if failing:
            raise NonRetriableError("not yet")
        step.sleep("rest", "1h")

    run = played()
    failing.clear()
    declared(2)
    retry(run.id)
    route()
    assert Due.objects.get().deadline_at is not None
    drain()
    send("stop")
    drain()
    assert again(run).state == "cancelled"
    assert again(run).reason.startswith("event stop")


# -- a version that nobody knows yet ---------------------------------------------------------------


def test_a_run_of_a_flow_that_its_router_did_not_know_takes_the_newest_version_and_keeps_it():
    old = declared(1)
    new = declared(2)
    forget(new)
    forget(old)
    run_id = old.start()
    drain()
    assert (run_of(run_id).activity, run_of(run_id).version) == ("parked", None)
    assert run_of(run_id).warnings == {}, "of no version it is told that it is gone"
    registry.add(old)
    registry.add(new)
    drain()
    assert run_of(run_id).version == 2
    declared(3)
    advance("1h")
    assert run_of(run_id).result == [2, 2]


def test_a_run_that_was_purged_before_its_version_was_decided_is_let_go():
    from durable_flows import models
    from durable_flows.engine.claim import claim
    from durable_flows.engine.history import History
    from durable_flows.engine.ring import default_queue
    from durable_flows.engine.slices import execute
    from durable_flows.engine.suspend import Unknown

    known = declared(1)
    forget(known)
    known.start()
    route()
    (claimed,) = claim(default_queue(), 1)
    models.Run.objects.all().delete()
    registry.add(known)
    assert isinstance(execute(claimed, History()), Unknown)
