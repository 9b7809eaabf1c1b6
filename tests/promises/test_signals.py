"""Signals: for the one step that waits for a name, and kept until one does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from durable_flows import (
    InvalidEvent,
    Signal,
    StepError,
    cancel,
    flow,
    rerun,
    retry,
    send_signal,
    skip,
)
from durable_flows.engine import ring, sql
from durable_flows.engine.execute import drain as drain_queue
from durable_flows.engine.route import route
from durable_flows.errors import InvalidDuration, InvalidOption
from durable_flows.models import Event as StoredEvent
from durable_flows.models import Wait
from durable_flows.registry import registry
from durable_flows.testing import advance, crash_at, drain, run_of, send, sent
from tests.promises.staging import again, now, played, rolled_back

pytestmark = pytest.mark.django_db


def told(found: Signal | None) -> Any:
    return found and found.data.get("n", found.data)


@pytest.fixture
def asks():
    @flow("asks", on="go")
    def asks(event, step):
        name = event.data.get("name", "door")
        return told(step.wait_for_signal("wait", name, timeout="1h"))

    return asks


@pytest.fixture
def twice():
    @flow("twice", on="twice")
    def twice(step):
        first = step.wait_for_signal("wait", "door", timeout="1h")
        return [told(first), told(step.wait_for_signal("wait", "door", timeout="1h"))]

    return twice


@contextmanager
def reading() -> Iterator[list[str]]:
    """The statements that the engine sends meanwhile."""
    texts: list[str] = []
    sql.observers.append(texts.append)
    try:
        yield texts
    finally:
        sql.observers.remove(texts.append)


# -- who gets it -----------------------------------------------------------------------------


def test_a_signal_ends_the_wait_for_its_name(asks):
    run, other = played("go"), played("go", {"name": "window"})
    id = send_signal("door", {"n": 1})
    drain()
    assert again(run).result == 1
    assert again(other).activity == "waiting"
    said = again(run).step("wait").output
    assert (said["public_id"], said["data"]["signal"]) == (id, "door")


def test_what_a_step_gets_says_everything():
    seen: list[Signal] = []

    @flow("asks", on="go")
    def asks(step):
        found = step.wait_for_signal("wait", "door", timeout="1h")
        seen.append(found)

    played("go")
    before = now()
    id = send_signal("door")
    drain()
    assert (seen[0].name, seen[0].data, seen[0].id) == ("door", {}, id)
    assert before <= seen[0].sent_at < before + timedelta(minutes=1)


def test_an_async_flow_waits_for_signals_too():
    @flow("asks", on="go")
    async def asks(step):
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(step.wait_for_signal("one", "one", timeout="1h"))
            two = tasks.create_task(step.wait_for_signal("two", "two", timeout="1h"))
        return [told(one.result()), told(two.result())]

    run = played("go")
    send_signal("two", {"n": 2})
    drain()
    send_signal("one", {"n": 1})
    drain()
    assert again(run).result == [1, 2]


def test_after_the_timeout_there_is_none(asks):
    run = played("go")
    advance("1h")
    assert (again(run).state, again(run).result) == ("completed", None)


def test_a_wait_for_a_signal_can_be_skipped(asks):
    run = played("go")
    skip(run.id, "wait")
    drain()
    assert (again(run).state, again(run).result) == ("completed", None)


def test_signals_are_got_one_by_one_in_the_order_in_which_they_were_sent(twice):
    send_signal("door", {"n": 1})
    send_signal("door", {"n": 2})
    send_signal("door", {"n": 3})
    assert played("twice").result == [1, 2]
    assert played("twice").steps[0].output["data"]["data"] == {"n": 3}


def test_a_signal_that_one_run_has_got_no_other_gets(asks):
    first = played("go")
    send_signal("door", {"n": 1})
    drain()
    second = played("go")
    assert (again(first).result, second.activity) == (1, "waiting")
    advance("1h")
    assert again(second).result is None


def test_of_several_that_come_at_once_the_others_are_kept(asks):
    first = played("go")
    for n in (1, 2):
        send_signal("door", {"n": n})
    drain()
    assert again(first).result == 1
    assert played("go").result == 2


def test_a_signal_that_comes_as_a_race_is_lost_is_there_for_another_run(asks):
    def too_late() -> None:
        send_signal("door", {"n": 1})
        route()

    @flow("races", on="race")
    def races(step):
        step.race(
            step.later.wait_for_signal("wait", "door", timeout="1h"),
            step.later.run("act", too_late),
        )

    played("race")
    assert played("go").result == 1


def test_of_a_signal_and_an_event_that_come_at_once_the_loser_is_there_for_the_next_wait():
    @flow("asks", on="go")
    def asks(step):
        step.race(
            step.later.wait_for_event("event", event="a", timeout="1h"),
            step.later.wait_for_signal("wait", "door", timeout="1h"),
        )
        return told(step.wait_for_signal("again", "door", timeout="1h"))

    run = played("go")
    send("a")
    send_signal("door", {"n": 1})
    drain()
    assert again(run).result == 1


# -- how long it is kept ---------------------------------------------------------------------


def test_a_signal_that_was_sent_first_is_kept(asks):
    send_signal("door", {"n": 1})
    drain()
    advance("23h")
    assert played("go").result == 1


@pytest.mark.parametrize(("expires", "kept"), [("1 day", 1), ("2 days", 2)])
def test_until_it_expires(asks, expires, kept):
    send_signal("door", {"n": 1}, expires=expires)
    advance(timedelta(days=kept, minutes=1))
    run = played("go")
    assert run.activity == "waiting"
    send_signal("door", {"n": 2})
    drain()
    assert again(run).result == 2


def test_very_many_that_have_expired_hide_none_that_has_not(asks):
    with transaction.atomic():
        for _ in range(250):
            send_signal("door", expires="1m")
    drain()
    advance("2m")
    send_signal("door", {"n": 1})
    drain()
    assert played("go").result == 1


def test_those_of_other_names_are_not_read_however_many_came_before_the_first_waiter(asks):
    with transaction.atomic():
        for n in range(300):
            send_signal(f"other {n}")
        send_signal("door", {"n": 1})
    drain()
    with reading() as texts:
        assert played("go").result == 1
    pages = [
        text for text in texts if "AND NOT EXISTS (SELECT 1 FROM durable_flows_wait taken" in text
    ]
    assert [text for text in pages if "e.name = %(name)s" in text] == []
    assert len([text for text in pages if text.startswith("SELECT")]) == 1


def test_who_waited_before_it_expired_gets_it_however_late_it_is_routed(asks):
    run = played("go")
    send_signal("door", {"n": 1}, expires=60)
    advance("2m", play=False)
    drain()
    assert again(run).result == 1


def test_who_began_to_wait_before_it_expired_gets_it_though_its_worker_died(asks):
    send_signal("door", {"n": 1}, expires=600)
    drain()
    with crash_at("wait_registered"):
        run = played("go")
    advance("20m", play=False)
    drain()
    assert again(run).result == 1


def test_who_began_to_wait_when_it_had_expired_does_not_get_it_however_late_it_is_routed():
    @flow("late", on="go")
    def late(step):
        step.sleep("rest", "2m")
        return told(step.wait_for_signal("wait", "door", timeout="1h"))

    run = played("go")
    send_signal("door", {"n": 1}, expires=60)
    advance("2m", play=False)
    drain_queue(ring.default_queue())
    assert again(run).step_keys == ["rest"]
    drain()  # and only now it is routed
    assert again(run).activity == "waiting"


def test_no_signal_is_lost_between_the_wait_and_the_look(asks):
    """It is routed when the wait is committed and its slice has not looked yet."""
    with crash_at("wait_registered"):
        run = played("go")
    send_signal("door", {"n": 1})
    advance("1m")
    assert again(run).result == 1


# -- one waiter a name -----------------------------------------------------------------------


def test_a_name_has_one_waiter_at_a_time(asks):
    first = played("go")
    second = played("go")
    assert (second.state, second.error["name"]) == ("failed", "SignalTaken")
    assert (
        f"signal 'door' is waited for by step 'wait' of run {first.id} (flow 'asks')"
        in second.reason
    )
    send_signal("door", {"n": 1})
    drain()
    assert again(first).result == 1


def test_that_it_is_taken_can_be_caught_and_is_remembered(asks):
    @flow("polite", on="polite")
    def polite(step):
        try:
            step.wait_for_signal("wait", "door", timeout="1h")
        except StepError as error:
            caught = error.name
        step.sleep("rest", "2h")
        return caught

    played("go")
    run = played("polite")
    advance("2h")
    assert again(run).result == "SignalTaken"


def test_the_same_run_is_another_waiter_too():
    @flow("asks", on="go")
    def asks(step):
        step.parallel(
            step.later.wait_for_signal("one", "door", timeout="1h"),
            step.later.wait_for_signal("two", "door", timeout="1h"),
        )

    run = played("go")
    send_signal("door")
    drain()
    assert again(run).error["name"] == "SignalTaken"


@pytest.mark.parametrize("end", ["signal", "timeout", "cancel"])
def test_the_name_is_free_once_its_waiter_has_ended(asks, end):
    first = played("go")
    if end == "signal":
        send_signal("door")
    elif end == "cancel":
        cancel(first.id)
    drain()
    advance("1h")
    assert again(first).state == ("cancelled" if end == "cancel" else "completed")
    second = played("go")
    assert second.activity == "waiting"
    assert Wait.objects.filter(settled_at=None).count() == 1


@pytest.fixture
def gone(asks):
    """Lets a run that waits for the door be parked, its flow gone, when its time is over."""

    def park(run: Any) -> None:
        registry.remove(asks)
        advance("2h")
        assert again(run).activity == "parked"

    return park


@pytest.fixture
def later():
    @flow("later", on="later")
    def later(event, step):
        step.sleep("rest", event.data.get("rest", 0))
        return told(step.wait_for_signal("wait", "door", timeout="9h"))

    return later


def test_who_is_parked_keeps_the_name_no_longer_than_its_time(asks, later, gone):
    run = played("go")
    gone(run)
    other = played("later")
    assert other.activity == "waiting"
    assert Wait.objects.get(run_id=run.id).outcome == "timeout"
    send_signal("door", {"n": 1})
    drain()
    assert again(other).result == 1
    registry.add(asks)
    advance("1h")
    assert (again(run).state, again(run).result) == ("completed", None)


def test_before_that_a_parked_run_keeps_it(asks, later):
    played("go")
    registry.remove(asks)
    assert played("later").error["name"] == "SignalTaken"


def test_a_signal_that_came_in_time_is_for_who_is_parked(asks, later, gone):
    """It was routed before the wait was there, and the run was gone before it looked."""
    send_signal("door", {"n": 1})
    with crash_at("wait_registered"):
        run = played("go")
    gone(run)
    other = played("later")
    assert other.activity == "waiting"
    registry.add(asks)
    advance("1h")
    assert again(run).result == 1
    assert again(other).activity == "waiting"


def test_one_that_came_in_time_and_is_to_be_routed_yet_is_too(asks, later, gone):
    run = played("go")
    other = played("later", {"rest": "2h"})
    registry.remove(asks)
    advance("30m", play=False)
    send_signal("door", {"n": 1})
    advance("2h", play=False)
    drain_queue(ring.default_queue())
    assert again(run).activity == "parked"
    assert again(other).activity == "waiting"
    assert Wait.objects.filter(settled_at=None).get().run_id == uuid.UUID(run.id)
    advance("2s")
    assert Wait.objects.filter(settled_at=None).get().run_id == uuid.UUID(other.id)
    registry.add(asks)
    advance("1h")
    assert again(run).result == 1
    assert again(other).activity == "waiting"


@pytest.mark.parametrize("place", ["before_timeout", "before_settle_commit", "wait_settled"])
def test_who_ends_the_wait_of_another_may_die_at_it(asks, later, gone, place):
    run = played("go")
    gone(run)
    with crash_at(place) as crash:
        other = played("later")
    assert crash.happened
    advance("1m")
    assert again(other).activity == "waiting"
    assert Wait.objects.filter(settled_at=None).get().run_id == uuid.UUID(other.id)


def test_the_time_of_another_wait_of_the_same_run_may_be_over(asks):
    @flow("both", on="both")
    async def both(step):
        async def second() -> Any:
            await step.sleep("rest", "1h")
            return told(await step.wait_for_signal("two", "door", timeout="1h"))

        async with asyncio.TaskGroup() as tasks:
            two = tasks.create_task(second())
            one = tasks.create_task(step.wait_for_signal("one", "door", timeout="1h"))
        return [told(one.result()), two.result()]

    run = played("both")
    advance("1h")
    send_signal("door", {"n": 2})
    drain()
    assert again(run).result == [None, 2]


def test_whose_name_was_taken_can_be_retried(asks):
    first, second = played("go"), played("go")
    send_signal("door", {"n": 1})
    drain()
    retry(second.id)
    drain()
    send_signal("door", {"n": 2})
    drain()
    assert [again(first).result, again(second).result] == [1, 2]


def test_a_slice_that_goes_on_after_a_crash_is_the_waiter_that_it_was(asks):
    with crash_at("looked_back"):
        run = played("go")
    advance("1m")
    assert again(run).activity == "waiting"


def test_a_rerun_takes_over_a_signal_that_it_had_got(twice):
    send_signal("door", {"n": 1})
    run = played("twice")
    send_signal("door", {"n": 2})
    drain()
    second = rerun(run.id, from_step="wait#2")
    drain()
    send_signal("door", {"n": 3})
    drain()
    assert again(run).result == [1, 2]
    assert Wait.objects.filter(run_id=second, event__isnull=False).exists()


# -- sending ---------------------------------------------------------------------------------


def test_a_rollback_takes_it_back(asks):
    run = played("go")
    with rolled_back():
        send_signal("door")
    drain()
    assert again(run).activity == "waiting"


def test_a_signal_of_the_same_id_is_sent_once(twice):
    first = send_signal("door", {"n": 1}, id="a")
    assert send_signal("door", {"n": 2}, id="a") == first
    assert send_signal("window", {"n": 3}, id="a") != first
    run = played("twice")
    assert run.steps[0].output["data"]["data"] == {"n": 1}
    assert run.activity == "waiting"


def test_its_id_is_not_that_of_a_start_with_the_same_key():
    @flow("door", on="never")
    def door():
        return "opened"

    id = send_signal("door", id="a")
    run_id = door.start(key="a")
    drain()
    assert StoredEvent.objects.get(pk=id).name == "flows/signal.sent"
    assert run_of(run_id).result == "opened"


def test_it_starts_no_flow_and_is_seen_among_the_events(asks):
    id = send_signal("door", {"n": 1})
    drain()
    assert [event.public_id for event in sent("flows/signal.sent")] == [id]
    assert StoredEvent.objects.get(pk=id).routed_at is not None


@pytest.mark.parametrize("name", ["", " \n", 1, None, "x" * 201])
def test_names_that_are_none(name):
    with pytest.raises(InvalidOption, match="a signal's name is text of 1 to 200"):
        send_signal(name)


def test_a_name_that_is_none_in_a_flow():
    @flow("asks", on="go", retries=0)
    def asks(step):
        step.wait_for_signal("wait", "", timeout="1h")

    assert "step.wait_for_signal('wait'): a signal's name" in played("go").reason


@pytest.mark.parametrize("expires", ["soon", -1, "400 days", None])
def test_expiries_that_are_none(expires):
    with pytest.raises(InvalidDuration, match=r"send_signal\('door'\), expires="):
        send_signal("door", expires=expires)
    assert not StoredEvent.objects.exists()


@pytest.mark.parametrize("data", [{"x": {1}}, [1], "text"])
def test_data_that_cannot_be_stored(data):
    with pytest.raises(InvalidEvent) as caught:
        send_signal("door", data)
    assert caught.value.pointer.startswith("/data")
    assert "/data/data" not in str(caught.value)
    assert not StoredEvent.objects.exists()
