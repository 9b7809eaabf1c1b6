"""Steps that send events: they and the record of the step are one transaction."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from durable_flows import Event, StepError, flow, send
from durable_flows.engine import sql
from durable_flows.models import Event as StoredEvent
from durable_flows.testing import Crash, advance, crash_after, crash_at, drain
from tests.promises.staging import again, listener, played, row

pytestmark = pytest.mark.django_db


def sender(*batch: Any) -> list[Any]:
    """A flow that sends these and sleeps; the list holds what the step returned."""
    seen: list[Any] = []

    @flow("sender", on="go")
    def handler(step):
        seen.append(step.send_event("tell", *batch))
        step.sleep("night", "12h")
        return "sent"

    return seen


def sent() -> list[StoredEvent]:
    return list(StoredEvent.objects.filter(name="told").order_by("arrival"))


def test_an_event_is_sent_once_however_often_the_run_is_replayed():
    seen = sender(Event("told", {"n": 1}))
    started = listener("told")
    run = played()
    advance("12h")
    assert again(run).result == "sent"
    assert started == [str(sent()[0].pk)]
    assert seen == [started, started]


def test_a_list_is_sent_and_answered_in_its_order():
    seen = sender([Event("told", {"n": n}) for n in range(3)])
    run = played()
    assert [event.data for event in sent()] == ['{"n":0}', '{"n":1}', '{"n":2}']
    assert seen == [[str(event.pk) for event in sent()]]
    assert [uuid.UUID(event_id).version for event_id in seen[0]] == [7, 7, 7]
    assert run.step("tell").output == seen[0]


def test_an_empty_list_is_a_step_that_sends_nothing():
    seen = sender([])
    assert played().step_keys == ["tell", "night"]
    assert seen == [[]]


def test_the_senders_id_dedupes_here_too():
    (first,) = send("told", id="x")
    seen = sender(Event("told", id="x"))
    played()
    assert seen == [[first]]
    assert len(sent()) == 1


def test_a_sent_event_knows_the_run_that_sent_it_and_its_depth():
    @flow("first", on="go")
    def first(step):
        step.send_event("tell", Event("told"))

    @flow("second", on="told")
    def second(step):
        step.send_event("tell", Event("told.further"))

    run = played()
    (told,) = sent()
    further = StoredEvent.objects.get(name="told.further")
    assert (str(told.sender), told.depth) == (run.id, 1)
    assert (str(further.sender), further.depth) == (str(told.runs.get().pk), 2)


@pytest.mark.parametrize(
    "place", ["step_ran", "step_recorded", "before_suspend", "before_end"], ids=str
)
@pytest.mark.parametrize("transactional", [True, False])
def test_it_is_sent_exactly_once_wherever_the_worker_dies(request, place, transactional):
    if transactional:
        request.getfixturevalue("transactional_db")
    started = listener("told")
    seen = sender(Event("told", {"n": 1}))
    with crash_at(place) as crash:
        run = played()
        advance("13h")
    assert crash.happened
    assert again(run).result == "sent"
    assert [str(event.pk) for event in sent()] == seen[-1]
    assert len(seen[-1]) == 1
    assert set(started) == set(seen[-1])


@pytest.mark.parametrize("transactional", [True, False])
def test_a_worker_that_dies_between_the_events_and_the_record_has_sent_nothing(
    request, transactional
):
    if transactional:
        request.getfixturevalue("transactional_db")
    sender(Event("told"))

    def die(statement: str) -> None:
        if "INSERT INTO durable_flows_step" in statement:
            sql.observers.remove(die)
            raise Crash

    sql.observers.append(die)
    run = played()
    assert die not in sql.observers
    assert sent() == []
    drain()
    assert len(sent()) == 1
    assert again(run).step_keys == ["tell", "night"]


def test_crash_after_means_after_the_commit_for_this_step_too():
    seen = sender(Event("told"))
    with crash_after("tell") as crash:
        run = played()
    assert crash.happened
    assert again(run).step_keys == ["tell"]
    assert len(sent()) == 1
    drain()
    assert len(sent()) == 1
    assert seen == [[str(sent()[0].pk)]]


def test_crash_after_before_the_record_means_that_nothing_was_sent():
    sender(Event("told"))
    with crash_after("tell", recorded=False) as crash:
        run = played()
    assert crash.happened
    assert again(run).steps == ()
    assert sent() == []
    drain()
    assert len(sent()) == 1


def test_an_invalid_event_fails_the_step_without_a_retry_and_nothing_is_sent():
    caught: list[StepError] = []

    @flow("sender", on="go")
    def handler(step):
        try:
            step.send_event("tell", [Event("told"), Event("told", {"x": [{1}]})])
        except StepError as error:
            caught.append(error)
            return step.run("note", lambda: "noted")

    run = played()
    assert run.result == "noted"
    assert sent() == []
    (error,) = caught
    assert (error.step, error.name) == ("tell", "InvalidEvent")
    assert "/1/data/x/0" in error.message
    assert run.step("tell").state == "failed"


def test_an_invalid_event_that_nobody_catches_fails_the_run_and_names_the_step():
    sender(Event("flows/mine"))
    run = played()
    assert run.state == "failed"
    assert run.error["step"] == "tell"
    assert "reserved" in run.error["message"]


@pytest.mark.parametrize("wrong", ["told", {"name": "told"}, [{"name": "told"}], ["told"], 7, None])
def test_anything_but_events_fails_the_run_at_once_and_says_what_is_taken(wrong):
    sender(wrong)
    run = played()
    assert run.state == "failed"
    assert run.attempts == {}
    assert "Event" in run.error["message"]
    assert sent() == []


def test_too_many_events_fail_the_step(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_EVENTS": 2}
    sender([Event("told")] * 3)
    run = played()
    assert run.state == "failed"
    assert run.error["step"] == "tell"
    assert sent() == []


def test_a_failed_send_is_replayed_as_a_failure():
    tries: list[str] = []

    @flow("sender", on="go")
    def handler(step):
        try:
            step.send_event("tell", Event("flows/mine"))
        except StepError as error:
            tries.append(error.message)
        step.sleep("night", "12h")

    played()
    advance("12h")
    assert len(tries) == 2
    assert tries[0] == tries[1]


def test_send_inside_a_step_is_at_least_once_and_the_own_id_makes_it_once():
    @flow("sender", on="go")
    def handler(step):
        step.run("tell", lambda: send("told", id=step.idempotency_key))

    with crash_after("tell", recorded=False):
        run = played()
    drain()
    assert again(run).state == "completed"
    assert len(sent()) == 1
    assert row(str(sent()[0].pk)).key.startswith(run.id)
