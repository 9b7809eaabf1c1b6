"""A sender's own id: the second event of a name and an id never happened."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from durable_flows import CancelOn, Event, flow, send
from durable_flows.engine import sql
from durable_flows.testing import Crash, advance, drain, run_of
from tests.promises.staging import listener, now, played, rolled_back, row, stored

pytestmark = pytest.mark.django_db


def test_a_duplicate_stores_nothing_and_returns_the_first_ones_public_id():
    (first,) = send("order/placed", {"n": 1}, id="o1")
    (second,) = send("order/placed", {"n": 2}, id="o1")
    assert second == first
    assert stored() == ["order/placed"]
    assert row(first).data == '{"n":1}'


def test_a_duplicate_starts_nothing():
    started = listener("order/placed")
    first = send("order/placed", id="o1")
    drain()
    send("order/placed", id="o1")
    drain()
    assert started == first


def test_a_duplicate_resumes_nothing():
    @flow("waiter", on="go")
    def waiter(step):
        found = step.wait_for_event("reply", event="replied", timeout="1h")
        return None if found is None else found.id

    send("replied", id="r1")
    drain()
    run = played("go")
    send("replied", id="r1")
    drain()
    assert run_of(run.id).activity == "waiting"
    send("replied", id="r2")
    drain()
    assert run_of(run.id).result == "r2"


def test_a_duplicate_cancels_nothing():
    @flow("sleeper", on="go", cancel_on=CancelOn("stop"))
    def sleeper(step):
        step.sleep("long", "1 day")

    send("stop", id="s1")
    drain()
    run = played("go")
    send("stop", id="s1")
    drain()
    assert run_of(run.id).activity == "waiting"


def test_ids_are_unique_for_each_name():
    first, second = send([Event("order/placed", id="o1"), Event("order/paid", id="o1")])
    assert first != second
    assert stored() == ["order/placed", "order/paid"]


def test_ids_are_compared_to_the_letter():
    assert len({*send("a", id="O1"), *send("a", id="o1"), *send("a", id="o1 ")}) == 3


def test_name_and_id_do_not_run_together():
    assert len(set(send([Event("ab", id="c"), Event("a", id="bc")]))) == 2


def test_events_without_an_id_are_never_duplicates():
    assert len(set(send([Event("a"), Event("a")]))) == 2
    assert stored() == ["a", "a"]


def test_duplicates_within_a_list_are_one_event():
    ids = send([Event("a", {"n": 1}, id="x"), Event("a", id="y"), Event("a", {"n": 2}, id="x")])
    assert ids[0] == ids[2] != ids[1]
    assert stored() == ["a", "a"]
    assert row(ids[0]).data == '{"n":1}'


def test_a_list_of_new_and_known_events_stores_the_new_ones():
    (known,) = send("a", id="x")
    ids = send([Event("a", id="y"), Event("a", id="x"), Event("a")])
    assert ids[1] == known
    assert len(set(ids)) == 3
    assert stored() == ["a", "a", "a"]


def test_an_id_is_taken_for_as_long_as_its_event_is_kept():
    (first,) = send("a", id="x")
    drain()
    advance("30 days")
    assert send("a", id="x") == [first]


@pytest.mark.django_db(transaction=True)
def test_after_a_rollback_the_id_is_free_again():
    started = listener("a")
    with rolled_back():
        send("a", {"n": 1}, id="x")
    (event_id,) = send("a", {"n": 2}, id="x")
    drain()
    assert started == [event_id]
    assert row(event_id).data == '{"n":2}'


@pytest.mark.django_db(transaction=True)
def test_after_a_sender_died_before_its_event_was_stored_the_id_is_free():
    def die(statement: str) -> None:
        if statement.startswith("INSERT INTO durable_flows_event "):
            sql.observers.remove(die)
            raise Crash

    sql.observers.append(die)
    with pytest.raises(Crash):
        send("a", id="x")
    started = listener("a")
    (event_id,) = send("a", id="x")
    drain()
    assert started == [event_id]


@pytest.mark.django_db(transaction=True)
def test_after_a_savepoint_was_rolled_back_the_id_is_free_again():
    with transaction.atomic():
        with rolled_back():
            (undone,) = send("a", id="x")
        (kept,) = send("a", id="x")
    assert kept != undone
    assert stored() == ["a"]


@pytest.mark.django_db(transaction=True)
def test_a_refused_list_takes_no_ids():
    with pytest.raises(ValueError, match="/1/data"):
        send([Event("a", id="x"), Event("b", {"n": {1}})])
    send("a", id="x")
    assert stored() == ["a"]


def test_a_handler_sees_the_senders_id_and_the_public_one():
    seen: list[Event] = []

    @flow("reader", on="a")
    def reader(event):
        seen.append(event)

    (event_id,) = send("a", id="x")
    drain()
    assert (seen[0].id, seen[0].public_id) == ("x", event_id)


def test_a_duplicate_of_an_event_that_is_not_delivered_yet_returns_its_id():
    (first,) = send("a", id="x", ts=now() + timedelta(hours=1))
    assert send("a", id="x") == [first]
    started = listener("a")
    drain()
    assert started == []
    advance("2h")
    assert started == [first]
