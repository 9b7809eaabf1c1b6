"""start, cancel and retry: they ask, in the caller's transaction, and the router carries them out."""

from __future__ import annotations

import uuid

import pytest
from django.db import transaction

from durable_flows import Event, InvalidEvent, NonRetriableError, cancel, flow, retry, send
from durable_flows.engine import route
from durable_flows.errors import IllegalTransition, InvalidInput, UnknownRun
from durable_flows.models import Event as StoredEvent
from durable_flows.models import Run
from durable_flows.rules import events, names
from durable_flows.testing import advance, drain, run_of
from tests.promises.staging import again, played, rolled_back, stored

pytestmark = pytest.mark.django_db


@pytest.fixture
def sleeper():
    @flow("sleeper", on="go")
    def sleeper(event, step):
        step.sleep("long", "1 day")
        return event.data

    return sleeper


@pytest.fixture
def failing():
    """Fails until it is told that the world is mended."""
    world = {"mended": False, "calls": 0}

    @flow("failing", on="go", retries=0)
    def failing(step):
        first = step.run("first", lambda: world.update(calls=world["calls"] + 1))
        return [first, step.run("charge", charge)]

    def charge():
        if not world["mended"]:
            raise ConnectionError("refused")
        return "charged"

    return world


# -- start -----------------------------------------------------------------------------------


def test_start_returns_the_id_of_the_run_to_come(sleeper):
    run_id = sleeper.start({"n": 1})
    assert not Run.objects.exists()
    drain()
    assert run_of(run_id).activity == "waiting"
    advance("1 day")
    assert run_of(run_id).result == {"n": 1}


def test_a_started_handler_finds_data_and_user_in_its_event():
    seen: list[Event] = []

    @flow("reader")
    def reader(event):
        seen.append(event)

    reader.start({"n": 1}, user={"id": 7})
    drain()
    assert (seen[0].data, seen[0].user) == ({"n": 1}, {"id": 7})


def test_start_without_data_gives_an_empty_object(sleeper):
    run_id = sleeper.start()
    advance("1 day")
    assert run_of(run_id).result == {}


def test_each_start_is_a_run_of_its_own(sleeper):
    assert len({sleeper.start({"n": 1}) for _ in range(3)}) == 3
    drain()
    assert Run.objects.count() == 3


@pytest.mark.parametrize("data", [{"n": {1}}, [], "x"])
def test_start_refuses_what_cannot_be_stored(sleeper, data):
    with pytest.raises(InvalidEvent, match="/data"):
        sleeper.start(data)
    assert stored() == []


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_a_start(sleeper):
    with rolled_back():
        run_id = sleeper.start()
    drain()
    with pytest.raises(UnknownRun):
        run_of(run_id)


# -- cancel ----------------------------------------------------------------------------------


def test_a_waiting_run_is_cancelled(sleeper):
    run = played()
    assert cancel(run.id, reason="not needed") == run.id
    drain()
    assert again(run).state == "cancelled"
    assert again(run).reason == "not needed"
    advance("2 days")
    assert again(run).state == "cancelled"
    assert again(run).result is None


def test_cancel_takes_a_uuid_as_well(sleeper):
    run = played()
    cancel(uuid.UUID(run.id))
    drain()
    assert again(run).state == "cancelled"


def test_a_cancellation_without_a_reason_names_the_command(sleeper):
    run = played()
    cancel(run.id)
    drain()
    assert str(StoredEvent.objects.get(name=events.CANCEL).pk) in again(run).reason


def test_a_run_that_was_not_executed_yet_is_cancelled_and_never_executes():
    calls: list[int] = []

    @flow("eager", on="go")
    def eager():
        calls.append(1)

    (event_id,) = send("go")
    route.route()
    cancel(run_of(event_id).id)
    drain()
    assert run_of(event_id).state == "cancelled"
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_start_and_cancel_in_one_transaction_is_a_cancelled_run(sleeper):
    with transaction.atomic():
        run_id = sleeper.start()
        cancel(run_id, reason="changed my mind")
    drain()
    assert run_of(run_id).state == "cancelled"
    assert run_of(run_id).reason == "changed my mind"
    assert run_of(run_id).steps == ()


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_a_cancel(sleeper):
    run = played()
    with rolled_back():
        cancel(run.id)
    drain()
    assert again(run).activity == "waiting"


def test_cancelling_a_run_that_has_ended_changes_nothing(sleeper):
    run = played()
    advance("1 day")
    columns = [field.attname for field in Run._meta.concrete_fields]
    before = Run.objects.values(*columns).get()
    cancel(run.id, reason="too late")
    drain()
    assert Run.objects.values(*columns).get() == before
    assert again(run).state == "completed"


def test_cancelling_twice_keeps_the_first_reason(sleeper):
    run = played()
    cancel(run.id, reason="first")
    cancel(run.id, reason="second")
    drain()
    assert again(run).reason == "first"


@pytest.mark.parametrize("run_id", ["", "nonsense", None, 7])
def test_cancelling_what_is_no_run_id_is_an_error_at_the_call(run_id):
    with pytest.raises(UnknownRun, match="UUID"):
        cancel(run_id)
    assert stored() == []


@pytest.mark.parametrize("reason", [7, ["a"], {"a": 1}])
def test_a_reason_that_is_no_text_is_an_error_at_the_call(sleeper, reason):
    run = played()
    with pytest.raises((TypeError, InvalidInput)):
        cancel(run.id, reason=reason)


def test_a_reason_that_cannot_be_stored_is_an_error_at_the_call(sleeper):
    run = played()
    with pytest.raises(InvalidEvent, match="NUL"):
        cancel(run.id, reason="a\0b")


# -- retry -----------------------------------------------------------------------------------


def test_a_failed_run_goes_on_from_the_step_that_failed(failing):
    run = played()
    assert run.state == "failed"
    failing["mended"] = True
    assert retry(run.id) == run.id
    drain()
    assert again(run).state == "completed"
    assert again(run).result == [None, "charged"]
    assert again(run).step_keys == ["first", "charge"]
    assert failing["calls"] == 1


def test_a_retry_forgets_the_error_and_counts_a_generation(failing):
    run = played()
    assert run.error["step"] == "charge"
    retry(run.id)
    failing["mended"] = True
    drain()
    kept = Run.objects.get()
    assert (kept.error, kept.reason, kept.generation) == (None, "", 1)


def test_a_retried_run_that_fails_again_can_be_retried_again(failing):
    run = played()
    retry(run.id)
    drain()
    assert again(run).state == "failed"
    failing["mended"] = True
    retry(run.id)
    drain()
    assert again(run).state == "completed"


def test_a_retry_has_all_attempts_again_and_the_old_ones_stay_visible():
    calls: list[int] = []

    @flow("failing", on="go", retries=1)
    def failing(step):
        step.run("charge", charge)

    def charge():
        calls.append(1)
        raise ConnectionError("refused")

    run = played()
    advance("1h")
    assert (again(run).state, len(calls)) == ("failed", 2)
    retry(run.id)
    advance("1h")
    assert (again(run).state, len(calls)) == ("failed", 4)
    assert again(run).attempts == {"charge": 2}


def test_code_between_steps_is_retried_as_well():
    world = {"mended": False}

    @flow("failing", on="go", retries=0)
    def failing(step):
        step.run("first", lambda: None)
        if not world["mended"]:
            raise NonRetriableError("broken")
        return "done"

    run = played()
    assert run.state == "failed"
    world["mended"] = True
    retry(run.id)
    drain()
    assert again(run).result == "done"


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_a_retry(failing):
    run = played()
    failing["mended"] = True
    with rolled_back():
        retry(run.id)
    drain()
    assert again(run).state == "failed"


def test_only_a_failed_run_can_be_retried(sleeper):
    run = played()
    with pytest.raises(IllegalTransition, match="only a failed run"):
        retry(run.id)
    advance("1 day")
    with pytest.raises(IllegalTransition, match="completed"):
        retry(run.id)
    assert events.RETRY not in stored()


def test_a_cancelled_run_cannot_be_retried(sleeper):
    run = played()
    cancel(run.id)
    drain()
    with pytest.raises(IllegalTransition, match="cancelled"):
        retry(run.id)


def test_retrying_a_run_that_is_not_there_is_an_error_at_the_call():
    with pytest.raises(UnknownRun, match="purged"):
        retry(uuid.uuid4())
    with pytest.raises(UnknownRun, match="UUID"):
        retry("nonsense")


def test_a_refused_command_says_why_on_its_row(failing):
    run = played()
    failing["mended"] = True
    retry(run.id)
    retry(run.id)  # the first is not carried out yet: nobody can tell here
    drain()
    first, second = StoredEvent.objects.filter(name=events.RETRY).order_by("arrival")
    assert first.error == ""
    assert "cannot become queued" in second.error
    assert second.routed_at is not None
    assert again(run).state == "completed"


def test_a_retry_and_a_cancel_are_carried_out_in_their_order(failing):
    run = played()
    retry(run.id)
    cancel(run.id, reason="never mind")
    drain()
    assert (again(run).state, again(run).reason) == ("cancelled", "never mind")


def test_commands_start_no_flow_that_happens_to_listen():
    assert events.CANCEL.startswith(names.RESERVED)
    assert events.RETRY.startswith(names.RESERVED)
    assert events.START.startswith(names.RESERVED)
