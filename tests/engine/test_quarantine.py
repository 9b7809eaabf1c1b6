"""Events whose routing fails, or kills its router: they are set aside, and all others go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError

from durable_flows import On, Step, flow
from durable_flows.engine import commands, failpoints, quarantine, sql
from durable_flows.engine.route import route
from durable_flows.engine.turns import Turns
from durable_flows.models import Event as Stored
from durable_flows.rules import clock, events, expressions
from durable_flows.testing import Crash, advance, crash_at, drain, run_of, runs_of, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def quick() -> list[int]:
    """A flow on a/b; the list grows by the number in each event that starts it."""
    seen: list[int] = []
    flow("quick", on="a/b")(lambda event: seen.append(event.data["n"]))
    return seen


@pytest.fixture
def asking() -> str:
    """A run that waits for a/replied, so that the router reads the data of such events."""

    @flow("asking", on="a/asked")
    def asking(step: Step) -> bool:
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    asked = send("a/asked")
    drain()
    return asked


def spoilt_event(event_id: str) -> str:
    """Nobody can read its data: routing it raises in the first transaction."""
    Stored.objects.filter(pk=event_id).update(data="{")
    return event_id


def spoilt_command() -> str:
    """Nobody can read its data: carrying it out raises in the second transaction."""
    commands.cancel("0198c1f2-0000-8000-8000-000000000000")
    command = Stored.objects.get(name=events.CANCEL)
    Stored.objects.filter(pk=command.pk).update(data="{")
    return str(command.pk)


def row(event_id: str) -> Stored:
    return Stored.objects.get(pk=event_id)


@contextmanager
def deadly(event_id: str) -> Iterator[list[int]]:
    """The router dies whenever it has this event in hand. Yields its attempts at each death."""
    deaths = [0]

    def trap(place: str, detail: str) -> None:
        if place == "between_routing_transactions" and row(event_id).attempts > deaths[-1]:
            deaths.append(row(event_id).attempts)
            raise Crash("killed")

    failpoints.trap = trap
    try:
        yield deaths
    finally:
        failpoints.trap = None


@pytest.mark.parametrize("place", [0, 1, 5, 10])
def test_an_event_that_cannot_be_routed_is_set_aside_and_the_others_go_on_in_order(
    place: int, quick: list[int], asking: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(place):
        send("a/b", {"n": number})
    poison = spoilt_event(send("a/replied"))
    for number in range(place, 10):
        send("a/b", {"n": number})
    drain()
    assert quick == list(range(10))
    spoilt = row(poison)
    assert spoilt.quarantined
    assert spoilt.routed_at is not None
    assert spoilt.error.startswith("InvalidPayload: ")
    assert "Traceback" in spoilt.error
    others = Stored.objects.exclude(pk=poison)
    assert not others.filter(quarantined=True).exists()
    assert not others.exclude(error="").exists()
    assert not Stored.objects.filter(routed_at=None).exists()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert run_of(asking).activity == "waiting"


def test_what_raises_in_the_second_transaction_is_found_out_too(quick: list[int]) -> None:
    send("a/b", {"n": 1})
    poison = spoilt_command()
    send("a/b", {"n": 2})
    drain()
    assert quick == [1, 2]
    assert list(Stored.objects.filter(quarantined=True)) == [row(poison)]


def test_several_that_raise_are_each_set_aside(quick: list[int], asking: str) -> None:
    poison = [spoilt_event(send("a/replied")) for _ in range(3)]
    send("a/b", {"n": 1})
    poison.append(spoilt_event(send("a/replied")))
    good = send("a/replied")
    drain()
    assert quick == [1]
    assert run_of(asking).result is True
    assert set(Stored.objects.filter(quarantined=True)) == {row(event) for event in poison}
    assert not row(good).quarantined


def test_a_failure_that_passes_leaves_no_trace_but_the_attempt(quick: list[int]) -> None:
    left = [1]

    def fail(text: str) -> None:
        if "SET routed_at" in text and left:
            left.pop()
            raise ValueError("just once")

    event = send("a/b", {"n": 1})
    sql.observers.append(fail)
    try:
        drain()
    finally:
        sql.observers.remove(fail)
    assert not left
    assert quick == [1]
    assert (row(event).quarantined, row(event).error) == (False, "")


@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("statement", ["INSERT INTO durable_flows_run", "SET routed_at"])
def test_a_database_that_fails_is_no_events_fault(
    statement: str, together: int, quick: list[int]
) -> None:
    def fail(text: str) -> None:
        if statement in text:
            raise OperationalError("the connection was lost")

    for number in range(together):
        send("a/b", {"n": number})
    sql.observers.append(fail)
    try:
        for _ in range(5):
            with pytest.raises(OperationalError):
                route()
    finally:
        sql.observers.remove(fail)
    assert not Stored.objects.exclude(routed_at=None, attempts=0, error="").exists()
    drain()
    assert quick == list(range(together))


@pytest.mark.two_writers
@pytest.mark.parametrize(
    ("undo", "redo"),
    [
        ("ALTER TABLE {} RENAME TO gone", "ALTER TABLE gone RENAME TO {}"),
        ("ALTER TABLE {} RENAME run_id TO gone", "ALTER TABLE {} RENAME gone TO run_id"),
    ],
)
def test_a_migration_that_is_under_way_is_no_events_fault(
    undo: str, redo: str, quick: list[int]
) -> None:
    table = "durable_flows_due"
    for number in range(3):
        send("a/b", {"n": number})
    sql.execute(undo.format(table))
    with pytest.raises(ProgrammingError):
        route()
    sql.execute(redo.format(table))
    assert not Stored.objects.exclude(routed_at=None, attempts=0, error="").exists()
    drain()
    assert quick == [0, 1, 2]


def test_a_batch_whose_router_died_is_taken_event_by_event(quick: list[int]) -> None:
    for number in range(5):
        send("a/b", {"n": number})
    with crash_at("between_routing_transactions"):
        drain()
    hands: list[int] = []

    def look(place: str, detail: str) -> None:
        if place == "events_numbered":
            hands.append(Stored.objects.filter(routed_at=None, attempts=2).count())

    failpoints.trap = look
    drain()
    assert hands == [1] * 5
    assert quick == list(range(5))


def test_an_event_that_kills_its_router_is_set_aside_and_its_neighbours_are_not(
    quick: list[int],
) -> None:
    before = [send("a/b", {"n": number}) for number in range(4)]
    poison = send("a/deadly")
    behind = [send("a/b", {"n": number}) for number in range(4, 8)]
    with deadly(poison) as deaths:
        for _ in range(5):
            drain()
    # The first time in company: that condemns nobody. What then is before it is routed one by one.
    assert deaths == [0, 1, 2, 3]
    assert row(poison).quarantined
    assert "died twice" in row(poison).error
    assert quick == list(range(8))
    assert not Stored.objects.filter(pk__in=[*before, *behind], quarantined=True).exists()


def test_neighbours_of_two_dead_batches_are_innocent(quick: list[int]) -> None:
    """Routers that die of anything else, with many events in hand, however often."""
    for number in range(4):
        send("a/b", {"n": number})
    with crash_at("between_routing_transactions"):
        drain()
    with crash_at("between_routing_transactions"):  # the first of them alone
        drain()
    drain()
    assert quick == list(range(4))
    assert not Stored.objects.filter(quarantined=True).exists()


def test_an_event_in_quarantine_lets_a_wait_for_its_name_time_out(asking: str) -> None:
    spoilt_event(send("a/replied"))
    advance("2h")
    assert run_of(asking).result is False


def test_a_quarantined_event_is_routed_again_when_it_is_asked_for(asking: str) -> None:
    poison = spoilt_event(send("a/replied"))
    healthy = send("a/other")
    drain()
    number = row(poison).routed
    Stored.objects.filter(pk=poison).update(data='{"n": 1}')
    assert quarantine.reroute([row(poison).pk, row(healthy).pk]) == [row(poison).pk]
    drain()
    assert run_of(asking).result is True
    mended = row(poison)
    assert (mended.quarantined, mended.error) == (False, "")
    assert mended.routed_at is not None
    assert mended.routed != number


def test_an_event_that_fails_again_after_it_was_asked_for_is_set_aside_again(asking: str) -> None:
    poison = spoilt_event(send("a/replied"))
    drain()
    quarantine.reroute([row(poison).pk])
    drain()
    assert row(poison).quarantined


def test_a_start_that_is_routed_again_starts_nothing_twice(quick: list[int]) -> None:
    """Its first transaction had gone well."""
    event = send("a/b", {"n": 1})

    def fail(text: str) -> None:
        if "SET routed_at" in text and "error = ''" in text:
            raise ValueError("never")

    sql.observers.append(fail)
    try:
        route()
    finally:
        sql.observers.remove(fail)
    assert row(event).quarantined
    quarantine.reroute([row(event).pk])
    drain()
    assert quick == [1]


def test_errors_that_cannot_be_stored_as_they_are_do_not_stop_the_quarantine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(
        "CRITICAL", "durable_flows"
    )  # nor can such a log be reported between processes

    def fail(text: str) -> None:
        if "SET routed_at" in text and "error = ''" in text:
            raise ValueError("\0 and \ud800")

    event = send("a/b")
    sql.observers.append(fail)
    try:
        route()
    finally:
        sql.observers.remove(fail)
    assert row(event).quarantined
    assert row(event).error.startswith("ValueError: \N{REPLACEMENT CHARACTER} and ?")


def test_an_event_of_the_future_waits_for_its_time_though_another_was_set_aside(
    quick: list[int], asking: str
) -> None:
    spoilt_event(send("a/replied"))
    send("a/b", {"n": 1}, ts=clock.now() + timedelta(hours=1))
    drain()
    assert quick == []
    advance("1h")
    assert quick == [1]


@pytest.mark.parametrize("times", [1, 2])
def test_a_router_that_dies_before_it_can_count_a_failure_changes_nothing(
    times: int, quick: list[int], asking: str
) -> None:
    poison = spoilt_event(send("a/replied"))
    send("a/b", {"n": 1})
    with crash_at("before_quarantine", times=times) as crash:
        for _ in range(times):
            drain()
    assert crash.count == times
    drain()
    assert quick == [1]
    assert list(Stored.objects.filter(quarantined=True)) == [row(poison)]


def test_an_event_whose_condition_kills_its_router_is_set_aside_and_its_neighbours_are_not(
    quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow("particular", on=On("a/particular", if_="event.data.n > 0"))(lambda: None)
    holds, deaths = expressions.holds, [0]

    def die(condition: Any, document: Any) -> bool:
        if document["data"]["n"] == 13:
            deaths.append(row(poison).attempts)
            raise Crash("killed")
        return holds(condition, document)

    monkeypatch.setattr(expressions, "holds", die)
    before = [send("a/particular", {"n": 1}), send("a/b", {"n": 1})]
    poison = send("a/particular", {"n": 13})
    behind = [send("a/particular", {"n": 2}), send("a/b", {"n": 2})]
    for _ in range(5):
        drain()
    assert deaths == [0, 1, 2, 3]
    assert row(poison).quarantined
    assert quick == [1, 2]
    assert [len(runs_of(event)) for event in [*before, *behind]] == [1] * 4


def test_only_where_a_condition_is_evaluated_a_commit_comes_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow("particular", on=On("a/particular", if_="event.data.n > 0"))(lambda: None)
    flow("plain", on="a/plain")(lambda: None)
    opened: list[str] = []
    atomic = sql.atomic

    def count() -> Any:
        opened.append("one more")
        return atomic()

    monkeypatch.setattr(sql, "atomic", count)
    numbers = []
    for name in ("a/plain", "a/particular"):
        opened.clear()
        send(name, {"n": 1})
        assert route().events == 1
        numbers.append(len(opened))
    assert numbers[1] == numbers[0] + 1


def test_routers_of_one_process_take_turns_where_the_database_has_no_lock() -> None:
    """Three in the gap between one's two transactions would think an event that it has in hand deadly."""
    turns = Turns()
    came: list[str] = []

    def work() -> None:
        came.append("works")
        if len(came) == 1:
            turns.take(lambda: came.append("came meanwhile"))

    turns.take(work)
    assert came == ["works", "works"]  # who came left, and the first one looked once more


def test_a_router_that_fails_leaves_the_turn_to_the_next() -> None:
    turns = Turns()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        turns.take(fail)
    came: list[int] = []
    turns.take(lambda: came.append(1))
    assert came == [1]
