"""How far back a wait looks: to before the last action; a sleep means "from then on"."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from durable_flows import Event, flow, send
from durable_flows.engine.route import route
from durable_flows.models import Signature
from durable_flows.testing import advance, crash_after, crash_at, drain, run_of
from tests.promises.staging import again, execute_due, now, played

pytestmark = pytest.mark.django_db


def reply(**data: Any) -> None:
    """An event that is sent and routed at once, in the middle of something else."""
    send("replied", data)
    route()


def wait(step, id: str = "reply", event: str = "replied", **options: Any) -> Any:
    """Wait for an hour; what the event's data say, or None."""
    found = step.wait_for_event(id, event=event, **{"timeout": "1h", **options})
    return None if found is None else found.data.get("n", "heard")


@pytest.fixture(params=["the first wait of its kind", "known to the router"], autouse=True)
def known(request) -> None:
    """Both ways in which a wait finds what is past: by name, and by what routers have noted."""
    if request.param == "known to the router":

        @flow("waited-before", on="before")
        def handler(step):
            wait(step)

        send("before")
        drain()
        assert Signature.objects.exists()


# -- actions ---------------------------------------------------------------------------------


def test_a_reply_that_arrives_during_the_step_that_asked_for_it_is_seen():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: reply(n=1))
        return wait(step)

    assert played().result == 1


def test_it_is_seen_though_that_step_was_killed_and_repeated():
    calls: list[int] = []

    @flow("asks", on="go")
    def asks(step):
        def ask():
            calls.append(1)
            if len(calls) == 1:  # what the killed one asked for is answered all the same
                reply(n=1)

        step.run("ask", ask)
        return wait(step)

    with crash_after("ask", recorded=False):
        run = played()
    drain()
    assert len(calls) == 2
    assert again(run).result == 1


def test_it_is_seen_though_the_worker_died_right_after_that_step():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: reply(n=1))
        return wait(step)

    with crash_after("ask"):
        run = played()
    drain()
    assert again(run).result == 1


def test_it_is_seen_though_that_step_failed_at_first():
    calls: list[int] = []

    @flow("asks", on="go")
    def asks(step):
        def ask():
            calls.append(1)
            if len(calls) == 1:
                reply(n=1)
                raise ConnectionError("asked, and no answer")

        step.run("ask", ask)
        return wait(step)

    run = played()
    advance("10m")
    assert again(run).result == 1


def test_a_reply_to_an_event_that_a_step_sent_is_seen():
    @flow("answers", on="asked")
    def answers():
        send("replied", {"n": 1})

    @flow("asks", on="go")
    def asks(step):
        step.send_event("ask", Event("asked"))
        route()
        execute_due()  # the answer is there before the wait is
        route()
        return wait(step)

    assert played().result == 1


def test_what_came_between_the_trigger_and_the_first_wait_is_seen():
    @flow("waits", on="go")
    def waits(step):
        reply(n=1)
        return wait(step)

    assert played().result == 1


def test_what_came_while_the_run_had_not_begun_yet_is_seen():
    @flow("waits", on="go")
    def waits(step):
        return wait(step)

    (go,) = send("go")
    route()
    reply(n=1)
    drain()
    assert run_of(go).result == 1


def test_what_arrived_with_the_trigger_is_seen():
    @flow("waits", on="go")
    def waits(step):
        return wait(step)

    go, _ = send([Event("go"), Event("replied", {"n": 1})])
    drain()
    assert run_of(go).result == 1


def test_what_came_before_the_trigger_is_not_seen():
    @flow("waits", on="go")
    def waits(step):
        return wait(step)

    reply(n=1)
    run = played()
    assert run.activity == "waiting"


def test_what_came_before_the_last_action_is_not_seen():
    @flow("asks", on="go")
    def asks(step):
        step.run("first", lambda: reply(n=1))
        step.run("second", lambda: None)
        step.run("third", lambda: None)
        return wait(step)

    run = played()
    assert run.activity == "waiting"
    reply(n=2)
    drain()
    assert again(run).result == 2


def test_what_came_between_two_actions_is_seen_after_the_second():
    """It was received after the entry before the last action: nobody can tell what it answers."""

    @flow("asks", on="go")
    def asks(step):
        step.run("first", lambda: None)
        reply(n=1)
        step.run("second", lambda: None)
        return wait(step)

    assert played().result == 1


def test_the_position_is_the_same_in_a_later_slice():
    @flow("asks", on="go")
    def asks(step):
        step.run("first", lambda: reply(n=1))
        step.run("second", lambda: reply(n=2))
        wait(step, "pause", event="resumed")
        return wait(step)

    run = played()
    send("resumed")
    drain()
    assert again(run).result == 2


# -- several waits ---------------------------------------------------------------------------


def test_three_waits_in_a_row_miss_nothing_though_the_replies_come_in_reverse_order():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: None)
        return [wait(step, name, event=name) for name in ("first", "second", "third")]

    run = played()
    for n, name in enumerate(["third", "second", "first"]):
        send(name, {"n": n})
        drain()
    assert again(run).result == [2, 1, 0]


def test_they_miss_nothing_that_came_during_the_action_either():
    def ask() -> None:
        for n, name in enumerate(["third", "second", "first"]):
            send(name, {"n": n})
            route()

    @flow("asks", on="go")
    def asks(step):
        step.run("ask", ask)
        return [wait(step, name, event=name) for name in ("first", "second", "third")]

    assert played().result == [2, 1, 0]


def test_waits_of_one_name_use_the_events_of_one_action_one_after_the_other():
    @flow("asks", on="go")
    def asks(step):
        for n in range(3):
            reply(n=n)
        step.run("ask", lambda: None)
        return [wait(step) for _ in range(3)]

    assert played().result == [0, 1, 2]


def test_the_oldest_is_used_first_though_only_the_newer_one_was_noted():
    """The first wait of its kind came between the two."""
    Signature.objects.all().delete()

    def ask() -> None:
        reply(n=1)
        send("kindled")
        route()
        execute_due()  # another run waits for the same: from now on routers note what they see
        reply(n=2)

    @flow("first-of-its-kind", on="kindled")
    def waits(step):
        wait(step, since="now")

    @flow("asks", on="go")
    def asks(step):
        step.run("ask", ask)
        return [wait(step), wait(step)]

    assert played().result == [1, 2]


def test_a_long_backlog_is_used_up_to_its_last_event():
    """More than a wait looks at in one go: those that are used do not hide those that are not."""

    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: send([Event("replied", {"n": n}) for n in range(130)]) and None)
        route()
        return [wait(step) for _ in range(130)]

    assert played().result == list(range(130))


def test_an_event_that_an_earlier_wait_used_is_not_used_again_after_an_action():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: reply(n=1))
        first = wait(step)
        step.run("next", lambda: None)
        return [first, wait(step)]

    run = played()
    assert run.activity == "waiting"
    reply(n=2)
    drain()
    assert again(run).result == [1, 2]


def test_a_timeout_does_not_move_the_position():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: (send("late", {"n": 7}), route(), None)[-1])
        nothing = wait(step, "never", event="never", timeout="1m")
        return [nothing, wait(step, "late", event="late")]

    run = played()
    advance("2m")
    assert again(run).result == [None, 7]


# -- sleeps ----------------------------------------------------------------------------------


def test_a_sleep_means_from_then_on():
    @flow("sleeps", on="go")
    def sleeps(step):
        step.run("ask", lambda: reply(n=1))
        step.sleep("nap", "1h")
        return wait(step)

    run = played()
    reply(n=2)
    advance("30m")
    reply(n=3)
    advance("31m")
    assert again(run).activity == "waiting"
    reply(n=4)
    drain()
    assert again(run).result == 4


def test_what_comes_after_the_end_of_a_sleep_is_seen_though_the_worker_was_late():
    @flow("sleeps", on="go")
    def sleeps(step):
        step.sleep("nap", "1h")
        return wait(step)

    run = played()
    advance("61m", play=False)
    reply(n=1)
    drain()
    assert again(run).result == 1


def test_after_a_sleep_an_action_counts_again():
    @flow("sleeps", on="go")
    def sleeps(step):
        step.sleep("nap", "1h")
        step.run("ask", lambda: reply(n=2))
        return wait(step)

    run = played()
    reply(n=1)
    advance("61m")
    assert again(run).result == 2


def test_between_a_sleep_and_the_action_after_it_nothing_is_missed():
    @flow("sleeps", on="go")
    def sleeps(step):
        step.sleep("nap", "1h")
        reply(n=1)
        step.run("ask", lambda: None)
        return wait(step)

    run = played()
    advance("61m")
    assert again(run).result == 1


def test_a_sleep_that_was_over_at_once_means_from_then_on_too():
    @flow("sleeps", on="go")
    def sleeps(step):
        step.run("ask", lambda: reply(n=1))
        step.sleep("nap", 0)
        return wait(step)

    assert played().activity == "waiting"


# -- since -----------------------------------------------------------------------------------


def test_since_run_sees_everything_since_the_trigger():
    @flow("asks", on="go")
    def asks(step):
        step.run("first", lambda: reply(n=1))
        step.run("second", lambda: None)
        step.sleep("nap", "1h")
        return wait(step, since="run")

    reply(n=0)
    run = played()
    advance("61m")
    assert again(run).result == 1


def test_since_now_sees_nothing_of_the_past():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: reply(n=1))
        return wait(step, since="now")

    run = played()
    assert run.activity == "waiting"
    reply(n=2)
    drain()
    assert again(run).result == 2


def test_since_now_stays_where_it_was_when_the_run_is_replayed():
    @flow("asks", on="go")
    def asks(step):
        return wait(step, since="now")

    with crash_at("wait_registered"):
        run = played()
    reply(n=1)
    drain()
    assert again(run).result == 1


def test_since_a_moment_sees_what_was_received_from_then_on_even_before_the_trigger():
    reply(n=1)
    moment = now()
    reply(n=2)

    @flow("asks", on="go")
    def asks(step):
        return wait(step, since=moment)

    assert played().result == 2


def test_since_a_moment_is_about_receipt_and_not_about_ts():
    moment = now()
    send("replied", {"n": 1}, ts=moment - timedelta(days=3))
    drain()

    @flow("asks", on="go")
    def asks(step):
        return wait(step, since=moment)

    assert played().result == 1


def test_since_a_moment_reaches_back_behind_a_sleep():
    moments: list[Any] = []

    @flow("sleeps", on="go")
    def sleeps(step):
        step.sleep("nap", "1h")
        return wait(step, since=moments[0])

    run = played()
    moments.append(now())
    reply(n=1)
    advance("61m")
    assert again(run).result == 1


def test_since_a_moment_before_the_trigger_does_not_see_the_trigger_itself():
    moment = now()

    @flow("asks", on="replied")
    def asks(step):
        return wait(step, since=moment)

    run = played("replied", {"n": 1})
    assert run.activity == "waiting"
    reply(n=2)
    drain()
    assert again(run).result == 2


def test_since_now_after_a_sleep_is_now():
    @flow("sleeps", on="go")
    def sleeps(step):
        step.sleep("nap", "1h")
        reply(n=1)
        return wait(step, since="now")

    run = played()
    advance("61m")
    assert again(run).activity == "waiting"
    reply(n=2)
    drain()
    assert again(run).result == 2


def test_since_never_uses_an_event_twice():
    @flow("asks", on="go")
    def asks(step):
        return [wait(step, since="run"), wait(step, since="run")]

    run = played()
    reply(n=1)
    drain()
    assert again(run).activity == "waiting"
    reply(n=2)
    drain()
    assert again(run).result == [1, 2]


# -- what is seen must match and be in time --------------------------------------------------


def test_what_is_past_is_matched_like_what_comes():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", ask)
        return wait(step, match="data.x")

    def ask() -> None:
        reply(x=2, n=1)
        reply(n=2)
        reply(x=1.0, n=3)

    assert played("go", {"x": 1}).result == 3


def test_an_event_of_the_future_is_not_looked_back_at_before_its_time():
    @flow("asks", on="go")
    def asks(step):
        step.run(
            "ask", lambda: send("replied", {"n": 1}, ts=now() + timedelta(minutes=30)) and None
        )
        return wait(step)

    run = played()
    advance("29m")
    assert again(run).activity == "waiting"
    advance("2m")
    assert again(run).result == 1


def test_more_events_than_are_looked_at_in_one_go_do_not_hide_the_one_that_matches():
    @flow("asks", on="go")
    def asks(step):
        step.run("ask", ask)
        return wait(step, match="data.x")

    def ask() -> None:
        send([Event("replied", {"x": n, "n": n}) for n in range(1, 400)])
        route()

    assert played("go", {"x": 399}).result == 399
