"""Several events awaited by one step: all, any, some; and so many of one kind."""

from __future__ import annotations

from datetime import timedelta

import pytest

from durable_flows import Awaited, flow, send
from durable_flows.engine import failpoints
from durable_flows.engine.route import route
from durable_flows.models import Wait
from durable_flows.rules import clock
from durable_flows.testing import advance, crash_at, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db


def names(found):
    return [event and event.name for event in found]


def test_all_of_them_come_in_the_order_of_what_was_asked():
    @flow("gather", on="go")
    def gather(step):
        return names(step.wait_for_events("both", ["first", "second"], timeout="1h"))

    run = played()
    send("second")
    drain()
    assert again(run).state == "started"
    send("first")
    drain()
    run = again(run)
    assert run.result == ["first", "second"]
    assert run.step_keys == ["both[1]", "both[0]", "both"]


def test_what_has_timed_out_is_none():
    @flow("gather", on="go")
    def gather(step):
        return names(step.wait_for_events("both", ["first", "second"], timeout="1h"))

    run = played()
    send("second")
    drain()
    advance("1h")
    assert again(run).result == [None, "second"]


def test_any_of_them_closes_the_others():
    @flow("gather", on="go")
    def gather(step):
        found = step.wait_for_events("one", ["first", "second"], timeout="1h", mode="any")
        step.sleep("on", "1h")
        return names(found)

    run = played()
    send("second")
    drain()
    assert sorted(Wait.objects.values_list("event_name", "outcome")) == [
        ("first", "closed"),
        ("second", "event"),
    ]
    send("first")  # too late
    drain()
    advance("1h")
    assert again(run).result == [None, "second"]


def test_a_number_of_them_is_enough():
    @flow("gather", on="go")
    def gather(step):
        return names(step.wait_for_events("some", ["a", "b", "c"], timeout="1h", mode=2))

    run = played()
    send("c")
    drain()
    send("a")
    drain()
    assert again(run).result == ["a", None, "c"]


def test_none_of_them_in_time_is_a_list_of_nothing():
    @flow("gather", on="go")
    def gather(step):
        return step.wait_for_events("one", ["a", "b"], timeout="1h", mode="any")

    run = played()
    advance("1h")
    assert again(run).result == [None, None]


def test_their_time_is_over_at_once_however_long_it_takes_to_begin_to_wait(monkeypatch):
    def take_long(place: str, detail: str) -> None:
        if (place, detail) == ("wait_registered", "one[0]"):
            clock.advance(timedelta(seconds=0.5))

    @flow("gather", on="go")
    def gather(step):
        return step.wait_for_events("one", ["a", "b"], timeout="1h")

    monkeypatch.setattr(failpoints, "trap", take_long)
    run = played()
    advance("1h")
    assert again(run).result == [None, None]


def test_each_may_have_a_condition_of_its_own():
    @flow("gather", on="go")
    def gather(step):
        found = step.wait_for_events(
            "both",
            [Awaited("paid", match="data.order"), Awaited("seen", if_="async.data.by == 'ada'")],
            timeout="1h",
        )
        return names(found)

    run = played("go", {"order": 7})
    for name, data in (("paid", {"order": 8}), ("seen", {"by": "bob"}), ("paid", {"order": 7})):
        send(name, data)
    drain()
    assert again(run).state == "started"
    send("seen", {"by": "ada"})
    drain()
    assert again(run).result == ["paid", "seen"]


def test_replies_that_were_faster_than_the_waits_are_seen():
    @flow("gather", on="go")
    def gather(step):
        step.run("ask", lambda: (send("a"), send("b")))
        return names(step.wait_for_events("both", ["a", "b"], timeout="1h"))

    assert played().result == ["a", "b"]


def test_an_async_flow_awaits_them():
    @flow("gather", on="go")
    async def gather(step):
        found = await step.wait_for_events("both", ["a", "b"], timeout="1h")
        more = await step.collect("more", event="c", count=2, timeout="1h")
        return names([*found, *more])

    run = played()
    for name in "abcc":
        send(name)
    drain()
    assert again(run).result == ["a", "b", "c", "c"]


def test_so_many_of_one_kind_are_collected_in_the_order_of_sending():
    @flow("vote", on="go")
    def vote(step):
        votes = step.collect("votes", event="voted", match="data.poll", count=3, timeout="1 day")
        return [found.data["by"] for found in votes]

    run = played("go", {"poll": 1})
    for by, poll in (("ada", 1), ("eve", 2), ("bob", 1)):
        send("voted", {"by": by, "poll": poll})
    drain()
    assert again(run).state == "started"
    send("voted", {"by": "cid", "poll": 1})
    send("voted", {"by": "dan", "poll": 1})
    drain()
    assert again(run).result == ["ada", "bob", "cid"]


def test_what_has_come_when_the_time_is_over_is_what_was_collected():
    @flow("vote", on="go")
    def vote(step):
        return len(step.collect("votes", event="voted", count=3, timeout="1h"))

    run = played()
    send("voted")
    drain()
    advance("1h")
    assert again(run).result == 1


@pytest.mark.parametrize("place", ["wait_registered", "waits_resumed", "before_race_commit"])
def test_a_worker_that_dies_meanwhile_loses_none_of_them(place):
    @flow("gather", on="go")
    def gather(step):
        step.run("ask", lambda: (send("a"), send("b")))
        return names(step.wait_for_events("two", ["a", "b", "c"], timeout="1h", mode=2))

    with crash_at(place) as crash:
        run = played()
        advance("10m")
    assert crash.happened
    assert again(run).result == ["a", "b", None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda step: step.wait_for_events("x", [], timeout=1), "no event to wait for"),
        (lambda step: step.wait_for_events("x", "a", timeout=1), "takes a list of event names"),
        (lambda step: step.wait_for_events("x", ["a.*"], timeout=1), "has a wildcard"),
        (lambda step: step.wait_for_events("x", [7], timeout=1), "text, not int"),
        (
            lambda step: step.wait_for_events("x", ["a"], timeout=1, mode=2),
            "from 1 to the 1 events",
        ),
        (lambda step: step.wait_for_events("x", ["a"], timeout=1, mode="most"), "'all', 'any'"),
        (lambda step: step.collect("x", event="a", count=0, timeout=1), "from 1 to 500"),
        (lambda step: step.collect("x", event="a", count=501, timeout=1), "from 1 to 500"),
    ],
)
def test_what_cannot_be_waited_for_is_refused_with_the_reason(call, message):
    @flow("gather", on="go", retries=0)
    def gather(step):
        call(step)

    assert message in played().reason


def test_an_event_that_comes_as_a_race_is_lost_is_there_for_the_next_wait():
    """It has ended the wait of the loser, of which nobody takes notice any more."""

    def reply_too_late() -> str:
        send("reply")
        route()
        return "first"

    @flow("asks", on="go")
    def asks(step):
        first = step.race(
            lambda: step.wait_for_event("reply", event="reply", timeout="1h"),
            step.later.run("act", reply_too_late),
        )
        again = step.wait_for_event("again", event="reply", timeout="1h", since="run")
        return [first, again and again.name]

    run = played()
    advance("2h")
    assert again(run).result == ["first", "reply"]


def test_of_two_waits_that_end_at_once_the_loser_s_event_is_there_for_the_next():
    @flow("asks", on="go")
    def asks(step):
        first = step.race(
            step.later.wait_for_event("a", event="a", timeout="1h"),
            step.later.wait_for_event("b", event="b", timeout="1h"),
        )
        again = step.wait_for_event("again", event="b", timeout="1h", since="run")
        return [first.name, again and again.name]

    run = played()
    send("a")
    send("b")
    drain()
    assert again(run).result == ["a", "b"]
