"""rerun, and starting a run only once: two commands that answer with the id of a run to come."""

from __future__ import annotations

import uuid

import pytest
from django.db import transaction

from durable_flows import CancelOn, InvalidEvent, NonRetriableError, cancel, flow, rerun, send
from durable_flows.errors import UnknownRun
from durable_flows.models import Event as StoredEvent
from durable_flows.models import EventKey, Run
from durable_flows.rules import events
from durable_flows.testing import advance, crash_at, drain, run_of, runs_of
from tests.promises.staging import again, forget, played, rolled_back, stored

pytestmark = pytest.mark.django_db


@pytest.fixture
def count():
    """A flow whose result counts its executions."""
    calls: list[int] = []

    @flow("count", on="go", cancel_on=CancelOn("stop", match="data.n"))
    def count(event, step):
        step.run("call", lambda: calls.append(1))
        step.sleep("rest", "1h")
        return [event.data["n"], len(calls)]

    return count


# -- start with a key ------------------------------------------------------------------------


def test_of_starts_with_one_key_only_the_first_starts_a_run(count):
    first = count.start({"n": 1}, key="k")
    assert count.start({"n": 2}, key="k") == first
    advance("1h")
    assert count.start({"n": 3}, key="k") == first  # also when it has long ended
    advance("1h")
    assert Run.objects.count() == 1
    assert run_of(first).result == [1, 1]
    assert stored() == [events.START, events.ENDED]


def test_other_keys_other_flows_and_no_key_start_others(count):
    other = flow("other")(lambda: None)
    ids = [count.start({"n": n}, key=key) for n, key in enumerate(["k", "l", None, None])]
    ids.append(other.start(key="k"))
    assert len(set(ids)) == 5
    advance("1h")
    assert Run.objects.filter(state="completed").count() == 5


def test_a_key_is_not_the_id_of_an_event_of_the_same_text(count):
    send("go", {"n": 1}, id="k")
    count.start({"n": 2}, key="k")
    drain()
    assert Run.objects.count() == 2


def test_the_handler_finds_the_key_as_the_id_of_its_event():
    seen: list[str] = []
    echo = flow("echo")(lambda event: seen.append(event.id))
    echo.start(key="order 7")
    drain()
    assert seen == ["order 7"]


@pytest.mark.django_db(transaction=True)
def test_a_rollback_gives_the_key_back(count):
    with rolled_back():
        gone = count.start({"n": 1}, key="k")
    assert not EventKey.objects.exists()
    run_id = count.start({"n": 2}, key="k")
    drain()
    assert run_id != gone
    assert run_of(run_id).activity == "waiting"


@pytest.mark.parametrize("key", ["", "x" * 256, 7, "a\0b", b"k"])
def test_a_key_that_is_none_is_refused(count, key):
    with pytest.raises(InvalidEvent, match="/key"):
        count.start({"n": 1}, key=key)
    assert stored() == []


def test_a_key_may_be_255_characters_long(count):
    assert count.start({"n": 1}, key="x" * 255) == count.start({"n": 1}, key="x" * 255)


# -- rerun -----------------------------------------------------------------------------------


def test_a_rerun_is_a_new_run_with_the_same_event_and_the_old_one_stays(count):
    first = played("go", {"n": 1})
    advance("1h")
    second = rerun(first.id)
    assert second != first.id
    assert not Run.objects.filter(pk=second).exists()
    advance("1h")
    assert again(first).result == [1, 1]
    assert run_of(second).result == [1, 2]
    assert [run_of(second).origin, again(first).origin] == [first.id, ""]


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "started"])
def test_a_run_in_any_state_can_be_done_again(state):
    @flow("ends", on="go", retries=0)
    def ends(event, step):
        if state == "started" or state == "cancelled":
            step.sleep("rest", "1h")
        if state == "failed":
            raise NonRetriableError("no")

    run = played()
    if state == "cancelled":
        cancel(run.id)
        drain()
    assert again(run).state == state
    second = rerun(run.id)
    drain()
    assert again(run).state == state
    assert run_of(second).state == ("started" if state == "cancelled" else state)


def test_a_run_can_be_done_again_and_again(count):
    first = played("go", {"n": 1})
    second, third = rerun(first.id), rerun(uuid.UUID(first.id))
    drain()
    fourth = rerun(second)
    drain()
    assert len({first.id, second, third, fourth}) == 4
    assert run_of(fourth).origin == second
    advance("1h")
    assert Run.objects.filter(state="completed").count() == 4


def test_a_run_that_was_started_directly_can_be_done_again(count):
    first = count.start({"n": 5}, key="k")
    drain()
    second = rerun(first)
    advance("1h")
    assert run_of(second).result == [5, 2]
    assert count.start(key="k") == first


def test_the_runs_of_an_event_are_listed_the_oldest_first(count):
    first = played("go", {"n": 1})
    event_id = str(Run.objects.get().event_id)
    second = rerun(first.id)
    drain()
    assert [run.id for run in runs_of(event_id)] == [first.id, second]
    with pytest.raises(UnknownRun, match=r"started 2 runs .* give the id of a run"):
        run_of(event_id)


def test_rules_of_cancel_on_hold_for_what_is_newer_than_the_rerun(count):
    first = played("go", {"n": 1})
    advance("1h")
    send("stop", {"n": 1})
    second = rerun(first.id)
    drain()
    assert run_of(second).state == "started"
    send("stop", {"n": 2})
    send("stop", {"n": 1})
    drain()
    assert run_of(second).state == "cancelled"


def test_what_follows_a_rerun_in_the_same_batch_cancels_it(count):
    first = played("go", {"n": 1})
    advance("1h")
    second = rerun(first.id)
    send("stop", {"n": 1})
    drain()
    assert run_of(second).state == "cancelled"


def test_a_rerun_can_be_cancelled_in_the_transaction_that_asks_for_it(count):
    first = played("go", {"n": 1})
    with transaction.atomic():
        second = rerun(first.id)
        cancel(second)
    drain()
    assert run_of(second).state == "cancelled"
    assert again(first).state == "started"


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_a_rerun(count):
    first = played("go", {"n": 1})
    with rolled_back():
        second = rerun(first.id)
    drain()
    with pytest.raises(UnknownRun):
        run_of(second)


@pytest.mark.parametrize(
    "place", ["events_numbered", "runs_admitted", "between_routing_transactions", "command_obeyed"]
)
def test_a_router_that_dies_starts_it_once(count, place):
    first = played("go", {"n": 1})
    second = rerun(first.id)
    with crash_at(place) as crash:
        drain()
    assert crash.happened
    advance("1h")
    assert Run.objects.count() == 2
    assert run_of(second).state == "completed"


def test_a_rerun_of_a_flow_that_nobody_knows_is_parked(count):
    first = played("go", {"n": 1})
    forget(count)
    second = rerun(first.id)
    drain()
    assert run_of(second).activity == "parked"


def test_a_run_that_is_not_there_cannot_be_done_again(count):
    with pytest.raises(UnknownRun, match="purged"):
        rerun(uuid.uuid4())
    with pytest.raises(UnknownRun, match="UUID"):
        rerun("nonsense")
    with pytest.raises(UnknownRun, match="started in this transaction"):
        rerun(count.start({"n": 1}))


def test_a_rerun_of_a_run_that_was_purged_meanwhile_is_refused_on_its_row(count):
    first = played("go", {"n": 1})
    rerun(first.id)
    Run.objects.filter(pk=first.id).delete()
    drain()
    assert "no longer kept" in StoredEvent.objects.get(name=events.RERUN).error
    assert not Run.objects.exists()
