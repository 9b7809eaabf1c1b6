"""The end of a slice: what handlers may put around their steps, and what they may not."""

from __future__ import annotations

from contextlib import contextmanager, suppress

import pytest

from durable_flows import flow, send
from durable_flows.models import Due
from durable_flows.testing import advance, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db


def rest(step, tool: str) -> None:
    if tool == "sleep":
        step.sleep("rest", "1h")
    elif tool == "wait":
        step.wait_for_event("rest", event="replied", timeout="1h")
    else:
        step.run("rest", lambda: 1 / 0, retries=1)


tools = pytest.mark.parametrize("tool", ["sleep", "wait", "retry"])


@tools
def test_except_exception_lets_a_run_suspend(tool):
    caught: list[str] = []

    @flow("careful", on="go")
    def careful(step):
        try:
            rest(step, tool)
        except Exception as error:
            caught.append(type(error).__name__)
        return "done"

    run = played()
    assert run.activity == "waiting"
    assert caught == []
    advance("2h")
    assert again(run).result == "done"
    assert caught == (["StepError"] if tool == "retry" else [])


@tools
def test_a_handler_that_swallows_the_signal_fails_with_an_error_that_says_so(tool):
    @flow("swallows", on="go")
    def swallows(step):
        with suppress(BaseException):
            rest(step, tool)
        return "went on"

    run = played()
    assert run.state == "failed"
    assert run.error["name"] == "SuspendSwallowed"
    assert "except Exception" in run.error["message"]
    assert "'swallows'" in run.error["message"]
    assert "test_suspending" in run.error["message"]
    assert not Due.objects.exists()


def test_a_bare_except_is_named():
    @flow("swallows", on="go")
    def swallows(step):
        try:
            step.sleep("rest", "1h")
        except:  # noqa: E722
            return "went on"

    assert played().error["name"] == "SuspendSwallowed"


def test_a_return_in_finally_is_named():
    @flow("swallows", on="go")
    def swallows(step):
        try:
            step.sleep("rest", "1h")
        finally:
            return "went on"  # noqa: B012

    assert played().error["name"] == "SuspendSwallowed"


def test_a_raise_in_finally_is_named():
    @flow("swallows", on="go")
    def swallows(step):
        try:
            step.sleep("rest", "1h")
        finally:
            raise ValueError("cleaning up failed")

    run = played()
    assert run.state == "failed"
    assert run.error["name"] == "SuspendSwallowed"


def test_after_the_signal_was_swallowed_no_step_is_executed():
    calls: list[int] = []

    @flow("swallows", on="go")
    def swallows(step):
        with suppress(BaseException):
            step.sleep("rest", "1h")
        step.run("next", lambda: calls.append(1))

    run = played()
    assert again(run).step_keys == ["rest"]
    assert calls == []


def test_finally_blocks_run_without_harm():
    order: list[str] = []

    @flow("tidy", on="go")
    def tidy(step):
        try:
            step.run("work", lambda: order.append("work"))
            step.sleep("rest", "1h")
            order.append("rested")
        finally:
            order.append("finally")
        return "done"

    run = played()
    assert again(run).activity == "waiting"
    assert order == ["work", "finally"]
    advance("1h")
    assert again(run).result == "done"
    assert order == ["work", "finally", "rested", "finally"]


def test_a_step_in_a_finally_block_is_executed_at_the_end_and_only_then():
    calls: list[str] = []

    @flow("tidy", on="go")
    def tidy(step):
        try:
            step.sleep("rest", "1h")
        finally:
            step.run("clean-up", lambda: calls.append("cleaned"))
        return "done"

    run = played()
    assert again(run).activity == "waiting"
    assert calls == []
    advance("1h")
    assert again(run).result == "done"
    assert calls == ["cleaned"]


@pytest.mark.parametrize("tool", ["sleep", "wait", "send"])
def test_every_tool_in_a_finally_block_suspends_again(tool):
    from durable_flows import Event

    @flow("tidy", on="go")
    def tidy(step):
        try:
            step.sleep("rest", "1h")
        finally:
            if tool == "sleep":
                step.sleep("more", "1 week")
            elif tool == "wait":
                step.wait_for_event("more", event="replied", timeout="1 week")
            else:
                step.send_event("more", Event("told"))

    run = played()
    assert again(run).step_keys == ["rest"]
    end = again(run).wake_at
    assert end is not None
    assert (end - Due.objects.get().run.created_at).total_seconds() < 3700


def test_a_context_manager_around_steps_is_left_and_entered_in_every_slice():
    order: list[str] = []

    @contextmanager
    def lock():
        order.append("in")
        try:
            yield
        finally:
            order.append("out")

    @flow("tidy", on="go")
    def tidy(step):
        with lock():
            step.sleep("rest", "1h")

    run = played()
    advance("1h")
    assert again(run).state == "completed"
    assert order == ["in", "out", "in", "out"]


def test_an_error_of_the_handler_after_a_caught_step_error_is_its_own():
    @flow("fails", on="go", retries=0)
    def fails(step):
        with suppress(Exception):
            step.run("charge", lambda: 1 / 0)
        raise ValueError("gave up")

    run = played()
    assert (run.error["name"], run.error["message"]) == ("ValueError", "gave up")


def test_one_bad_handler_does_not_disturb_the_runs_beside_it():
    @flow("mixed", on="go", retries=0)
    def mixed(event, step):
        step.run("work", lambda: event.data["n"])
        if event.data["n"] == 1:
            raise ValueError("bad")
        if event.data["n"] == 2:
            with suppress(BaseException):
                step.sleep("rest", "1h")
        return event.data["n"]

    ids = [send("go", {"n": n})[0] for n in range(4)]
    drain()
    from durable_flows.testing import run_of

    assert [run_of(event_id).state for event_id in ids] == [
        "completed",
        "failed",
        "failed",
        "completed",
    ]
