"""rerun from a step: what was recorded before it is taken over, and may be edited."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from django.db import transaction

from durable_flows import (
    Event,
    InvalidEvent,
    NonRetriableError,
    StepError,
    flow,
    rerun,
    retry,
    send,
    skip,
)
from durable_flows.errors import InvalidOption, InvalidPayload, UnknownRun, UnknownStep
from durable_flows.models import Event as StoredEvent
from durable_flows.models import Run, Step, Wait
from durable_flows.rules import events
from durable_flows.testing import advance, crash_at, drain, run_of, sent
from tests.promises.staging import again, played, rolled_back, stored

pytestmark = pytest.mark.django_db


@pytest.fixture
def calls() -> Counter[str]:
    return Counter()


@pytest.fixture
def three(calls):
    """Three steps, of which the second fails until it is mended."""

    def second() -> str:
        calls["second"] += 1
        if not calls["mended"]:
            raise NonRetriableError("broken")
        return f"second {calls['second']}"

    def count(name: str) -> str:
        calls[name] += 1
        return f"{name} {calls[name]}"

    @flow("three", on="go")
    def three(event, step):
        one = step.run("first", count, "first")
        return [
            event.data.get("n"),
            one,
            step.run("second", second),
            step.run("third", count, "third"),
        ]

    return three


@pytest.fixture
def completed(three, calls):
    calls["mended"] = 1
    return played("go", {"n": 1})


# -- what is taken over ----------------------------------------------------------------------


def test_what_was_recorded_before_the_step_is_not_executed_again(completed, calls):
    second = rerun(completed.id, from_step="second")
    drain()
    assert run_of(second).result == [1, "first 1", "second 2", "third 2"]
    assert run_of(second).step_keys == ["first", "second", "third"]
    assert run_of(second).origin == completed.id
    assert calls["first"] == 1
    assert again(completed).result == [1, "first 1", "second 1", "third 1"]


def test_from_the_first_step_everything_is_executed(completed, calls):
    second = rerun(completed.id, from_step="first")
    drain()
    assert run_of(second).result == [1, "first 2", "second 2", "third 2"]


def test_from_the_step_that_failed(three, calls):
    run = played("go", {"n": 1})
    assert run.state == "failed"
    calls["mended"] = 1
    second = rerun(run.id, from_step="second")
    drain()
    assert run_of(second).result == [1, "first 1", "second 2", "third 1"]
    assert again(run).state == "failed"


def test_from_a_step_that_is_being_tried_and_has_no_record_yet(calls):
    @flow("tries", on="go")
    def tries(step):
        step.run("first", calls.update, ["first"])
        if not calls["mended"]:
            step.run("second", json.loads, "{")

    run = played()
    assert run.activity == "waiting"
    calls["mended"] = 1
    second = rerun(run.id, from_step="second")
    drain()
    assert run_of(second).state == "completed"
    assert calls["first"] == 1


def test_failed_attempts_are_not_taken_over(three, calls):
    run = played("go", {"n": 1})
    calls["mended"] = 1
    second = rerun(run.id, from_step="second")
    drain()
    assert run_of(second).attempts == {}
    assert [
        Step.objects.get(run_id=second, key="first").lease,
        Step.objects.get(run_id=run.id, key="first").lease,
    ] == [0, 1]


def test_a_failure_that_was_caught_is_taken_over(calls):
    def fail() -> None:
        calls["fail"] += 1
        raise NonRetriableError("no")

    @flow("catches", on="go")
    def catches(step):
        try:
            step.run("fails", fail)
        except StepError as error:
            caught = error.message
        return [caught, step.run("count", lambda: calls.update(["count"]) or calls["count"])]

    run = played()
    second = rerun(run.id, from_step="count")
    drain()
    assert run_of(second).result == ["no", 2]
    assert calls["fail"] == 1


def test_a_sleep_that_has_passed_has_passed():
    @flow("rests", on="go")
    def rests(step):
        step.sleep("rest", "1 day")
        step.run("after", lambda: None)

    run = played()
    advance("1 day")
    second = rerun(run.id, from_step="after")
    drain()
    assert run_of(second).state == "completed"


def test_a_run_from_a_step_can_be_done_again_from_a_later_one(completed, calls):
    second = rerun(completed.id, from_step="second")
    drain()
    third = rerun(second, from_step="third")
    drain()
    assert run_of(third).result == [1, "first 1", "second 2", "third 3"]
    assert [step.key for step in run_of(third).steps] == ["first", "second", "third"]
    assert list(
        Step.objects.filter(run_id=third).order_by("seq").values_list("seq", flat=True)
    ) == [
        1,
        2,
        3,
    ]


def test_a_run_that_was_taken_over_from_is_poisonous_by_its_own_deaths_only(completed, calls):
    second = rerun(completed.id, from_step="third")
    with crash_at("step_ran", "third", times=2) as crash:
        advance("5 minutes")
    assert crash.count == 2
    assert run_of(second).state == "completed"


def test_what_a_saga_has_undone_is_done_again(calls):
    def do(name: str) -> int:
        calls[name] += 1
        return calls[name]

    def ship() -> None:
        if not calls["mended"]:
            raise NonRetriableError("no")

    @flow("order", on="go")
    def order(step):
        saga = step.saga()
        step.run("check", do, "check")
        saga.run("reserve", do, "reserve", undo=lambda result, name: do("release"))
        step.run("ship", ship)
        return calls["reserve"]

    run = played()
    assert (run.state, calls["release"]) == ("failed", 1)
    calls["mended"] = 1
    second = rerun(run.id, from_step="ship")
    drain()
    assert run_of(second).result == 2
    assert (calls["check"], calls["release"]) == (1, 1)


def test_what_a_saga_has_done_and_was_taken_over_is_undone_with_the_new_run(calls):
    def do(name: str) -> int:
        calls[name] += 1
        return calls[name]

    @flow("order", on="go")
    def order(event, step):
        step.saga().run("reserve", do, "reserve", undo=lambda result, name: do(f"release {result}"))
        if event.data.get("fail"):
            raise NonRetriableError("no")
        step.run("ship", do, "ship")

    run = played()
    second = rerun(run.id, from_step="ship", data={"fail": True})
    drain()
    assert run_of(second).state == "failed"
    assert (calls["reserve"], calls["release 1"]) == (1, 1)


# -- waits and what they look back to --------------------------------------------------------


@pytest.fixture
def asks():
    @flow("asks", on="go")
    def asks(step):
        step.run("pack", lambda: None)
        step.send_event("ask", Event("asked"))
        found = [step.wait_for_event("reply", event="replied", timeout="1 day") for _ in range(2)]
        return [one and one.data["n"] for one in found]

    return asks


def test_a_wait_that_is_executed_again_sees_replies_to_what_was_done_before_it(asks):
    run = played()
    advance("2 days")
    assert again(run).result == [None, None]
    send("replied", {"n": 1})
    drain()
    second = rerun(run.id, from_step="reply")
    drain()
    assert run_of(second).activity == "waiting"  # for the second reply
    assert run_of(second).step("reply").output["data"] == {"n": 1}
    assert len(sent("asked")) == 1


def test_an_event_that_a_wait_taken_over_has_used_is_not_used_again(asks):
    run = played()
    send("replied", {"n": 1})
    drain()
    advance("2 days")
    assert again(run).result == [1, None]
    second = rerun(run.id, from_step="reply#2")
    drain()
    assert run_of(second).activity == "waiting"
    send("replied", {"n": 2})
    drain()
    assert run_of(second).result == [1, 2]


def test_a_wait_after_an_action_that_is_done_again_does_not_see_replies_to_the_old_one(asks):
    run = played()
    send("replied", {"n": 1})
    send("replied", {"n": 2})
    drain()
    assert again(run).result == [1, 2]
    second = rerun(run.id, from_step="ask")
    drain()
    assert len(sent("asked")) == 2
    assert run_of(second).activity == "waiting"
    send("replied", {"n": 3})
    send("replied", {"n": 4})
    drain()
    assert run_of(second).result == [3, 4]


def test_a_wait_that_has_not_ended_can_be_where_it_begins(asks):
    run = played()
    second = rerun(run.id, from_step="reply")
    drain()
    assert run_of(second).activity == "waiting"
    send("replied", {"n": 1})
    send("replied", {"n": 2})
    drain()
    assert run_of(second).result == again(run).result == [1, 2]


# -- what is edited --------------------------------------------------------------------------


def test_the_step_can_be_given_what_it_has_come_to(three, calls):
    run = played("go", {"n": 1})
    second = rerun(run.id, from_step="second", output={"by": "hand", "x": [1e22, -0.0]})
    drain()
    assert run_of(second).result == [1, "first 1", {"by": "hand", "x": [1e22, -0.0]}, "third 1"]
    assert run_of(second).step("second").state == "done"
    assert calls["second"] == 1


def test_none_can_be_given(completed):
    second = rerun(completed.id, from_step="third", output=None)
    drain()
    assert run_of(second).result == [1, "first 1", "second 1", None]


def test_a_large_output_can_be_given(completed):
    second = rerun(completed.id, from_step="third", output='"' * 1_000_000)
    drain()
    assert run_of(second).result[3] == '"' * 1_000_000


def test_a_wait_can_be_given_its_event_or_its_timeout(asks):
    run = played()
    second = rerun(run.id, from_step="reply", output=Event("replied", {"n": 5}))
    third = rerun(run.id, from_step="reply", output=None)
    drain()
    send("replied", {"n": 6})
    drain()
    assert run_of(second).result == [5, 6]
    assert run_of(third).activity == ""
    assert run_of(third).result == [None, 6]


def test_an_invoked_run_can_be_given_its_result():
    child = flow("child")(lambda event: event.data["n"])

    @flow("parent", on="go")
    def parent(step):
        return step.invoke("call", child, {"n": 1})

    run = played()
    assert run.result == 1
    second = rerun(run.id, from_step="call", output="other")
    drain()
    assert run_of(second).result == "other"
    assert Run.objects.filter(flow="child").count() == 1


def test_the_data_of_the_event_can_be_edited_for_the_new_run_alone(completed, calls):
    second = rerun(completed.id, from_step="third", data={"n": 2})
    third = rerun(completed.id, data={"n": 3})
    drain()
    assert run_of(second).result == [2, "first 1", "second 1", "third 2"]
    assert run_of(third).result == [3, "first 2", "second 2", "third 3"]
    assert again(completed).result[0] == 1
    assert sent("go")[0].data == {"n": 1}


def test_an_edited_event_starts_nothing_and_resumes_nothing(completed):
    @flow("waits", on="begin")
    def waits(step):
        return step.wait_for_event("it", event="go", timeout="1 day")

    other = played("begin")
    rerun(completed.id, data={"n": 2})
    drain()
    assert Run.objects.filter(flow="three").count() == 2
    assert again(other).activity == "waiting"
    late = played("begin")
    advance("2 days")
    assert (again(other).result, again(late).result) == (None, None)


def test_an_edited_event_keeps_the_rest_of_it(calls):
    seen: list[Event] = []
    flow("sees", on="go")(lambda event: seen.append(event))
    run = played("go", {"n": 1}, user={"id": 7}, id="mine", v="2")
    rerun(run.id, data={"n": 2})
    drain()
    first, second = seen
    assert (second.name, second.data, second.user, second.id, second.v, second.ts) == (
        *("go", {"n": 2}, {"id": 7}, "mine", "2"),
        first.ts,
    )


def test_data_of_a_direct_start_can_be_edited(calls):
    echo = flow("echo")(lambda event: event.data["n"])
    first = echo.start({"n": 1})
    drain()
    second = rerun(first, data={"n": 2})
    drain()
    assert run_of(second).result == 2


@pytest.fixture
def mails():
    """A step with arguments of both kinds, after one that is to be left alone."""
    sent: list[object] = []

    def mail(to: str, subject: str = "none", *, urgent: bool = False) -> None:
        sent.append([to, subject, urgent])
        if to == "nobody":
            raise NonRetriableError("no")

    def take_back(result: object, to: str, subject: str = "none", *, urgent: bool = False) -> None:
        sent.append(["sorry", to])

    @flow("mails", on="go")
    def mails(event, step):
        step.run("first", mail, "ada")
        if event.data.get("saga"):
            step.saga().run("mail", mail, "bob", "hello", undo=take_back)
            raise NonRetriableError("no")
        step.run("mail", mail, "nobody", subject="hello", urgent=True)
        step.run("last", mail, "eve")

    return sent


@pytest.mark.parametrize(
    ("input", "called"),
    [
        (["bob"], ["bob", "hello", True]),
        (("bob",), ["bob", "hello", True]),
        ({"to": "bob"}, ["bob", "hello", True]),  # which the code passes by position
        ({"to": "bob", "urgent": False}, ["bob", "hello", False]),
        ({"cc": "bob"}, None),  # as Python says
        ([], None),
    ],
)
def test_the_step_can_be_called_with_other_arguments(mails, input, called):
    run = played()
    del mails[:]
    second = rerun(run.id, from_step="mail", input=input)
    advance("1 day")
    if called is None:
        assert (run_of(second).state, run_of(second).error["name"]) == ("failed", "TypeError")
        return
    assert (run_of(second).state, mails) == ("completed", [called, ["eve", "none", False]])
    assert run_of(second).step_keys == ["first", "mail#input", "mail", "last"]
    recorded = input if isinstance(input, dict) else list(input)
    assert run_of(second).step("mail#input").output == recorded


def test_named_arguments_are_edited_one_by_one(mails):
    run = played()
    rerun(run.id, from_step="mail", input={"urgent": False})
    drain()
    assert mails[-1] == ["nobody", "hello", False]


def test_arguments_that_were_edited_hold_for_each_attempt_and_no_other_step(calls):
    seen: list[int] = []

    def falter(n: int) -> int:
        seen.append(n)
        if len(seen) in (2, 3):
            raise ConnectionError("not yet")
        return n

    @flow("tries", on="go")
    def tries(step):
        return [step.run("try", falter, 1), step.run("try", falter, 2)]

    run = played()
    second = rerun(run.id, from_step="try", input=[5])
    advance("1 day")
    assert run_of(second).state == "completed"
    assert run_of(second).attempts == {"try": 1}
    assert run_of(second).result == [5, 2]
    assert seen.count(5) == 2


def test_a_step_of_a_saga_is_undone_with_the_arguments_that_it_was_given(mails):
    run = played("go", {"saga": True})
    assert mails[-1] == ["sorry", "bob"]
    rerun(run.id, from_step="mail", input=["carl"])
    drain()
    assert mails[-2:] == [["carl", "none", False], ["sorry", "carl"]]


def test_edited_arguments_are_forgotten_from_the_same_step_and_kept_from_a_later_one(mails):
    run = played()
    second = rerun(run.id, from_step="mail", input=["bob"])
    drain()
    third, fourth = rerun(second, from_step="mail"), rerun(second, from_step="last")
    drain()
    assert run_of(third).state == "failed"
    assert run_of(fourth).step_keys == ["first", "mail#input", "mail", "last"]


def test_a_strict_flow_minds_no_edited_arguments():
    @flow("strict", on="go", strict=True)
    def strict(step):
        return [step.run("one", str, 1), step.patched("new"), step.run("two", str, 2)]

    run = played()
    second = rerun(run.id, from_step="two", input=[3])
    third = rerun(run.id, from_step="one", input=[4])
    drain()
    assert run_of(second).result == ["1", True, "3"]
    assert run_of(third).result == ["4", True, "2"]


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (None, {"input": [1]}, "name it with from_step="),
        ("mail", {"input": [1], "output": 1}, "leave out its input="),
        ("mail", {"input": "bob"}, "a list of arguments, or a dict of named ones"),
        ("nap", {"input": [1]}, "'nap' calls no function of yours .sleep."),
    ],
)
def test_input_that_cannot_be_given_is_an_error_at_the_call(step, options, message):
    @flow("naps", on="nap")
    def naps(step):
        step.run("mail", str)
        step.sleep("nap", "1h")

    run = played("nap")
    with pytest.raises(InvalidOption, match=message):
        rerun(run.id, from_step=step, **options)
    assert events.RERUN not in stored()


def test_named_arguments_reach_a_function_however_it_names_its_own(calls):
    @flow("makes", on="go")
    def makes(step):
        return [
            step.run("none", dict, [("a", 1)]),
            step.run("only", lambda a, /, b=2, *more, **rest: [a, b, more, rest], 1, c=3),
        ]

    run = played()
    named = rerun(run.id, from_step="none", input={"b": 2})
    placed = rerun(run.id, from_step="only", input={"a": 5, "b": 6, "d": 7})
    drain()
    assert run_of(named).result[0] == {"a": 1, "b": 2}  # whose parameters cannot be read
    assert run_of(placed).result[1] == [5, 6, [], {"c": 3, "d": 7}]


@pytest.mark.parametrize(
    ("input", "pointer"), [([{1}], "/input/0"), ({"a": [float("inf")]}, "/input/a/0")]
)
def test_input_that_is_not_json_is_an_error_at_the_call(completed, input, pointer):
    with pytest.raises(InvalidPayload) as error:
        rerun(completed.id, from_step="second", input=input)
    assert error.value.pointer == pointer
    assert events.RERUN not in stored()


# -- what is refused -------------------------------------------------------------------------


def test_a_step_that_the_run_has_not_come_to_is_an_error_at_the_call(completed):
    with pytest.raises(
        UnknownStep, match="'fourth'; it has recorded 'first', 'second', 'third'"
    ) as e:
        rerun(completed.id, from_step="fourth")
    assert e.value.step == "fourth"
    assert events.RERUN not in stored()


@pytest.mark.parametrize(
    ("output", "pointer"),
    [({"a": [1, {2}]}, "/output/a/1"), ({"a": float("nan")}, "/output/a"), (object(), "/output")],
)
def test_an_output_that_is_not_json_is_an_error_at_the_call(completed, output, pointer):
    with pytest.raises(InvalidPayload) as error:
        rerun(completed.id, from_step="second", output=output)
    assert error.value.pointer == pointer
    assert events.RERUN not in stored()


@pytest.mark.parametrize(
    ("data", "pointer"), [([], "/data"), ({"a": {1}}, "/data/a"), ("x", "/data")]
)
def test_data_that_is_none_is_an_error_at_the_call(completed, data, pointer):
    before = stored()
    with pytest.raises(InvalidEvent) as error:
        rerun(completed.id, data=data)
    assert error.value.pointer == pointer
    assert stored() == before


def test_an_output_needs_a_step_and_one_that_has_some(asks):
    run = played()
    with pytest.raises(InvalidOption, match="from_step="):
        rerun(run.id, output=1)
    with pytest.raises(InvalidOption, match="waits for an event"):
        rerun(run.id, from_step="reply", output={"n": 1})
    with pytest.raises(InvalidEvent, match="/output/data"):
        rerun(run.id, from_step="reply", output=Event("replied", []))  # type: ignore[call-overload]

    @flow("rests", on="rest")
    def rests(step):
        step.sleep("rest", "1 day")

    with pytest.raises(InvalidOption, match="is a sleep"):
        rerun(played("rest").id, from_step="rest", output=1)


def test_an_event_that_was_purged_is_an_error_at_the_call(completed):
    StoredEvent.objects.filter(name="go").delete()
    with pytest.raises(UnknownRun, match="no longer kept"):
        rerun(completed.id, data={"n": 2})


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_no_edited_event(completed):
    before = stored()
    with rolled_back():
        rerun(completed.id, from_step="third", data={"n": 2})
    assert stored() == before


# -- in company ------------------------------------------------------------------------------


def test_a_retry_of_the_old_run_meanwhile_takes_nothing_from_the_new_one(three, calls):
    run = played("go", {"n": 1})
    calls["mended"] = 1
    with transaction.atomic():
        retry(run.id)
        second = rerun(run.id, from_step="second")
    drain()
    for found in (again(run), run_of(second)):
        assert found.step_keys == ["first", "second", "third"]
        assert found.result[1] == "first 1"
    assert (calls["first"], calls["second"]) == (1, 3)


@pytest.mark.parametrize(
    "place",
    ["history_taken_over", "runs_admitted", "between_routing_transactions", "command_obeyed"],
)
def test_a_router_that_dies_takes_it_over_once(completed, calls, place):
    second = rerun(completed.id, from_step="third", output="given", data={"n": 2})
    with crash_at(place) as crash:
        drain()
    assert crash.happened
    drain()
    assert Run.objects.count() == 2
    assert run_of(second).result == [2, "first 1", "second 1", "given"]
    assert Step.objects.filter(run_id=second).count() == 3


def test_the_waits_of_the_new_run_are_its_own(asks):
    run = played()
    send("replied", {"n": 1})
    drain()
    second = rerun(run.id, from_step="reply#2")
    drain()
    assert Wait.objects.filter(run_id=second, outcome="event").count() == 1
    skip(second, "reply#2")
    drain()
    assert run_of(second).result == [1, None]
    assert again(run).activity == "waiting"
