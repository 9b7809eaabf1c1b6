"""An event that very many waits match: it is settled in pieces, and holds up nobody."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import OperationalError

from durable_flows import CancelOn, Event, Step, flow
from durable_flows.engine import broadcast, failpoints, quarantine, route, settle, sql
from durable_flows.models import Event as Stored
from durable_flows.models import Run, Wait
from durable_flows.rules import clock
from durable_flows.testing import Crash, crash_at, drain, run_of, send

pytestmark = pytest.mark.django_db

RUNS = 10


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "PIECE", 3)


@pytest.fixture
def waiters() -> list[str]:
    """Many runs that wait for a/told of the same number."""

    @flow("waiter", on="a/began")
    def waiter(event: Event, step: Step) -> str:
        told = step.wait_for_event("told", event="a/told", match="data.k", timeout="1h")
        return told.public_id if told else "nothing"

    runs = [send("a/began", {"k": 1}) for _ in range(RUNS)]
    drain()
    return runs


def results(runs: list[str]) -> list[object]:
    return [run_of(run).result for run in runs]


def row(event_id: str) -> Stored:
    return Stored.objects.get(pk=event_id)


def pending() -> int:
    return Wait.objects.pending().count()


def test_an_event_that_many_waits_match_ends_all_of_them_a_piece_at_a_time(
    waiters: list[str],
) -> None:
    told = send("a/told", {"k": 1})
    seen: list[tuple[int, bool]] = []

    def look(place: str, detail: str) -> None:
        if place == "between_pieces":
            seen.append((pending(), row(told).routed_at is None))

    failpoints.trap = look
    done = route.route()
    failpoints.trap = None
    assert seen == [(7, True), (4, True), (1, True), (0, True), (0, False)]
    assert done.events == 1
    drain()
    assert results(waiters) == [told] * RUNS
    assert (row(told).error, row(told).quarantined) == ("", False)


def test_no_statement_reads_more_waits_than_a_piece(waiters: list[str]) -> None:
    read: list[str] = []

    def note(text: str) -> None:
        if "FROM durable_flows_wait w JOIN" in text and "kind = 'cancel'" not in text:
            read.append(text)

    send("a/told", {"k": 1})
    sql.observers.append(note)
    try:
        route.route()
    finally:
        sql.observers.remove(note)
    assert read
    assert all(text.rstrip().endswith("LIMIT %(most)s") for text in read)


def test_several_events_that_match_many_waits_together_are_settled_in_smaller_batches() -> None:
    @flow("waiter", on="a/began")
    def waiter(event: Event, step: Step) -> bool:
        return bool(step.wait_for_event("told", event="a/told", match="data.k", timeout="1h"))

    runs = [send("a/began", {"k": n}) for n in range(8)]
    drain()
    events = [send("a/told", {"k": n}) for n in range(8)]
    drain()
    assert results(runs) == [True] * 8
    assert {row(event).attempts for event in events} == {1}  # none was in pieces


@pytest.mark.parametrize("times", [1, 2, 4, 5])
def test_what_is_left_is_settled_by_the_next_router_though_one_dies_after_each_piece(
    times: int, waiters: list[str]
) -> None:
    told = send("a/told", {"k": 1})
    with crash_at("between_pieces", times=times) as crash:
        for _ in range(times):
            with pytest.raises(Crash):
                route.route()
    assert crash.count == times
    drain()
    assert results(waiters) == [told] * RUNS
    assert row(told).routed_at is not None
    assert not row(told).quarantined


def test_other_events_are_routed_between_the_pieces(waiters: list[str]) -> None:
    flow("quick", on="a/quick")(lambda: "done")
    send("a/told", {"k": 1})
    left: list[int] = []

    def send_one(place: str, detail: str) -> None:
        if place == "between_pieces" and pending() == 7:
            send("a/quick")
        if place == "batch_routed" and not left and Run.objects.filter(flow="quick").exists():
            left.append(pending())

    failpoints.trap = send_one
    route.route()
    failpoints.trap = None
    assert left == [7]
    assert pending() == 0


def test_a_wait_that_a_later_event_matches_too_takes_the_earlier_one(waiters: list[str]) -> None:
    @flow("both", on="a/both")
    def both(event: Event, step: Step) -> str:
        told = step.wait_for_event("told", event="a/told", match="data.m", timeout="1h")
        return told.public_id if told else "nothing"

    common = send("a/both", {"m": 7})
    drain()
    first = send("a/told", {"k": 1, "m": 7})
    second = send("a/told", {"k": 2, "m": 7})
    with crash_at("between_pieces"), pytest.raises(Crash):
        route.route()
    assert row(second).routed_at is not None  # it was not held up
    assert row(first).routed_at is None
    drain()
    assert run_of(common).result == first


def test_a_run_that_the_earlier_event_cancels_is_not_resumed_by_the_later_one(
    waiters: list[str],
) -> None:
    @flow("doomed", on="a/doomed", cancel_on=CancelOn("a/told", match="data.m"))
    def doomed(event: Event, step: Step) -> None:
        step.wait_for_event("go", event="a/go", timeout="1h")

    run = send("a/doomed", {"m": 7})
    drain()
    send("a/told", {"k": 1, "m": 7})
    send("a/go")
    with crash_at("between_pieces"), pytest.raises(Crash):
        route.route()
    assert pending() > 3  # there are pieces left
    assert run_of(run).state == "cancelled"


def test_two_events_for_the_same_many_waits_are_settled_in_order(waiters: list[str]) -> None:
    first = send("a/told", {"k": 1})
    second = send("a/told", {"k": 1})
    drain()
    assert results(waiters) == [first] * RUNS
    assert row(second).routed_at is not None


def test_many_runs_are_cancelled_by_one_event() -> None:
    @flow("sleeper", on="a/began", cancel_on=CancelOn("a/stop"))
    def sleeper(step: Step) -> None:
        step.sleep("rest", "1 day")

    runs = [send("a/began") for _ in range(RUNS)]
    drain()
    stop = send("a/stop")
    drain()
    assert {run_of(run).state for run in runs} == {"cancelled"}
    assert {run_of(run).reason for run in runs} == {f"event a/stop {stop}"}


def test_an_event_that_starts_runs_and_matches_many_waits_does_both() -> None:
    @flow("newest", on="a/began", cancel_on=CancelOn("a/began"))
    def newest(step: Step) -> None:
        step.sleep("rest", "1 day")

    runs = [send("a/began") for _ in range(5)]
    drain()
    assert [run_of(run).state for run in runs] == ["cancelled"] * 4 + ["started"]
    Run.objects.all().delete()
    Wait.objects.all().delete()


def test_waits_that_match_and_take_nothing_are_passed_by() -> None:
    later = clock.now() + timedelta(hours=1)

    @flow("choosy", on="a/began")
    def choosy(event: Event, step: Step) -> bool:
        since = later if event.data["n"] % 2 else None
        return bool(step.wait_for_event("told", event="a/told", since=since, timeout="2h"))

    runs = [send("a/began", {"n": n}) for n in range(RUNS)]
    drain()
    told = send("a/told")
    drain()
    assert results(runs) == [True, None] * 5
    assert row(told).routed_at is not None


def test_an_event_whose_pieces_raise_is_set_aside_and_the_others_go_on(waiters: list[str]) -> None:
    told = send("a/told", {"k": 1})
    quick = flow("quick", on="a/quick")(lambda: "done")

    def fail(text: str) -> None:
        if "UPDATE durable_flows_wait" in text and pending() <= 7:
            raise ValueError("no further")

    sql.observers.append(fail)
    try:
        route.route()
    finally:
        sql.observers.remove(fail)
    assert row(told).quarantined
    assert row(told).error.startswith("ValueError: no further")
    assert pending() == 7
    event = send("a/quick")
    drain()
    assert run_of(event, quick.id).result == "done"
    quarantine.reroute([row(told).pk])
    drain()
    assert results(waiters) == [told] * RUNS


def test_an_event_whose_pieces_fail_once_is_settled_all_the_same(waiters: list[str]) -> None:
    told = send("a/told", {"k": 1})
    left = [1]

    def fail(text: str) -> None:
        if "UPDATE durable_flows_wait" in text and left:
            left.pop()
            raise ValueError("once")

    sql.observers.append(fail)
    try:
        drain()
    finally:
        sql.observers.remove(fail)
    assert results(waiters) == [told] * RUNS
    assert (row(told).error, row(told).quarantined) == ("", False)


def test_a_database_that_fails_is_not_the_events_fault(waiters: list[str]) -> None:
    told = send("a/told", {"k": 1})

    def fail(text: str) -> None:
        if "UPDATE durable_flows_wait" in text:
            raise OperationalError("gone")

    sql.observers.append(fail)
    try:
        with pytest.raises(OperationalError):
            route.route()
    finally:
        sql.observers.remove(fail)
    assert (row(told).error, row(told).quarantined) == ("", False)
    drain()
    assert results(waiters) == [told] * RUNS


def test_an_event_whose_pieces_kill_two_routers_is_set_aside(waiters: list[str]) -> None:
    told = send("a/told", {"k": 1})
    deaths: list[int] = []

    def die(text: str) -> None:
        if "UPDATE durable_flows_wait" in text:
            deaths.append(row(told).attempts)
            raise Crash("killed")

    sql.observers.append(die)
    try:
        for _ in range(4):
            drain()
    finally:
        sql.observers.remove(die)
    assert deaths == [-2, -3]
    assert row(told).quarantined


def test_a_wait_that_is_registered_meanwhile_takes_the_event_once(waiters: list[str]) -> None:
    late: list[str] = []
    told = send("a/told", {"k": 1})

    def begin(place: str, detail: str) -> None:
        if place == "between_pieces" and pending() == 4 and not late:
            late.append(send("a/began", {"k": 1}))

    failpoints.trap = begin
    drain()
    failpoints.trap = None
    assert results(waiters) == [told] * RUNS
    assert run_of(late[0]).activity == "waiting"  # it began after the event


def settled_piece(pieces: broadcast.Pieces) -> bool:
    with sql.atomic():
        return broadcast.settle_piece(pieces, ("true", {}))


def test_routers_that_live_are_not_taken_for_dead_though_others_come_between_their_transactions(
    waiters: list[str],
) -> None:
    told = send("a/told", {"k": 1})
    with crash_at("between_pieces"), pytest.raises(Crash):
        route.route()
    first, *others = [broadcast.Pieces() for _ in range(4)]
    assert not settled_piece(first)  # it has noted that it begins
    for other in others:
        settled_piece(other)
    assert row(told).quarantined
    for _ in range(RUNS):
        settled_piece(first)
    assert not row(told).quarantined
    drain()
    assert results(waiters) == [told] * RUNS


def test_a_router_that_leaves_the_pieces_to_another_is_not_taken_for_dead(
    waiters: list[str],
) -> None:
    told = send("a/told", {"k": 1})
    with crash_at("between_pieces"), pytest.raises(Crash):
        route.route()
    for _ in range(5):
        pieces = broadcast.Pieces()
        assert not settled_piece(pieces)
        broadcast.leave(pieces)
    assert row(told).attempts == -1
    drain()
    assert results(waiters) == [told] * RUNS
