"""`flows/function.failed`, `.finished` and `.cancelled`: told of each end once, where somebody listens."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings

from durable_flows import (
    CancelOn,
    Event,
    NonRetriableError,
    On,
    Step,
    Timeouts,
    cancel,
    flow,
    rerun,
    retry,
)
from durable_flows.engine import (
    audience,
    deadlines,
    deployments,
    execute,
    finish,
    ring,
    slices,
    sql,
)
from durable_flows.engine.claim import claim
from durable_flows.engine.history import History
from durable_flows.engine.route import route
from durable_flows.errors import InvalidEvent, InvalidOption
from durable_flows.models import Audience, Due, Run
from durable_flows.models import Event as StoredEvent
from durable_flows.registry import registry
from durable_flows.rules import clock, endings, payload
from durable_flows.rules.endings import CANCELLED, FAILED, FINISHED
from durable_flows.testing import RunView, advance, crash_at, drain, run_of, runs_of, send
from tests.promises.staging import again, execute_due, forget, once_at, played

pytestmark = pytest.mark.django_db


class Refused(NonRetriableError):
    code = "E_REFUSED"


def failing(id: str = "fails", on: str = "go", **options: Any) -> Any:
    @flow(id, on=on, **options)
    def fails(step: Step) -> None:
        step.run("charge", refuse)

    def refuse() -> None:
        raise Refused("no money")

    return fails


def resting(**options: Any) -> Any:
    @flow("rests", on="go", **options)
    def rests(step: Step) -> None:
        step.sleep("rest", "30 days")

    return rests


def hearing(*names: str, id: str = "hears") -> list[Event]:
    """A flow that listens to these; the list grows by what starts it."""
    heard: list[Event] = []
    flow(id, on=list(names))(lambda event: heard.append(event))
    return heard


def told() -> list[tuple[str, dict[str, Any]]]:
    """The events about ends that are stored, in the order of their arrival."""
    rows = StoredEvent.objects.filter(name__in=endings.NAMES).order_by("arrival")
    return [(row.name, payload.loads(row.data)) for row in rows]


# -- what is told ----------------------------------------------------------------------------


def test_a_failure_is_told_with_trigger_and_error():
    heard = hearing(FAILED)
    failing()
    run = played("go", {"n": 1}, user={"email": "ada@example.com"})
    (event,) = heard
    data = event.data
    assert (data["function_id"], data["run_id"]) == ("fails", run.id)
    assert (data["state"], data["generation"], data["started"]) == ("failed", 0, True)
    assert data["reason"] == run.reason
    assert data["event"]["name"] == "go"
    assert data["event"]["data"] == {"n": 1}
    assert data["event"]["user"] == {"email": "ada@example.com"}
    assert data["events"] == [data["event"]]
    assert data["left_out"] == []
    assert "result" not in data


def test_the_error_that_is_told_is_exactly_that_of_the_run():
    (heard, _) = hearing(FAILED), failing()
    run = played()
    (event,) = heard
    assert event.data["error"] == run.error
    assert event.data["reason"] == run.reason
    error = event.data["error"]
    assert set(error) == {"name", "message", "stack", "code", "step"}
    assert (error["name"], error["message"]) == ("Refused", "no money")
    assert (error["code"], error["step"]) == ("E_REFUSED", "charge")
    assert "Traceback" in error["stack"]


def test_an_end_is_told_as_finished_whatever_it_was_and_as_what_it_was():
    heard = hearing(FAILED, FINISHED, CANCELLED)
    failing("fails", "a")
    flow("works", on="b")(lambda: {"sum": 3})
    resting(cancel_on=CancelOn("stop"))
    played("a")
    played("b")
    played("go")
    send("stop")
    drain()
    assert Counter((event.name, event.data["state"]) for event in heard) == {
        (FINISHED, "failed"): 1,
        (FAILED, "failed"): 1,
        (FINISHED, "completed"): 1,
        (FINISHED, "cancelled"): 1,
        (CANCELLED, "cancelled"): 1,
    }
    by_state = {event.data["state"]: event.data for event in heard if event.name == FINISHED}
    assert by_state["completed"]["result"] == {"sum": 3}
    assert "error" not in by_state["completed"]
    assert by_state["failed"]["error"]["message"] == "no money"
    assert by_state["cancelled"]["reason"].startswith("event stop ")
    assert not {"error", "result"} & set(by_state["cancelled"])


def test_the_sender_of_what_is_told_is_the_run_that_ended():
    hearing(FAILED)
    failing()
    run = played()
    row = StoredEvent.objects.get(name=FAILED)
    assert (str(row.sender), row.depth) == (run.id, 1)
    assert row.ts == Run.objects.get(pk=run.id).ended_at


def test_the_trigger_that_is_told_is_what_the_handler_found():
    heard = hearing(FINISHED)
    found: list[Event] = []
    works = flow("works", on="go")(lambda event: found.append(event))
    played(Event("go", {"n": 1.5e22, "text": "é\u2028"}, id="mine", v="2"))
    works.start({"n": 2}, user={"id": 7})
    drain()
    assert [event.data["event"] for event in heard] == [event.as_dict() for event in found]


# -- whatever ends a run ---------------------------------------------------------------------


def by_command(run: RunView) -> None:
    cancel(run.id, reason="enough")
    drain()


def by_rule(run: RunView) -> None:
    send("stop")
    drain()


def by_deadline(run: RunView) -> None:
    advance("8 days")


def before_its_slice(run: RunView) -> None:
    advance("8 days", play=False)
    execute_due()


@pytest.mark.parametrize("end", [by_command, by_rule, by_deadline, before_its_slice])
def test_a_resting_run_that_is_cancelled_is_told_of(end: Any):
    heard = hearing(CANCELLED)
    resting(cancel_on=CancelOn("stop"), timeouts=Timeouts(finish="7 days"))
    run = played()
    if end is before_its_slice:
        Due.objects.update(wake_at=clock.now() + timedelta(days=1))
    end(run)
    drain()
    assert again(run).state == "cancelled"
    assert [event.data["run_id"] for event in heard] == [run.id]
    assert heard[0].data["reason"] == again(run).reason != ""


@pytest.mark.parametrize("place", ["step_ran", "before_suspend", "before_end"])
def test_a_run_that_is_told_to_stop_while_it_executes_is_told_of(place: str):
    heard = hearing(CANCELLED, FINISHED)

    @flow("works", on="go")
    def works(step: Step) -> None:
        step.run("work", int)
        if place == "before_suspend":
            step.sleep("rest", "1h")

    event = send("go")
    route()

    def stop() -> None:
        cancel(Run.objects.get().pk, reason="enough")
        route()

    with once_at(place, stop):
        drain()
    run = run_of(event)
    assert run.state == "cancelled"
    assert sorted((event.name, event.data["reason"]) for event in heard) == [
        (CANCELLED, "enough"),
        (FINISHED, "enough"),
    ]


def test_a_run_that_never_began_is_told_of_and_says_so():
    heard = hearing(CANCELLED)
    resting(timeouts=Timeouts(start="1h"))
    send("go")
    route()
    advance("2h", play=False)
    deadlines.serve()
    drain()
    assert [(event.data["started"], event.data["reason"]) for event in heard] == [
        (False, "timeout: start")
    ]


def test_a_poisonous_run_is_told_of():
    heard = hearing(FAILED)
    flow("kills", on="go")(lambda step: step.run("die", int))
    event = send("go")
    with crash_at("step_ran", "die", times=20):
        for _ in range(6):
            advance("1h")
    assert run_of(event).state == "failed"
    assert [event.data["error"]["name"] for event in heard] == ["PoisonRun"]


def test_a_run_that_another_invoked_is_told_of_and_so_is_the_other():
    heard = hearing(FAILED)
    child = failing("child", "never")

    @flow("parent", on="go")
    def parent(step: Step) -> None:
        step.invoke("call", child)

    played()
    assert [event.data["function_id"] for event in heard] == ["child", "parent"]
    assert heard[1].data["error"]["name"] == "InvokeError"
    assert heard[1].data["error"]["step"] == "call"


# -- once ------------------------------------------------------------------------------------


def test_an_end_that_is_written_again_is_told_of_once():
    hearing(FAILED, FINISHED)
    failing()
    send("go")
    route()
    (claimed,) = claim(ring.default_queue(), 1)
    ending = slices.execute(claimed, History())
    assert isinstance(ending, finish.Ending)
    assert finish.end([ending])  # and suppose that its answer was lost
    assert finish.end([ending]) == []
    assert [name for name, _ in told()] == [FINISHED, FAILED]


def test_each_generation_of_a_run_is_told_of():
    heard = hearing(FAILED)
    failing()
    run = played()
    for _ in range(2):
        retry(run.id)
        drain()
    assert [event.data["generation"] for event in heard] == [0, 1, 2]
    assert {event.data["run_id"] for event in heard} == {run.id}


def test_a_rerun_is_told_of_as_a_run_of_its_own():
    heard = hearing(FAILED)
    failing()
    run = played()
    other = rerun(run.id)
    drain()
    assert [event.data["run_id"] for event in heard] == [run.id, other]


def test_an_end_that_is_rolled_back_is_not_told():
    hearing(FAILED)
    failing()
    send("go")
    with crash_at("before_end_commit") as crash:
        drain()
    assert crash.happened
    assert told() == []
    drain()
    assert [name for name, _ in told()] == [FAILED]


# -- only where somebody listens -------------------------------------------------------------


def test_nothing_is_told_where_nobody_listens():
    failing()
    played()
    hearing(CANCELLED)
    played()
    assert told() == []


@pytest.mark.two_writers
def test_an_end_that_nobody_hears_of_is_one_statement():
    hearing(FAILED, CANCELLED)
    flow("works", on="go")(lambda: 1)
    send("go")
    route()
    (claimed,) = claim(ring.default_queue(), 1)
    ending = slices.execute(claimed, History())
    assert isinstance(ending, finish.Ending)
    sent: list[str] = []
    sql.observers.append(sent.append)
    try:
        finish.end([ending])
    finally:
        sql.observers.remove(sent.append)
    assert len(sent) == 1


@pytest.mark.parametrize("name", ["flows/*", "flows/function.*", FAILED])
def test_a_wildcard_listens_too(name: str):
    heard = hearing(name)
    failing()
    played()
    assert FAILED in [event.name for event in heard]


def test_a_flow_of_another_deployment_that_is_alive_listens():
    hearing(FAILED)
    deployments.publish()
    forget(registry.find("hears"))  # type: ignore[arg-type]
    failing()
    played()
    assert [name for name, _ in told()] == [FAILED]
    advance("1h", play=False)  # nobody has heard of it since
    played()
    assert len(told()) == 1


def test_what_a_newer_deployment_alone_listens_to_starts_its_flow():
    newer = flow("hears", on=FAILED)(lambda event: event.data["function_id"])
    deployments.publish()
    forget(newer)
    failing()
    send("go")
    route()
    execute_due()  # by the old one
    registry.add(newer)
    drain()  # by the new one
    assert Run.objects.get(flow="hears").result == '"fails"'


def test_a_cancel_rule_of_another_deployment_listens_too():
    rests = resting(cancel_on=CancelOn(FAILED))
    run = played()
    deployments.publish()
    forget(rests)
    failing(on="other")
    played("other")
    assert again(run).state == "cancelled"


def test_a_wait_listens_until_its_time_is_over():
    @flow("waits", on="wait")
    def waits(step: Step) -> Any:
        found = step.wait_for_event(
            "broken", event=FAILED, if_="async.data.function_id == 'fails'", timeout="1 day"
        )
        return found and found.data["error"]["message"]

    failing()
    waiting = played("wait")
    played()
    assert again(waiting).result == "no money"
    advance("2 days")
    played()
    assert len(told()) == 1


def test_a_wait_matches_what_was_told_like_any_event():
    @flow("waits", on="wait")
    def waits(event: Event, step: Step) -> Any:
        found = step.wait_for_event("end", event=FINISHED, match="data.run_id", timeout="1 day")
        return found and found.data["result"]

    works = flow("works")(lambda event: event.data["n"])
    one, two = works.start({"n": 1}), works.start({"n": 2})
    waiting = played("wait", {"run_id": two})
    assert one != two
    assert again(waiting).result == 2


def test_an_end_that_came_before_the_very_first_wait_is_seen_from_the_last_action_on():
    calls = failing("called", "never")

    @flow("waits", on="wait")
    def waits(step: Step) -> Any:
        step.run("before", int)
        run_id = step.run("call", calls.start)
        drain_elsewhere()
        found = step.wait_for_event(
            "end", event=FAILED, if_=f"async.data.run_id == '{run_id}'", timeout="1 day"
        )
        return found and found.data["error"]["code"]

    def drain_elsewhere() -> None:
        route()
        for claimed in claim(ring.default_queue(), 5):
            execute._execute_batch([claimed])

    earlier = calls.start()
    drain()
    waiting = played("wait")
    assert again(waiting).result == "E_REFUSED"
    assert Audience.objects.get().since is not None
    assert earlier not in [data["run_id"] for _, data in told()]


def test_what_ended_before_the_position_of_the_first_wait_is_not_told():
    failing()
    played()
    advance("1h")

    @flow("waits", on="wait")
    def waits(step: Step) -> bool:
        step.run("act", int)
        return step.wait_for_event("end", event=FAILED, timeout="1h") is not None

    waiting = played("wait")
    assert told() == []
    advance("2h")
    assert again(waiting).result is False


def test_the_second_wait_for_a_name_looks_for_nothing_that_was_not_told(
    monkeypatch: pytest.MonkeyPatch,
):
    looked: list[str] = []
    ended_since = audience.ended_since

    def look(name: str, since: Any) -> Any:
        looked.append(name)
        return ended_since(name, since)

    monkeypatch.setattr(audience, "ended_since", look)

    @flow("waits", on="wait")
    def waits(step: Step) -> None:
        step.wait_for_event("end", event=FAILED, timeout="1h")

    for _ in range(3):
        played("wait")
    assert looked == [FAILED]
    advance("3h")  # they time out, and nobody listens any more
    assert looked == [FAILED]
    played("wait")
    assert looked == [FAILED, FAILED]


# -- no recursion ----------------------------------------------------------------------------


def test_a_run_that_was_started_by_an_end_is_not_told_of():
    calls = Counter[str]()

    @flow("hears", on=[FAILED, FINISHED], retries=0)
    def hears(event: Event) -> None:
        calls[event.name] += 1
        raise ValueError("not this one either")

    failing()
    played()
    assert calls == {FAILED: 1, FINISHED: 1}
    assert [data["function_id"] for _, data in told()] == ["fails", "fails"]


@pytest.mark.parametrize("how", ["invokes", "starts", "starts one that invokes"])
def test_nor_is_a_run_that_such_a_run_invokes_or_starts(how: str):
    child = failing("child", "never")

    @flow("between", retries=0)
    def between(step: Step) -> None:
        step.invoke("call", child)

    @flow("hears", on=FAILED, retries=0)
    def hears(step: Step) -> None:
        if how == "invokes":
            step.invoke("call", child)
        else:
            step.run("start", (child if how == "starts" else between).start)

    failing()
    played()
    assert Run.objects.filter(flow="child").get().state == "failed"
    assert Run.objects.filter(flow="hears").count() == 1
    assert [data["function_id"] for _, data in told()] == ["fails"]


def test_a_run_that_such_a_run_retries_is_told_of_again():
    @flow("hears", on=FAILED)
    def hears(event: Event, step: Step) -> None:
        if event.data["generation"] < 2:
            step.sleep("cool down", "5m")
            step.run("retry", retry, event.data["run_id"])

    failing()
    run = played()
    advance("1h")
    assert Run.objects.get(pk=run.id).generation == 2
    assert [data["generation"] for _, data in told()] == [0, 1, 2]


def test_what_such_a_run_sends_starts_runs_that_are_told_of():
    heard = hearing(FINISHED)

    @flow("sends", on=On(FINISHED, if_="event.data.function_id == 'works'"))
    def sends(step: Step) -> None:
        step.send_event("go on", Event("second/go"))

    flow("works", on="go")(lambda: 1)
    flow("second", on="second/go")(lambda: 2)
    played()
    assert [event.data["function_id"] for event in heard] == ["works", "second"]


# -- what does not fit -----------------------------------------------------------------------


def test_a_result_that_is_too_large_for_an_event_is_left_out_and_the_run_ends():
    heard = hearing(FINISHED)
    flow("works", on="go")(lambda: "x" * 600_000)
    run = played()
    assert (run.state, len(run.result)) == ("completed", 600_000)
    (event,) = heard
    assert event.data["result"] is None
    assert event.data["left_out"] == ["result"]
    assert event.data["events"] == [event.data["event"]]


def test_a_large_trigger_is_told_whole_and_once():
    heard = hearing(FAILED, FINISHED)
    failing()
    run = played("go", {"text": "x" * 500_000})
    assert run.state == "failed"
    for event in heard:
        assert event.data["event"]["data"] == {"text": "x" * 500_000}
        assert event.data["error"] == run.error
        assert event.data["events"] is None
        assert event.data["left_out"] == ["events"]
    assert len(heard) == 2


def test_a_limit_that_was_lowered_meanwhile_fails_no_end():
    heard = hearing(FINISHED)
    resting()
    run = played("go", {"text": "x" * 5_000})
    with override_settings(DURABLE_FLOWS={"RING": "off", "MAX_EVENT_BYTES": 1_000}):
        advance("31 days")
    assert again(run).state == "completed"
    (event,) = heard
    assert event.data["event"]["data"] == {"text": "x" * 5_000}


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", endings.NAMES)
def test_nobody_sends_them(name: str):
    with pytest.raises(InvalidEvent, match="reserved"):
        send(name)


@pytest.mark.parametrize(
    "name", ["flows/run.cancel", "flows/run.*", "flows/function.invoked", "FLOWS/function.failed"]
)
def test_the_other_events_of_the_engine_are_for_nobody(name: str):
    with pytest.raises(InvalidOption, match=r"no event that can be heard.*flows/function\.failed"):
        On(name)
    if not name.endswith("*"):
        with pytest.raises(InvalidOption, match="no event that can be heard"):
            CancelOn(name)


def test_a_wait_for_a_command_is_an_error_that_says_what_there_is():
    @flow("waits", on="go", retries=0)
    def waits(step: Step) -> None:
        step.wait_for_event("no", event="flows/run.cancel", timeout="1h")

    run = played()
    assert run.error["name"] == "InvalidOption"
    assert "flows/function.failed" in run.error["message"]


def test_an_end_cancels_runs_like_any_event():
    resting(cancel_on=CancelOn(FAILED, if_="async.data.function_id == 'fails'"))
    run = played()
    failing(on="other")
    played("other")
    assert again(run).state == "cancelled"
    assert again(run).reason.startswith(f"event {FAILED} ")


def test_a_run_is_not_cancelled_by_the_end_that_started_it():
    flow("hears", on=FAILED, cancel_on=CancelOn(FAILED))(lambda step: step.sleep("rest", "1h"))
    failing()
    (first,) = [runs_of(event, "hears")[0] for event in [_failed()]]
    assert first.activity == "waiting"
    played()
    assert again(first).state == "cancelled"


def _failed() -> str:
    played()
    return str(StoredEvent.objects.filter(name=FAILED).latest("arrival").pk)
