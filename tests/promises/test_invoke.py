"""step.invoke: a run that another run starts and waits for, and what the caller hears of its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from durable_flows import (
    CancelOn,
    Event,
    InvokeError,
    InvokeTimeout,
    NonRetriableError,
    StepError,
    cancel,
    flow,
    rerun,
    retry,
)
from durable_flows.engine.route import route
from durable_flows.models import Admission, Due, Run, Wait
from durable_flows.models import Event as StoredEvent
from durable_flows.rules import events
from durable_flows.testing import RunView, advance, crash_at, drain, run_of, send
from tests.promises.staging import again, execute_due, now, once_at, played, stored

pytestmark = pytest.mark.django_db


def parent(child: Any, data: dict[str, Any] | None = None, **options: Any) -> None:
    """A flow that invokes another and returns what it returned, or what it heard instead."""

    @flow("parent", on="go", cancel_on=CancelOn("stop"))
    def handler(step):
        try:
            return step.invoke("call", child, data, **options)
        except InvokeError as error:
            return [type(error).__name__, error.flow, error.state, error.reason, error.run_id]


def sleeper(rest: str = "1 day") -> Any:
    @flow("child", cancel_on=CancelOn("stop child"))
    def child(event, step):
        step.sleep("rest", rest)
        return event.data

    return child


def child_of(run: RunView) -> RunView:
    [child] = again(run).children
    return run_of(child)


@contextmanager
def held(run: RunView) -> Iterator[None]:
    """Some worker has the run in hand, and does not get on with it."""
    due = Due.objects.filter(run_id=run.id)
    due.update(state="running", wake_at=now() + timedelta(days=9))
    yield
    due.update(state="queued", wake_at=now(), nudged=False)


def ended() -> int:
    return StoredEvent.objects.filter(name=events.ENDED).count()


# -- the result ------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, 0, "x", {"b": 1, "a": [1e22, -0.0]}, [[]]])
def test_the_result_of_the_child_is_handed_back(result):
    seen: list[str] = []
    flow("child")(lambda: result)

    @flow("parent", on="go")
    def handler(step):
        found = step.invoke("call", "child")
        seen.append(repr(found))
        step.sleep("rest", "1h")
        return found

    run = played()
    advance("1h")
    assert again(run).result == result
    assert seen == [repr(result)] * 2  # replayed as it was recorded
    assert [(s.key, s.kind, s.state) for s in again(run).steps][0] == ("call", "invoke", "done")
    assert Run.objects.filter(flow="child").count() == 1


def test_the_child_finds_what_it_was_given_and_knows_its_parent():
    seen: list[Event] = []

    @flow("child", queue="other")
    def child(event):
        seen.append(event)

    parent(child, {"n": 1}, user={"id": 7}, v="2")
    run = played()
    assert (seen[0].data, seen[0].user, seen[0].v) == ({"n": 1}, {"id": 7}, "2")
    assert child_of(run).parent == run.id
    assert again(run).children == (child_of(run).id,)
    assert child_of(run).children == ()
    assert Run.objects.get(pk=child_of(run).id).queue == "other"


def test_without_data_the_child_finds_an_empty_object():
    parent(flow("child")(lambda event: event.data))
    assert played().result == {}


def test_a_parent_holds_no_worker_while_it_waits():
    parent(sleeper())
    run = played()
    assert (run.activity, run.steps) == ("waiting", ())
    assert run.wake_at is not None
    assert run.wake_at > now() + timedelta(days=365)
    advance("1 day")
    assert again(run).result == {}


def test_children_of_children():
    @flow("count")
    def count(event, step):
        n = event.data["n"]
        return 0 if n == 0 else 1 + step.invoke("call", "count", {"n": n - 1})

    run_id = count.start({"n": 10})
    drain()
    assert run_of(run_id).result == 10
    assert Run.objects.filter(parent__isnull=False).count() == 10


def test_one_step_id_invokes_again_each_time():
    flow("child")(lambda event: event.data["n"])
    flow("parent", on="go")(lambda step: [step.invoke("call", "child", {"n": n}) for n in range(3)])
    run = played()
    assert run.result == [0, 1, 2]
    assert run.step_keys == ["call", "call#2", "call#3"]


def test_an_invoke_is_an_action_a_reply_during_the_child_is_not_missed():
    @flow("child")
    def child(step):
        step.send_event("reply", Event("replied"))

    @flow("parent", on="go")
    def handler(step):
        step.invoke("call", child)
        return step.wait_for_event("reply", event="replied", timeout="1h") is not None

    run = played()
    assert again(run).result is True


# -- children that do not complete -----------------------------------------------------------


def test_a_child_that_failed_is_an_error_at_once_that_says_which_and_why():
    @flow("child", retries=0)
    def child(step):
        raise KeyError("no such order")

    parent(child)
    run = played()
    assert run.result == [
        *("InvokeError", "child", "failed", "KeyError: 'no such order'"),
        child_of(run).id,
    ]
    [step] = run.steps
    assert (step.kind, step.state) == ("invoke", "failed")
    assert "Traceback" in step.error["stack"]


def test_an_invoke_error_is_a_step_error_and_replayed_as_it_was():
    seen: list[tuple[str, str, str]] = []

    @flow("child", retries=0)
    def child():
        error = NonRetriableError("no")
        error.code = "E7"  # type: ignore[attr-defined]
        raise error

    @flow("parent", on="go")
    def handler(step):
        try:
            step.invoke("call", child)
        except StepError as error:
            seen.append((type(error).__name__, str(error), error.code))
            step.sleep("rest", "1h")

    played()
    advance("1h")
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert (seen[0][0], seen[0][2]) == ("InvokeError", "E7")


def test_an_invoke_error_that_nobody_catches_fails_the_run_without_a_retry():
    flow("child", retries=0)(lambda step: 1 / 0)
    flow("parent", on="go")(lambda step: step.invoke("call", "child"))
    run = played()
    assert (run.state, run.attempts) == ("failed", {})
    assert run.error["name"] == "InvokeError"
    assert run.error["step"] == "call"
    assert run.error["run"] == child_of(run).id
    assert run.reason.endswith("of flow 'child' failed: ZeroDivisionError: division by zero")


def test_a_child_that_was_cancelled_is_an_error_at_once():
    parent(sleeper())
    run = played()
    cancel(child_of(run).id, reason="not needed")
    drain()
    assert again(run).result[:4] == ["InvokeError", "child", "cancelled", "not needed"]


def test_a_child_that_is_cancelled_by_an_event_is_one_too():
    parent(sleeper())
    run = played()
    send("stop child")
    drain()
    assert again(run).result[:3] == ["InvokeError", "child", "cancelled"]


def test_a_timeout_is_an_error_and_the_child_goes_on():
    parent(sleeper("2h"), timeout="1h")
    run = played()
    advance("59m")
    assert again(run).activity == "waiting"
    advance("1m")
    assert again(run).result[:4] == ["InvokeTimeout", "child", "timeout", ""]
    assert child_of(run).activity == "waiting"
    advance("1h")
    assert child_of(run).state == "completed"
    assert again(run).step("call").error["name"] == InvokeTimeout.__name__


@pytest.mark.parametrize(("rest", "heard"), [("30m", {}), ("90m", "InvokeTimeout")])
def test_what_counts_is_when_the_child_ended_however_late_the_parent_looks(rest, heard):
    parent(sleeper(rest), timeout="1h")
    run = played()
    with held(run):
        advance("2h")
        assert child_of(run).state == "completed"
    drain()
    result = again(run).result
    assert (result[0] if result else result) == heard


@pytest.mark.parametrize(("rest", "heard"), [("30m", "completed"), ("90m", "timeout")])
def test_the_same_holds_if_nobody_has_told_it(rest, heard):
    parent(sleeper(rest), timeout="1h")
    run = played()
    with held(run):
        advance("2h")
        Wait.objects.filter(kind="child").update(settled_at=None, outcome="")
    drain()
    assert Wait.objects.get(kind="child").outcome == heard
    assert again(run).state == "completed"


def test_runs_that_invoke_each_other_without_end_are_stopped():
    @flow("loop")
    def loop(step):
        step.invoke("call", "loop")

    run_id = loop.start()
    drain()
    assert Run.objects.count() == 51
    assert Run.objects.filter(state="failed").count() == 51
    skip = Admission.objects.get()
    assert (skip.flow, skip.verdict) == ("loop", "skip")
    assert "more than 50 runs deep" in skip.reason
    deepest = Run.objects.order_by("-event__depth").first()
    assert deepest is not None
    assert skip.reason in deepest.reason
    assert run_of(run_id).state == "failed"


def test_a_chain_that_takes_its_time_may_be_as_long_as_it_likes():
    @flow("loop")
    def loop(event, step):
        step.sleep("rest", "2m")
        if event.data["n"]:
            step.invoke("call", "loop", {"n": event.data["n"] - 1})

    run_id = loop.start({"n": 55})
    advance("3h")
    assert run_of(run_id).state == "completed"


def test_a_joined_child_that_was_skipped_is_an_error():
    child = sleeper()
    child.start(key="k")
    asked = StoredEvent.objects.get()
    Admission.objects.create(
        event=asked, flow="child", verdict="skip", reason="there are too many", decided_at=now()
    )
    StoredEvent.objects.update(routed_at=now(), routed=2)
    parent(child, key="k")
    run = played()
    assert run.result[:4] == ["InvokeError", "child", "skipped", "there are too many"]
    assert not Run.objects.filter(flow="child").exists()


def test_a_skip_that_the_router_sees_is_told_at_once():
    parent("child")
    event = send("go")
    route()
    execute_due()
    asked = StoredEvent.objects.get(name=events.INVOKE)
    StoredEvent.objects.filter(pk=asked.pk).update(depth=51)
    drain()
    assert run_of(event).result[2] == "skipped"


# -- cancelling ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cancel", "abandon"])
@pytest.mark.parametrize("by", ["command", "event"])
def test_cancelling_a_parent_cancels_its_child_unless_it_is_to_be_abandoned(mode, by):
    parent(sleeper(), on_parent_cancel=mode)
    run = played()
    if by == "command":
        cancel(run.id)
    else:
        send("stop")
    drain()
    assert again(run).state == "cancelled"
    child = child_of(run)
    if mode == "cancel":
        assert (child.state, child.reason) == ("cancelled", f"parent {run.id} was cancelled")
    else:
        assert child.activity == "waiting"
        advance("1 day")
        assert child_of(run).state == "completed"


def test_a_child_that_is_not_admitted_yet_is_cancelled_with_its_parent():
    called: list[str] = []
    flow("child")(lambda: called.append("child"))
    parent("child")
    event = send("go")
    route()
    execute_due()  # the parent waits, and its child is not admitted yet
    run = run_of(event)
    assert (run.activity, Run.objects.count()) == ("waiting", 1)
    cancel(run.id)
    drain()
    assert (again(run).state, child_of(run).state) == ("cancelled", "cancelled")
    assert called == []


def test_a_parent_that_is_being_cancelled_starts_no_child():
    parent(sleeper())
    event = send("go")

    def stop() -> None:
        cancel(run_of(event).id)
        route()

    with once_at("histories_read", stop):
        drain()
    assert run_of(event).state == "cancelled"
    assert events.INVOKE not in stored()


def test_children_of_children_are_cancelled_too():
    grandchild = sleeper()
    flow("middle")(lambda step: step.invoke("call", grandchild))
    parent("middle")
    run = played()
    assert Run.objects.count() == 3
    cancel(run.id)
    drain()
    assert set(Run.objects.values_list("state", flat=True)) == {"cancelled"}
    assert not Wait.objects.pending().exists()


def test_a_child_whose_parent_failed_or_timed_out_is_not_cancelled():
    parent(sleeper(), timeout="1h")
    run = played()
    advance("1h")
    assert again(run).state == "completed"
    cancel(run.id)
    drain()
    assert child_of(run).activity == "waiting"
    assert events.CANCEL in stored()
    assert stored().count(events.CANCEL) == 1


# -- joining by a key ------------------------------------------------------------------------


def test_two_parents_with_one_key_wait_for_one_child():
    parent(sleeper(), {"n": 1}, key="k")
    runs = [played(), played()]
    assert Run.objects.filter(flow="child").count() == 1
    advance("1 day")
    assert [again(run).result for run in runs] == [{"n": 1}] * 2
    assert child_of(runs[0]).state == "completed"
    assert again(runs[1]).children == ()


def test_a_child_that_has_ended_long_ago_is_joined_as_well():
    child = sleeper("1m")
    run_id = child.start({"n": 7}, key="k")
    advance("1h")
    assert run_of(run_id).state == "completed"
    parent(child, {"n": 8}, key="k")
    run = played()
    assert run.result == {"n": 7}
    assert Run.objects.filter(flow="child").count() == 1


def test_a_start_that_is_not_routed_yet_is_joined_as_well():
    child = sleeper("1m")
    parent(child, key="k")
    event = send("go")
    route()
    run_id = child.start({"n": 7}, key="k")
    execute_due()
    assert not Run.objects.filter(pk=run_id).exists()
    advance("1m")
    assert run_of(event).result == {"n": 7}


def test_a_start_after_the_invoke_joins_it():
    child = sleeper("1m")
    parent(child, key="k")
    run = played()
    assert child.start(key="k") == child_of(run).id


def test_a_joined_child_that_had_failed_is_an_error():
    @flow("child", retries=0)
    def child():
        raise KeyError("x")

    child.start(key="k")
    drain()
    parent(child, key="k")
    assert played().result[:3] == ["InvokeError", "child", "failed"]


# -- retry and rerun -------------------------------------------------------------------------


@pytest.fixture
def broken():
    """A child that fails until it is mended."""
    world = {"mended": False}

    @flow("child", retries=0)
    def child(step):
        if not world["mended"]:
            raise ConnectionError("refused")
        return "mended"

    return world


def test_a_retried_parent_invokes_anew(broken):
    flow("parent", on="go")(lambda step: step.invoke("call", "child"))
    run = played()
    assert run.state == "failed"
    broken["mended"] = True
    retry(run.id)
    drain()
    assert again(run).result == "mended"
    assert [run_of(child).state for child in again(run).children] == ["failed", "completed"]


def test_a_child_that_was_retried_before_its_parent_looked_is_waited_for(broken):
    parent("child")
    event = send("go")
    route()
    execute_due()
    run = run_of(event)
    with held(run):
        drain()
        assert Wait.objects.get(kind="child").outcome == "failed"
        retry(child_of(run).id)
        route()
        Due.objects.exclude(run_id=run.id).update(wake_at=now() + timedelta(hours=1))
    drain()
    assert Wait.objects.get(kind="child").outcome == ""  # it waits on
    assert (again(run).activity, again(run).steps) == ("waiting", ())
    broken["mended"] = True
    advance("1h")
    assert again(run).result == "mended"


def test_a_child_that_was_retried_and_completed_before_its_parent_looked_has_completed(broken):
    parent("child")
    event = send("go")
    route()
    execute_due()
    run = run_of(event)
    with held(run):
        drain()
        broken["mended"] = True
        retry(child_of(run).id)
        drain()
    drain()
    assert again(run).result == "mended"


def test_a_child_that_is_retried_before_its_end_was_told_is_waited_for(broken):
    parent("child")
    event = send("go")
    route()
    execute_due()
    route()
    execute_due()
    run = run_of(event)
    assert (child_of(run).state, Wait.objects.get(kind="child").outcome) == ("failed", "")
    broken["mended"] = True
    retry(child_of(run).id)
    drain()
    assert again(run).result == "mended"


def test_a_rerun_of_a_child_is_nobodys_child():
    parent(sleeper("1m"))
    run = played()
    advance("1m")
    second = rerun(child_of(run).id)
    advance("1m")
    assert run_of(second).parent == ""
    assert run_of(second).state == "completed"
    assert ended() == 1


# -- crashes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        *("before_invoke_commit", "invoke_registered", "runs_admitted"),
        *("between_routing_transactions", "children_settled", "ends_told", "before_end_commit"),
        *("step_recorded", "before_routed_commit"),
    ],
)
def test_whoever_dies_the_child_runs_once_and_is_told_of(place):
    calls: Counter[str] = Counter()

    @flow("child")
    def child(step):
        return step.run("work", lambda: calls.update(["work"]))

    parent(child)
    event = send("go")
    with crash_at(place) as crash:
        advance("1m")
    assert crash.happened
    advance("1m")
    run = run_of(event)
    assert (run.state, run.result) == ("completed", None)
    assert Run.objects.filter(flow="child").count() == 1
    assert (calls["work"], ended()) == (1, 1)
    assert not Due.objects.exists()


def test_a_lost_end_is_found_when_the_parent_comes_back():
    """The safety net: whatever wakes the parent makes it look."""
    parent(sleeper("1m"), timeout="1h")
    run = played()
    Wait.objects.filter(kind="child").update(match=run.id)  # the router will not find it
    advance("1m")
    child = Run.objects.get(flow="child")
    assert child.state == "completed"
    Wait.objects.filter(kind="child").update(match=child.pk)
    Due.objects.filter(run_id=run.id).update(wake_at=now())
    drain()
    assert again(run).result == {}


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "problem"),
    [
        (None, {}, "takes a flow or the id of one, not None"),
        ("", {}, "an id has letters"),
        ("a b", {}, "an id has letters"),
        ("child", {"on_parent_cancel": "kill"}, "on_parent_cancel= is 'cancel' or 'abandon'"),
        ("child", {"timeout": "soon"}, "timeout="),
        ("child", {"timeout": "400 days"}, "366"),
    ],
)
def test_what_cannot_be_understood_fails_the_run_and_names_the_step(target, options, problem):
    flow("parent", on="go")(lambda step: step.invoke("call", target, **options))
    run = played()
    assert run.state == "failed"
    assert "step.invoke('call')" in run.error["message"]
    assert problem in run.error["message"]
    assert events.INVOKE not in stored()


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"data": {"n": {1}}}, "/data/n"),
        ({"data": []}, "/data"),
        ({"user": "ada"}, "/user"),
        ({"v": ""}, "/v"),
        ({"key": ""}, "/key"),
    ],
)
def test_what_cannot_be_stored_fails_the_step_and_starts_nothing(options, pointer):
    @flow("parent", on="go")
    def handler(step):
        try:
            step.invoke("call", "child", **options)
        except StepError as error:
            return [isinstance(error, InvokeError), error.message]

    run = played()
    assert run.result[0] is False
    assert pointer in run.result[1]
    assert run.step("call").kind == "invoke"
    assert events.INVOKE not in stored()


def test_a_child_of_a_flow_that_nobody_knows_waits_for_somebody_who_does():
    parent("later")
    run = played()
    assert child_of(run).activity == "parked"
    assert "no worker that is alive has a flow 'later'" in again(run).warnings["call"]
    flow("later")(lambda: "at last")
    drain()
    assert again(run).result == "at last"


def test_a_flow_that_is_known_is_warned_of_by_nobody():
    parent(sleeper())
    run = played()
    assert again(run).warnings == {}


def test_an_invoke_inside_a_steps_function_is_refused():
    flow("parent", on="go")(
        lambda step: step.run("outer", lambda: step.invoke("call", "child"), retries=0)
    )
    run = played()
    assert run.error["name"] == "NestedStep"
    assert events.INVOKE not in stored()


def test_only_the_ends_of_awaited_runs_are_told():
    parent(sleeper("1m"))
    flow("other", on="go")(lambda: None)
    send("go")
    advance("1m")
    assert (Run.objects.count(), ended()) == (3, 1)
