"""The test kit itself: what a team's own tests lean on."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest

from durable_flows import Event, flow
from durable_flows.engine import failpoints
from durable_flows.errors import InvalidDuration, InvalidEvent, UnknownRun
from durable_flows.models import Due
from durable_flows.rules import clock
from durable_flows.testing import (
    MOST_ROUNDS,
    advance,
    crash_after,
    crash_at,
    drain,
    run_of,
    runs_of,
    send,
)
from tests.promises.staging import again, now, played

pytestmark = pytest.mark.django_db


# -- send and drain --------------------------------------------------------------------------


def test_send_returns_the_public_id_alone():
    assert uuid.UUID(send("go")).version == 7
    assert uuid.UUID(send(Event("go", id="x"))).version == 7


def test_send_validates_as_the_real_one():
    with pytest.raises(InvalidEvent):
        send("go", {"x": {1}})


def test_nothing_happens_before_drain():
    calls: list[int] = []

    @flow("eager", on="go")
    def eager():
        calls.append(1)

    send("go")
    assert calls == []
    assert drain() == 2  # one event routed, one slice executed
    assert calls == [1]
    assert drain() == 0


def test_drain_goes_on_until_nothing_is_left():
    @flow("first", on="go")
    def first(step):
        step.send_event("tell", Event("told"))

    @flow("second", on="told", queue="elsewhere")
    def second(step):
        step.send_event("tell", Event("told.further"))

    heard: list[int] = []

    @flow("third", on="told.further")
    def third():
        heard.append(1)

    send("go")
    drain()
    assert heard == [1]


def test_a_flow_that_sends_its_own_trigger_is_told_apart_from_one_that_is_slow(monkeypatch):
    monkeypatch.setattr("durable_flows.testing.MOST_ROUNDS", 5)

    @flow("endless", on="go")
    def endless(step):
        step.send_event("again", Event("go"))

    send("go")
    with pytest.raises(AssertionError, match="own trigger"):
        drain()
    assert MOST_ROUNDS > 1_000


# -- advance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["1h", 3600, 3600.0, timedelta(hours=1)])
def test_advance_moves_the_clock(by):
    before = now()
    advance(by)
    assert timedelta(hours=1) <= now() - before < timedelta(hours=1, seconds=30)


@pytest.mark.parametrize("by", ["soon", -1, "60", None])
def test_advance_refuses_what_is_no_duration(by):
    with pytest.raises(InvalidDuration, match=r"advance\(\)"):
        advance(by)


def test_advance_plays_what_is_due_before_it_moves():
    @flow("sleeper", on="go")
    def sleeper(step):
        step.sleep("nap", "1h")

    event = send("go")
    advance("1h")  # the nap began before the hour
    assert run_of(event).state == "completed"


def test_advance_stops_at_each_timer():
    seen: list[datetime] = []

    @flow("chimes", on="go")
    def chimes(step):
        for _ in range(24):
            step.sleep("hour", "1h")
        step.run("note", lambda: seen.append(now()))

    begun = now()
    send("go")
    advance("2 days")
    assert timedelta(hours=24) <= seen[0] - begun < timedelta(hours=24, minutes=1)


def test_advancing_by_the_sum_of_sleeps_reaches_the_end_of_the_last_however_long_steps_take():
    @flow("chain", on="go")
    def chain(event, step):
        for _ in range(3):
            step.run("work", lambda: clock.advance(timedelta(minutes=1)))
            step.sleep("a-day", "1 day")

    run = played()
    advance("2 days 23h")
    assert again(run).activity == "waiting"
    advance("1h")
    assert again(run).state == "completed"


def test_advance_stops_at_each_timer_though_a_worker_dies_at_one():
    seen: list[datetime] = []

    @flow("chimes", on="go")
    def chimes(step):
        for _ in range(10):
            step.sleep("hour", "1h")
        step.run("note", lambda: seen.append(now()))

    begun = now()
    send("go")
    with crash_after("hour#2"):
        advance("2 days")
    assert len(seen) == 1
    assert seen[0] - begun < timedelta(hours=10, minutes=1)


def test_advance_stops_at_a_timer_that_falls_due_while_it_finds_nothing_to_do(monkeypatch):
    @flow("first", on="go", queue="a")
    def first(step):
        step.sleep("nap", "1h")
        step.sleep("another", "1h")

    @flow("second", on="go", queue="b")
    def second(step):
        step.sleep("nap", "59m")
        step.sleep("long", "1 day")

    def pass_by(place: str, detail: str) -> None:
        if (place, detail) == ("floor_kept", "b") and second_rests_long():
            clock.advance(timedelta(minutes=1))
            monkeypatch.undo()

    def second_rests_long() -> bool:
        wake_at = run_of(event, "second").wake_at
        return wake_at is not None and wake_at - now() > timedelta(hours=2)

    event = send("go")
    drain()
    monkeypatch.setattr(failpoints, "trap", pass_by)
    advance("3h")
    assert failpoints.trap is None
    assert run_of(event, "first").state == "completed"


def test_advance_stops_at_events_of_the_future():
    seen: list[datetime] = []

    @flow("punctual", on="go")
    def punctual():
        seen.append(now())

    ts = now() + timedelta(hours=1)
    send("go", ts=ts)
    advance("1 day")
    assert ts <= seen[0] < ts + timedelta(minutes=1)


def test_advance_without_play_executes_nothing():
    @flow("sleeper", on="go")
    def sleeper(step):
        step.sleep("nap", "1h")

    run = played()
    advance("2h", play=False)
    assert again(run).activity == "waiting"
    drain()
    assert again(run).state == "completed"


def test_every_test_begins_with_the_clock_at_real_time():
    assert abs(clock.real_seconds_until(now())) < 1
    import time

    assert abs(now().timestamp() - time.time()) < 5


# -- run_of ----------------------------------------------------------------------------------


def test_run_of_shows_a_run():
    @flow("shown", on="go")
    def shown(step):
        step.run("a", lambda: {"n": 1})
        step.sleep("nap", "1h")

    run = played()
    assert (run.flow, run.state, run.activity) == ("shown", "started", "waiting")
    assert (run.result, run.error, run.reason) == (None, None, "")
    assert run.wake_at is not None
    assert run.step("a").output == {"n": 1}
    assert run.step("nap").kind == "sleep"
    with pytest.raises(KeyError, match=r"\['a', 'nap'\], not 'b'"):
        run.step("b")


def test_run_of_takes_the_id_of_a_run():
    @flow("shown")
    def shown():
        return "done"

    run_id = shown.start()
    drain()
    assert run_of(run_id).id == run_id


def test_run_of_an_event_that_started_nothing_says_so():
    event = send("go")
    with pytest.raises(UnknownRun, match=r"0 runs \(none\).*drain\(\)"):
        run_of(event)


def test_run_of_an_event_that_started_several_names_them():
    flow("one", on="go")(lambda: None)
    flow("other", on="go")(lambda: None)
    event = send("go")
    drain()
    with pytest.raises(UnknownRun, match=r"2 runs \(one, other\)"):
        run_of(event)
    assert run_of(event, "other").flow == "other"
    assert [run.flow for run in runs_of(event)] == ["one", "other"]
    with pytest.raises(UnknownRun):
        run_of(event, "third")


def test_run_of_what_is_no_id_says_so():
    with pytest.raises(UnknownRun, match="nonsense"):
        run_of("nonsense")


# -- crash_after -----------------------------------------------------------------------------


@pytest.mark.parametrize(("recorded", "times_called"), [(True, 1), (False, 2)])
def test_a_crash_after_a_step(recorded, times_called):
    calls: list[int] = []

    @flow("crashes", on="go")
    def crashes(step):
        step.run("charge", lambda: calls.append(1))
        return "done"

    with crash_after("charge", recorded=recorded) as crash:
        run = played()
        assert crash.happened
        assert again(run).state == "started"
        assert len(again(run).steps) == (1 if recorded else 0)
        assert len(calls) == 1
        drain()
    assert again(run).result == "done"
    assert len(calls) == times_called
    assert again(run).step_keys == ["charge"]


def test_a_crash_at_one_step_is_not_a_crash_at_another():
    @flow("crashes", on="go")
    def crashes(step):
        step.run("charge", lambda: None)

    with crash_after("ship") as crash:
        assert played().state == "completed"
    assert not crash.happened


def test_a_crash_happens_as_often_as_asked():
    calls: list[int] = []

    @flow("crashes", on="go")
    def crashes(step):
        step.run("charge", lambda: calls.append(1))

    with crash_after("charge", recorded=False, times=3):
        run = played()
        for _ in range(3):
            assert again(run).state == "started"
            drain()
    assert again(run).state == "completed"
    assert len(calls) == 4


def test_after_the_block_nobody_dies_any_more():
    @flow("crashes", on="go")
    def crashes(step):
        step.run("charge", lambda: None)

    with crash_after("charge", times=100):
        pass
    assert played().state == "completed"


def test_a_worker_that_dies_leaves_the_runs_that_it_had_not_begun_to_the_next():
    @flow("crashes", on="go")
    def crashes(step):
        step.run("charge", lambda: None)

    events = [send("go") for _ in range(3)]
    with crash_after("charge"):
        drain()
    drain()
    assert [run_of(event).state for event in events] == ["completed"] * 3
    assert not Due.objects.exists()


def test_a_worker_that_dies_before_it_noted_the_end_leaves_the_run_to_the_next():
    calls: list[int] = []

    @flow("crashes", on="go")
    def crashes(step):
        step.run("charge", lambda: calls.append(1))
        return "done"

    with crash_at("before_end") as crash:
        run = played()
    assert crash.happened
    assert again(run).state == "started"
    drain()
    assert again(run).result == "done"
    assert calls == [1]
