"""Branches: they advance beside each other, and no key depends on who was faster."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection

from durable_flows import Fixed, NonRetriableError, Retries, StepError, cancel, flow, send
from durable_flows.engine import fence, ring
from durable_flows.engine.route import route
from durable_flows.errors import StepInThread
from durable_flows.models import Wait
from durable_flows.testing import advance, crash_after, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db

#: With threads of their own: their connections see what is committed only.
in_threads = pytest.mark.django_db(transaction=True)


def raises(error: Exception) -> Any:
    raise error


def noted(seen: list[str], name: str) -> str:
    seen.append(name)
    return name


# -- all of them -------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_branches():
    @flow("gather", on="go")
    def gather(step):
        return step.parallel(
            step.later.run("one", lambda: 1), lambda: 2, step.later.run("three", lambda: 3)
        )

    run = played()
    assert run.result == [1, 2, 3]
    assert sorted(run.step_keys) == ["one", "three"]


def test_a_branch_has_steps_of_its_own_and_its_keys_say_so():
    @flow("gather", on="go")
    def gather(step):
        def branch() -> int:
            first = step.run("add", lambda: 1)
            return step.run("add", lambda: first + 1)

        return step.parallel(branch, branch)

    run = played()
    assert run.result == [2, 2]
    assert sorted(run.step_keys) == [
        *("parallel[0]/add", "parallel[0]/add#2", "parallel[1]/add", "parallel[1]/add#2")
    ]


def test_groups_within_groups_and_after_groups_have_keys_of_their_own():
    @flow("gather", on="go")
    def gather(step):
        def inner() -> list[Any]:
            return step.parallel(lambda: step.run("leaf", lambda: "a"))

        step.parallel(inner, inner)
        step.parallel(lambda: step.run("leaf", lambda: "b"))

    assert sorted(played().step_keys) == [
        "parallel#2[0]/leaf",
        "parallel[0]/parallel[0]/leaf",
        "parallel[1]/parallel[0]/leaf",
    ]


def test_no_branches_are_no_error():
    @flow("gather", on="go")
    def gather(step):
        return step.parallel()

    assert played().result == []


def test_repeated_ids_of_deferred_steps_count_by_place():
    @flow("gather", on="go")
    def gather(step):
        step.run("mail", lambda: 0)
        return step.parallel(*[step.later.run("mail", lambda n=n: n) for n in (1, 2)])

    run = played()
    assert {step.key: step.output for step in run.steps} == {"mail": 0, "mail#2": 1, "mail#3": 2}


def test_branches_sleep_and_wait_independently():
    seen: list[str] = []

    @flow("gather", on="go")
    def gather(step):
        def slow() -> str:
            step.sleep("night", "12h")
            return step.run("after", noted, seen, "slow")

        def waiting() -> Any:
            found = step.wait_for_event("reply", event="reply", timeout="1 day")
            step.run("then", noted, seen, "waiting")
            return found.data["n"]

        return step.parallel(slow, waiting)

    run = played()
    send("reply", {"n": 7})
    drain()
    assert seen == ["waiting"]
    advance("12h")
    assert again(run).result == ["slow", 7]
    assert seen == ["waiting", "slow"]


def test_a_recorded_branch_is_not_executed_again():
    calls: Counter[str] = Counter()

    @flow("gather", on="go")
    def gather(step):
        step.parallel(
            step.later.run("once", lambda: calls.update(["once"])), step.later.sleep("nap", "1h")
        )
        step.sleep("more", "1h")

    played()
    advance("1h")
    advance("1h")
    assert calls == {"once": 1}


def test_an_error_waits_for_the_other_branches_and_the_first_by_place_is_raised():
    done: list[str] = []

    @flow("gather", on="go")
    def gather(step):
        def late() -> None:
            step.sleep("nap", "1h")
            step.run("late", lambda: done.append("late"))

        with pytest.raises(StepError, match="second"):
            step.parallel(
                late,
                step.later.run("b", lambda: raises(NonRetriableError("second"))),
                step.later.run("c", lambda: raises(NonRetriableError("third"))),
            )
        return "caught"

    run = played()
    assert run.state == "started"
    advance("1h")
    assert again(run).result == "caught"
    assert done == ["late"]


def test_on_error_stop_raises_at_once_and_closes_what_the_others_wait_for():
    @flow("gather", on="go")
    def gather(step):
        with pytest.raises(StepError, match="broken"):
            step.parallel(
                step.later.wait_for_event("never", event="never", timeout="1 day"),
                step.later.run("b", lambda: raises(NonRetriableError("broken"))),
                on_error="stop",
            )
        step.sleep("on", "1h")
        return "went on"

    run = played()
    assert Wait.objects.get(kind="step").outcome == "closed"
    advance("1h")
    assert again(run).result == "went on"


def test_a_step_of_a_branch_is_retried_by_itself():
    tried: list[str] = []

    def shaky() -> str:
        tried.append("x")
        if len(tried) < 3:
            raise ConnectionError("not yet")
        return "there"

    @flow("gather", on="go", retries=3)
    def gather(step):
        return step.parallel(step.later.run("shaky", shaky), step.later.run("calm", lambda: "c"))

    run = played()
    advance("10m")
    run = again(run)
    assert run.result == ["there", "c"]
    assert run.attempts == {"shaky": 2}


def test_a_reply_to_an_action_of_a_branch_is_seen_after_the_group():
    """It may come before the group has ended."""

    @flow("gather", on="go")
    def gather(step):
        step.parallel(
            lambda: step.run("ask", lambda: send("reply", {"n": 1}) and None),
            lambda: step.sleep("nap", "1h"),
        )
        found = step.wait_for_event("got", event="reply", timeout="1h")
        return found and found.data["n"]

    run = played()
    advance("1h")
    assert again(run).result == 1


def test_an_invoked_flow_is_a_branch():
    @flow("child")
    def child(event, step):
        step.sleep("a while", "1h")
        return event.data["n"] * 2

    @flow("gather", on="go")
    def gather(step):
        return step.parallel(*[step.later.invoke(f"c{n}", child, {"n": n}) for n in (1, 2, 3)])

    run = played()
    advance("1h")
    assert again(run).result == [2, 4, 6]


def test_an_atomic_step_of_a_branch_is_exactly_once():
    @flow("gather", on="go")
    def gather(step):
        def make() -> None:
            Group.objects.create(name="g")

        step.parallel(step.later.run("make", make, atomic=True), step.later.sleep("nap", "1h"))

    with crash_after("make", recorded=False):
        run = played()
        advance("2h")
    assert again(run).state == "completed"
    assert Group.objects.count() == 1


def test_cancelling_a_run_ends_it_in_the_middle_of_a_group():
    @flow("gather", on="go")
    def gather(step):
        step.parallel(step.later.sleep("a", "1h"), step.later.sleep("b", "2h"))

    run = played()
    cancel(run.id)
    drain()
    assert again(run).state == "cancelled"


# -- the first of them -------------------------------------------------------------------------


def test_a_race_returns_the_first_and_closes_the_waits_of_the_losers():
    @flow("race", on="go")
    def race(step):
        return step.race(
            lambda: step.wait_for_event("reply", event="reply", timeout="2 days") and "reply",
            lambda: step.sleep("limit", "1h") or "limit",
        )

    run = played()
    advance("1h")
    run = again(run)
    assert run.result == "limit"
    assert run.step("race").output == {"branch": 1}
    assert Wait.objects.get(kind="step").outcome == "closed"


def test_a_decided_race_stays_decided_though_a_loser_would_now_be_first():
    seen: list[str] = []

    @flow("race", on="go")
    def race(step):
        seen.append(
            step.race(
                lambda: step.sleep("long", "2h") or "long",
                lambda: step.sleep("short", "1h") or "short",
            )
        )
        step.sleep("on", "1 day")

    played()
    advance("1h")
    advance("1 day")
    assert seen == ["short", "short"]


def test_a_race_that_is_lost_by_an_error_raises_it_again_when_it_is_replayed():
    caught: list[str] = []

    @flow("race", on="go")
    def race(step):
        try:
            step.race(
                step.later.run("bad", lambda: raises(NonRetriableError("broken"))),
                step.later.sleep("long", "2h"),
            )
        except StepError as error:
            caught.append(error.message)
        step.sleep("on", "1h")

    played()
    advance("1h")
    assert caught == ["broken", "broken"]


def test_an_error_between_steps_decides_no_race_that_is_tried_again():
    failing = [True]

    @flow("race", on="go", retries=Retries(3, backoff=Fixed("1m"), jitter=0))
    def race(step):
        def slow() -> str:
            if failing:
                raise ConnectionError("a moment")
            step.sleep("long", "1 day")
            return "slow"

        def fast() -> str:
            step.sleep("short", "1h")
            return "fast"

        return step.race(slow, fast)

    run = played()
    failing.clear()
    advance("2h")
    assert again(run).result == "fast"


def test_an_event_after_the_race_goes_to_the_next_wait():
    @flow("race", on="go")
    def race(step):
        step.race(
            step.later.wait_for_event("first", event="reply", timeout="2 days"),
            step.later.sleep("limit", "1h"),
        )
        return step.wait_for_event("second", event="reply", timeout="1 day").data["n"]

    run = played()
    advance("1h")
    send("reply", {"n": 3})
    drain()
    assert again(run).result == 3


def test_a_branch_that_has_decided_and_is_gone_from_the_code_is_a_named_error():
    branches = 2

    @flow("race", on="go")
    def race(step):
        naps = [lambda n=n: step.sleep(f"nap {n}", f"{2 - n}h") for n in range(branches)]
        step.race(*naps)
        step.sleep("on", "1h")

    run = played()
    advance("1h")
    branches = 1
    advance("1h")
    run = again(run)
    assert (run.state, run.error["name"]) == ("failed", "BranchGone")
    assert "'race' was decided by its branch 1" in run.reason


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda step: step.race(), "at least one branch"),
        (lambda step: step.parallel(step.run("a", lambda: 1)), "has been executed before"),
        (lambda step: step.parallel(max_in_flight=0), "max_in_flight= is a number from 1"),
        (lambda step: step.parallel(on_error="ignore"), "on_error= is 'wait' or 'stop'"),
        (lambda step: step.later.parallel, "step.later has no 'parallel'"),
        (lambda step: step.later.run("a", print)(), "not called"),
        (lambda step: step.run("parallel[0]/a", print), "branches with 'parallel"),
    ],
)
def test_a_wrong_group_is_refused_with_the_reason(call, message):
    @flow("gather", on="go", retries=0)
    def gather(step):
        call(step)

    assert message in played().reason


@pytest.mark.parametrize("tools", ["parallel", "race"])
def test_a_branch_that_swallows_its_suspend_fails_with_a_named_error(tools):
    @flow("gather", on="go")
    def gather(step):
        def branch() -> None:
            with suppress(BaseException):
                step.sleep("nap", "1h")

        getattr(step, tools)(branch)

    run = played()
    assert (run.state, run.error["name"]) == ("failed", "SuspendSwallowed")
    assert f"{tools}[0]" in run.reason


# -- in threads ------------------------------------------------------------------------------------


@in_threads
def test_branches_execute_at_the_same_time():
    together = threading.Barrier(3, timeout=10)

    @flow("gather", on="go")
    def gather(step):
        return step.parallel(*[step.later.run(f"s{n}", together.wait) for n in range(3)])

    assert sorted(played().result) == [0, 1, 2]


@in_threads
def test_no_more_execute_at_once_than_was_said():
    going, most = 0, 0
    lock, pair = threading.Lock(), threading.Barrier(2, timeout=10)

    def work() -> None:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
        pair.wait()
        with lock:
            going -= 1

    @flow("gather", on="go")
    def gather(step):
        step.parallel(*[step.later.run(f"s{n}", work) for n in range(8)], max_in_flight=2)

    assert played().state == "completed"
    assert most == 2


@in_threads
def test_those_that_sleep_do_not_count_among_those_that_execute():
    @flow("gather", on="go")
    def gather(step):
        naps = [step.later.sleep(f"nap {n}", "1h") for n in range(5)]
        return step.parallel(*naps, step.later.run("last", lambda: "came"), max_in_flight=1)

    assert "last" in played().step_keys


@in_threads
def test_a_branch_goes_on_though_another_is_still_in_a_step():
    """Its sleep is over: nobody has to wait for the slow one."""
    over = threading.Event()

    @flow("gather", on="go")
    def gather(step):
        def short() -> None:
            step.sleep("nap", 0.05)
            step.run("then", over.set)

        return step.parallel(step.later.run("slow", lambda: over.wait(10)), short)

    assert played().result == [True, None]


@in_threads
def test_an_event_reaches_a_branch_though_another_is_still_in_a_step():
    waits, over = threading.Event(), threading.Event()

    def slow() -> bool:
        waits.wait(10)
        route_in_a_thread()
        return over.wait(10)

    def route_in_a_thread() -> None:
        with ring.silence():
            send("reply", {"n": 1})
            route()

    @flow("gather", on="go")
    def gather(step):
        def waiting() -> None:
            step.run("ready", waits.set)
            step.wait_for_event("reply", event="reply", timeout="1h")
            step.run("then", over.set)

        return step.parallel(step.later.run("slow", slow), waiting)

    assert played().result[0] is True


def rest_is_over(branch: int, others: set[threading.Thread]) -> None:
    """Come back once the thread of this branch, which only rests, is over; others may be of other tests."""
    for thread in {*threading.enumerate()} - others:
        if thread.name == f"durable-flows-branch-{branch}":
            thread.join(10)


@in_threads
def test_a_wake_up_that_is_noticed_while_its_branch_is_about_to_rest_is_not_lost(monkeypatch):
    """The slice has taken notice of it when the branch that it is for has read that nothing has come."""
    monkeypatch.setattr(fence, "LOOK", 0.0)
    woken, noticed = threading.Event(), threading.Event()
    others = set(threading.enumerate())

    def busy() -> None:
        rest_is_over(0, others)
        woken.wait(60)

    @flow("gather", on="go")
    def gather(step):
        def waiting() -> None:
            try:
                step.wait_for_event("reply", event="reply", timeout="1 day")
            finally:
                if not woken.is_set():
                    with ring.silence():
                        send("reply")
                        route()
                    woken.set()
                    noticed.wait(60)
            step.run("then", lambda: None)

        def working() -> None:
            step.run("busy", busy)
            step.run("look", noticed.set)

        step.parallel(step.later.sleep("rest", "1 day"), waiting, working)

    run = played()
    assert noticed.is_set()
    assert "then" in " ".join(run.step_keys)


@in_threads
def test_connections_of_branches_are_closed():
    opened: list[Any] = []

    def read() -> int:
        found = Group.objects.count()
        opened.append(connection.connection)
        return found

    @flow("gather", on="go")
    def gather(step):
        return step.parallel(*[step.later.run(f"s{n}", read) for n in range(3)])

    assert played().result == [0, 0, 0]
    for thread in threading.enumerate():
        if thread.name.startswith("durable-flows-branch"):
            thread.join(10)
    assert all(_is_closed(one) for one in opened)


def _is_closed(raw: Any) -> bool:
    if connection.vendor == "postgresql":
        return bool(raw.closed)
    try:
        raw.execute("SELECT 1")
    except Exception:
        return True
    return False


@in_threads
def test_the_loser_of_a_race_holds_up_nobody():
    """It is in the middle of a step; what comes of it is of no interest."""
    release = threading.Event()

    @flow("race", on="go")
    def race(step):
        return step.race(
            step.later.run("slow", lambda: release.wait(10)), step.later.run("fast", lambda: "won")
        )

    try:
        run = played()
        assert (run.state, run.result) == ("completed", "won")
        assert "slow" not in run.step_keys
    finally:
        release.set()


@in_threads
def test_a_step_in_a_thread_of_the_handlers_own_is_a_named_error():
    caught: list[BaseException] = []

    @flow("gather", on="go", retries=0)
    def gather(step):
        def work() -> None:
            try:
                step.run("inside", lambda: 1)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    played()
    assert isinstance(caught[0], StepInThread)


@in_threads
def test_a_cancellation_lets_the_branches_finish_what_they_are_at():
    begun, asked = threading.Barrier(3, timeout=10), threading.Event()
    done: list[str] = []

    def work(name: str) -> None:
        begun.wait()
        asked.wait(10)
        done.append(name)

    @flow("gather", on="go")
    def gather(step):
        def branch(name: str) -> None:
            step.run("first", work, name)
            step.run("second", done.append, f"{name} again")

        step.parallel(lambda: branch("a"), lambda: branch("b"))

    def cancelling() -> None:
        from durable_flows.engine import ring
        from durable_flows.models import Run

        begun.wait()
        with ring.silence():
            cancel(Run.objects.get().id)
            route()
        connection.close()
        asked.set()

    other = threading.Thread(target=cancelling)
    other.start()
    run = played()
    other.join()
    assert run.state == "cancelled"
    assert sorted(done) == ["a", "b"]
    assert sorted(run.step_keys) == ["parallel[0]/first", "parallel[1]/first"]


@in_threads
def test_a_loser_begins_no_further_step_though_the_run_goes_on():
    release, done = threading.Event(), threading.Event()
    begun: list[str] = []

    @flow("race", on="go")
    def race(step):
        def slow() -> None:
            try:
                step.run("first", release.wait, 10)
                step.run("second", begun.append, "second")
            finally:
                done.set()

        step.race(slow, step.later.run("fast", lambda: "won"))
        release.set()
        # The slice sits at its desk again, where the loser asks to go on.
        step.parallel(step.later.run("wait", done.wait, 10), step.later.run("more", lambda: 1))

    run = played()
    assert run.state == "completed"
    assert begun == []
    assert {"race[0]/first", "race[0]/second"}.isdisjoint(run.step_keys)
