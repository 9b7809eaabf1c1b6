"""Waiting for an event: it comes, or the time is over, or the run is cancelled: exactly one wins."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from durable_flows import CancelOn, Event, cancel, flow, retry, send
from durable_flows.engine import failpoints
from durable_flows.engine.route import route
from durable_flows.engine.tick import keep_floor_of_events
from durable_flows.models import Due, Wait
from durable_flows.models import Event as StoredEvent
from durable_flows.testing import advance, crash_at, drain, run_of
from tests.promises.staging import again, execute_due, now, once_at, played, row

pytestmark = pytest.mark.django_db


def waiter(**options: Any) -> list[Event | None]:
    """A flow that waits for ``replied``; the list holds what it got."""
    got: list[Event | None] = []

    @flow("waiter", on="go")
    def handler(step):
        found = step.wait_for_event("reply", **{"event": "replied", "timeout": "1h", **options})
        got.append(found)
        return "timed out" if found is None else "heard"

    return got


# -- what it returns -------------------------------------------------------------------------


def test_the_awaited_event_is_returned_with_all_its_fields():
    got = waiter()
    played()
    (event_id,) = send("replied", {"n": 1}, user={"id": 7}, id="r1", v="2")
    drain()
    (event,) = got
    assert isinstance(event, Event)
    assert (event.name, event.data, event.user, event.id, event.v, event.public_id) == (
        "replied",
        {"n": 1},
        {"id": 7},
        "r1",
        "2",
        event_id,
    )
    assert event.ts is not None


def test_the_event_is_the_same_when_it_is_replayed():
    seen: list[Event | None] = []

    @flow("waiter", on="go")
    def handler(step):
        seen.append(step.wait_for_event("reply", event="replied", timeout="1h"))
        step.sleep("night", "12h")

    played()
    send("replied", {"zeta": -0.0, "alpha": 1e22}, ts=now() - timedelta(seconds=1.234567))
    advance("12h")
    first, replayed = seen
    assert repr(first) == repr(replayed)


def test_nothing_is_returned_after_the_timeout_and_not_before():
    got = waiter()
    run = played()
    advance("59m 55s")
    assert got == []
    assert again(run).activity == "waiting"
    advance("10s")
    assert got == [None]
    assert again(run).result == "timed out"


def test_a_timeout_is_replayed_as_nothing_even_if_the_event_came_later():
    seen: list[Event | None] = []

    @flow("waiter", on="go")
    def handler(step):
        seen.append(step.wait_for_event("reply", event="replied", timeout="1h"))
        step.sleep("night", "12h")

    played()
    advance("2h")
    send("replied")
    advance("12h")
    assert seen == [None, None]


def test_the_end_of_the_wait_is_fixed_when_it_begins():
    timeouts = ["1h"]

    @flow("waiter", on="go")
    def handler(step):
        step.wait_for_event("reply", event="replied", timeout=timeouts[-1])

    run = played()
    timeouts.append("1 week")
    Due.objects.update(wake_at=now())
    drain()
    advance("61m")
    assert again(run).state == "completed"


def test_a_wait_of_no_time_takes_what_is_there_or_nothing():
    got = waiter(timeout=0)
    assert played().result == "timed out"

    @flow("acts", on="go2")
    def acts(step):
        step.run("ask", lambda: (send("replied"), route(), None)[-1])
        return step.wait_for_event("reply", event="replied", timeout=0) is not None

    assert played("go2").result is True
    assert got == [None]


def test_366_days_are_the_longest():
    waiter(timeout="366 days")
    assert played().activity == "waiting"


# -- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"timeout": "367 days"}, "InvalidDuration"),
        ({"timeout": -1}, "InvalidDuration"),
        ({"timeout": None}, "InvalidDuration"),
        ({"timeout": "90"}, "InvalidDuration"),
        ({"event": ""}, "InvalidOption"),
        ({"event": None}, "InvalidOption"),
        ({"event": " replied"}, "InvalidOption"),
        ({"match": "cart_id"}, "InvalidKey"),
        ({"match": ""}, "InvalidKey"),
        ({"match": "data..x"}, "InvalidKey"),
        ({"match": "event.data.x == 1"}, "InvalidKey"),
        ({"since": "yesterday"}, "InvalidOption"),
        ({"since": 7}, "InvalidOption"),
        ({"since": now().replace(tzinfo=None)}, "InvalidOption"),
    ],
)
def test_an_argument_that_is_none_fails_the_run_at_once_and_names_the_step(options, name):
    waiter(**options)
    run = played()
    assert run.state == "failed"
    assert run.error["name"] == name
    assert "'reply'" in run.error["message"]
    assert run.attempts == {}


def test_a_timeout_must_be_given():
    @flow("waiter", on="go", retries=0)
    def handler(step):
        step.wait_for_event("reply", event="replied")

    run = played()
    assert run.error["name"] == "TypeError"
    assert "timeout" in run.error["message"]


# -- matching --------------------------------------------------------------------------------


def test_only_an_event_with_the_same_value_resumes():
    got = waiter(match="data.order.id")
    run = played("go", {"order": {"id": "A1"}})
    send("replied", {"order": {"id": "A2"}})
    send("replied", {"id": "A1"})
    drain()
    assert again(run).activity == "waiting"
    send("replied", {"order": {"id": "A1"}, "n": 4})
    drain()
    assert [event.data["n"] for event in got if event] == [4]


@pytest.mark.parametrize(
    ("own", "new", "matches"),
    [
        (150, 150.0, True),
        (150.0, 150, True),
        (2**53 + 1, float(2**53), False),
        (1, True, False),
        (0, False, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        (None, "", False),
        ("1", 1, False),
        ("a", "A", False),
        ("a", "a ", False),
        ("é", "e\u0301", False),
        (0.0, -0.0, True),
        ([1, 2], [1.0, 2], True),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ("", "", True),
    ],
)
@pytest.mark.parametrize("sent", ["before", "behind"])
def test_values_are_equal_as_json_values(own, new, matches, sent):
    """The same whether the router finds the wait or the wait looks back."""
    outcomes: list[bool] = []

    @flow("waiter", on="go")
    def handler(step):
        if sent == "before":
            step.run("ask", lambda: (send("replied", {"x": new}), route(), None)[-1])
        found = step.wait_for_event("reply", event="replied", match="data.x", timeout="1h")
        outcomes.append(found is not None)

    played("go", {"x": own})
    if sent == "behind":
        send("replied", {"x": new})
    advance("1h")
    assert outcomes == [matches]


def test_a_value_missing_in_the_new_event_matches_nothing():
    waiter(match="data.x")
    run = played("go", {"x": None})
    send("replied", {})
    send("replied", {"y": None})
    drain()
    assert again(run).activity == "waiting"


def test_a_value_missing_in_the_runs_own_event_is_an_error_at_the_call():
    got = waiter(match="data.x")
    run = played("go", {"y": 1})
    assert run.state == "failed"
    assert run.error["name"] == "MissingMatch"
    assert "'data.x'" in run.error["message"]
    assert "'go'" in run.error["message"]
    assert "'reply'" in run.error["message"]
    assert run.attempts == {}
    assert got == []
    assert not Wait.objects.exists()


def test_lists_are_not_walked_into():
    waiter(match="data.items.0")
    assert played("go", {"items": ["a"]}).error["name"] == "MissingMatch"


def test_a_match_may_be_written_with_event_before_it():
    got = waiter(match="event.data.x")
    played("go", {"x": 1})
    send("replied", {"x": 1})
    drain()
    assert len(got) == 1


def test_a_match_reaches_into_the_user():
    got = waiter(match="user.id")
    played("go", user={"id": 7})
    send("replied", user={"id": 8})
    drain()
    assert got == []
    send("replied", user={"id": 7})
    drain()
    assert len(got) == 1


def test_waits_of_one_event_by_different_paths_do_not_disturb_each_other():
    heard: list[str] = []

    def waits_by(path):
        @flow(f"by-{path}", on="go")
        def handler(step):
            step.wait_for_event("reply", event="replied", match=path, timeout="1h")
            heard.append(str(path))

    for path in ("data.a", "data.b", None):
        waits_by(path)

    send("go", {"a": 1, "b": 2})
    drain()
    send("replied", {"a": 2, "b": 2})
    drain()
    assert sorted(heard) == ["None", "data.b"]


# -- one event, many waits -------------------------------------------------------------------


def test_one_event_resumes_every_run_that_waits_for_it():
    got = waiter(match="data.x")
    send([Event("go", {"x": 1})] * 3 + [Event("go", {"x": 2})])
    drain()
    (event_id,) = send("replied", {"x": 1})
    drain()
    assert [event.public_id for event in got if event] == [event_id] * 3


def test_a_run_uses_an_event_once_for_waits_of_one_name_and_key():
    seen: list[int] = []

    @flow("waiter", on="go")
    def handler(step):
        for _ in range(2):
            event = step.wait_for_event("reply", event="replied", match="data.x", timeout="1h")
            seen.append(event.data["n"])

    run = played("go", {"x": 1})
    send("replied", {"x": 1, "n": 1})
    drain()
    assert again(run).activity == "waiting"
    send("replied", {"x": 1, "n": 2})
    drain()
    assert again(run).state == "completed"
    assert seen == [1, 1, 2]  # the first is replayed in the second slice


def test_events_are_used_oldest_first():
    seen: list[int] = []

    @flow("waiter", on="go")
    def handler(step):
        seen.clear()
        for _ in range(3):
            event = step.wait_for_event("reply", event="replied", timeout="1h")
            seen.append(event.data["n"])

    played()
    send([Event("replied", {"n": n}) for n in range(3)])
    drain()
    assert seen == [0, 1, 2]


def test_waits_of_other_keys_may_use_the_same_event():
    @flow("waiter", on="go")
    def handler(step):
        one = step.wait_for_event("one", event="replied", match="data.x", timeout="1h")
        other = step.wait_for_event("other", event="replied", match="data.y", timeout="1h")
        return [one.public_id, other.public_id]

    run = played("go", {"x": 1, "y": 2})
    (event_id,) = send("replied", {"x": 1, "y": 2})
    drain()
    assert again(run).result == [event_id, event_id]


def test_a_runs_own_trigger_never_resumes_its_own_wait():
    got = waiter(event="go", since="run")
    run = played()
    assert again(run).activity == "waiting"
    StoredEvent.objects.update(routed_at=None, routed=None)  # as if it were routed again
    drain()
    assert again(run).activity == "waiting"
    send("go")
    drain()
    assert len(got) == 1


# -- exactly one wins ------------------------------------------------------------------------


def test_an_event_received_after_the_expiry_does_not_win_though_the_slice_has_not_run_yet():
    got = waiter()
    run = played()
    advance("61m", play=False)
    send("replied")
    drain()
    assert got == [None]
    assert again(run).result == "timed out"


def test_an_event_delivered_after_the_expiry_does_not_win():
    got = waiter()
    played()
    send("replied", ts=now() + timedelta(minutes=61))
    advance("2h", play=False)
    drain()
    assert got == [None]


def test_an_event_committed_before_the_timeout_wins_though_it_is_routed_after_it():
    got = waiter()
    run = played()
    advance("59m", play=False)
    (event_id,) = send("replied")
    advance("2m", play=False)
    execute_due()  # the slice comes first, and must not settle the timeout
    assert got == []
    assert again(run).activity == "waiting"
    advance("1s")
    assert [event.public_id for event in got if event] == [event_id]


def test_a_timeout_that_waits_for_the_router_is_a_timeout_if_nothing_matches():
    got = waiter(match="data.x")
    run = played("go", {"x": 1})
    advance("59m", play=False)
    send("replied", {"x": 2})
    advance("2m", play=False)
    execute_due()
    assert again(run).activity == "waiting"
    advance("1s")
    assert got == [None]


def routed_late() -> None:
    """An event that was received in time by a long transaction, and is routed only now."""
    (event_id,) = send("replied")
    in_time = now() - timedelta(minutes=5)
    StoredEvent.objects.filter(pk=event_id).update(received_at=in_time, deliver_at=in_time)
    keep_floor_of_events()  # what a tick does
    route()


def test_an_event_that_is_routed_in_the_moment_of_the_timeout_wins_alone():
    got = waiter()
    run = played()
    advance("61m", play=False)
    with once_at("before_timeout", routed_late):
        drain()
    assert len(got) == 1
    assert got[0] is not None
    assert again(run).result == "heard"
    assert Wait.objects.get().outcome == "event"


def test_an_event_that_is_routed_after_the_timeout_was_settled_changes_nothing():
    seen: list[Event | None] = []

    @flow("waiter", on="go")
    def handler(step):
        seen.append(step.wait_for_event("reply", event="replied", timeout="1h"))
        step.sleep("night", "12h")

    played()
    advance("61m", play=False)
    with once_at("before_suspend", routed_late):
        drain()
    advance("12h")
    assert seen == [None, None]
    assert Wait.objects.get().outcome == "timeout"


def test_a_cancelled_wait_is_closed():
    @flow("waiter", on="go", cancel_on=CancelOn("stop"))
    def handler(step):
        step.wait_for_event("reply", event="replied", timeout="1h")

    run = played()
    send([Event("stop"), Event("replied")])
    drain()
    assert again(run).state == "cancelled"
    advance("2h")
    assert again(run).state == "cancelled"
    assert not Wait.objects.pending().exists()


def test_an_event_and_a_cancellation_in_one_batch_end_the_run_cancelled_once():
    waiter()
    run = played()
    send("replied")
    cancel(run.id)
    drain()
    assert again(run).state == "cancelled"
    assert not Due.objects.exists()


def test_a_wait_that_was_committed_before_a_crash_is_the_one_that_is_resumed():
    got = waiter()
    with crash_at("wait_registered"):
        run = played()
    (wait,) = Wait.objects.all()
    send("replied")
    drain()
    assert again(run).result == "heard"
    assert len(got) == 1
    assert Wait.objects.get().pk == wait.pk


def test_an_event_routed_between_the_wait_and_its_look_back_is_used_once():
    got = waiter()

    def reply() -> None:
        send("replied")
        route()

    with once_at("wait_registered", reply):
        run = played()
    assert again(run).result == "heard"
    assert len(got) == 1


def test_an_event_routed_while_the_run_is_about_to_suspend_wakes_it_at_once():
    got = waiter()

    def reply() -> None:
        send("replied")
        route()
        assert Due.objects.get().nudged

    with once_at("before_suspend", reply):
        run = played()
    assert again(run).result == "heard"
    assert len(got) == 1


def test_two_waits_end_by_two_events_of_one_batch():
    @flow("waiter", on="go")
    def handler(step):
        one = step.wait_for_event("one", event="first", timeout="1h")
        other = step.wait_for_event("other", event="second", timeout="1h")
        return [one is not None, other is not None]

    run = played()
    send([Event("first"), Event("second")])
    drain()
    assert again(run).result == [True, True]


# -- after a retry ---------------------------------------------------------------------------


def test_a_retried_run_keeps_what_its_waits_returned():
    world = {"mended": False}
    seen: list[Event | None] = []

    @flow("waiter", on="go", retries=0)
    def handler(step):
        seen.append(step.wait_for_event("reply", event="replied", timeout="1h"))
        step.run("charge", lambda: None if world["mended"] else 1 / 0)

    run = played()
    send("replied", {"n": 1})
    drain()
    world["mended"] = True
    retry(run.id)
    drain()
    assert again(run).state == "completed"
    assert [event.data for event in seen if event] == [{"n": 1}, {"n": 1}]


def test_a_retried_run_registers_anew_what_its_end_has_closed():
    code: list[Any] = []

    @flow("waiter", on="go", retries=0)
    def handler(step):
        return code[-1](step)

    def failing(step):
        with pytest.raises(BaseException):  # noqa: B017,PT011 - swallowed, which fails the run
            step.wait_for_event("reply", event="replied", timeout="1h")

    def mended(step):
        return step.wait_for_event("reply", event="replied", timeout="1h") is not None

    code.append(failing)
    run = played()
    assert run.state == "failed"
    code.append(mended)
    retry(run.id)
    drain()
    assert again(run).activity == "waiting"
    send("replied")
    drain()
    assert again(run).result is True


# -- for people ------------------------------------------------------------------------------


def test_a_wait_says_what_it_matches():
    waiter(match="data.cart_id")
    played("go", {"cart_id": "c1"})
    wait = Wait.objects.get()
    assert str(wait) == "replied data.cart_id = 'c1'"


def test_what_ended_a_wait_is_on_its_row():
    waiter()
    played()
    (event_id,) = send("replied")
    drain()
    wait = Wait.objects.get()
    assert (wait.outcome, wait.event) == ("event", row(event_id))
    assert failpoints.trap is None
    assert run_of(str(wait.run_id)).state == "completed"
