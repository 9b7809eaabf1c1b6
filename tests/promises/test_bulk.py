"""cancel_all and replay: the same command for all runs that fit, paced and carried out by the ticks."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from durable_flows import (
    NonRetriableError,
    bulk_progress,
    cancel,
    cancel_all,
    cancel_bulk,
    flow,
    replay,
)
from durable_flows.engine import bulk, paced, sql
from durable_flows.engine.quarantine import reroute
from durable_flows.engine.route import route
from durable_flows.engine.tick import tick
from durable_flows.errors import (
    BulkActionOver,
    InvalidDuration,
    InvalidExpression,
    InvalidOption,
    UnknownBulkAction,
)
from durable_flows.models import BulkAction, Event, Run
from durable_flows.rules import events
from durable_flows.testing import advance, crash_at, drain, run_of, send
from tests.promises.staging import now, rolled_back, stored

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def flows():
    @flow("rests", on="rest")
    def rests(step):
        step.sleep("rest", "30 days")

    @flow("other", on="other")
    def other(step):
        step.sleep("rest", "30 days")

    @flow("fails", on="fail")
    def fails(event):
        if event.data.get("mended"):
            return
        raise NonRetriableError(f"no {event.data.get('why')}")


def play(name: str, count: int = 1, **data: object) -> list[str]:
    """So many runs, as far as they come."""
    ids = [send(name, {"n": n, **data}) for n in range(count)]
    drain()
    return [run_of(event).id for event in ids]


def states(flow_id: str) -> list[str]:
    return sorted(Run.objects.filter(flow=flow_id).values_list("state", flat=True))


def reruns() -> int:
    return Run.objects.filter(origin__isnull=False).count()


def progress(bulk_id: str) -> tuple[str, int | None, int, int]:
    found = bulk_progress(bulk_id)
    return found.state, found.total, found.seen, found.done


# -- cancel_all ------------------------------------------------------------------------------


def test_all_unfinished_runs_of_a_flow_are_cancelled():
    play("rest", 3)
    play("other")
    asked = cancel_all("rests", reason="closing down", by="ada")
    drain()
    assert states("rests") == ["cancelled"] * 3
    assert states("other") == ["started"]
    assert set(Run.objects.filter(flow="rests").values_list("reason", flat=True)) == {
        "closing down"
    }
    assert progress(asked) == ("done", 3, 3, 3)
    assert BulkAction.objects.get().created_by == "ada"


def test_without_a_reason_the_runs_name_the_bulk_action():
    (run,) = play("rest")
    asked = cancel_all("rests")
    drain()
    assert run_of(run).reason == f"bulk action {asked}"


def test_a_flow_may_be_named_by_itself():
    @flow("own", on="own")
    def own(step):
        step.sleep("rest", "1 day")

    (run,) = play("own")
    cancel_all(own)
    drain()
    assert run_of(run).state == "cancelled"


@pytest.mark.parametrize(
    ("said", "cancelled"),
    [
        ({"if_": "event.data.n == 1"}, {1}),
        ({"if_": "event.data.n == 1", "flow": "other"}, set()),
        ({"if_": "event.data.missing.n == 1"}, set()),
        ({"flow": "rests", "state": "queued"}, set()),
        ({"flow": "rests", "state": ["queued", "started"]}, {0, 1, 2}),
    ],
)
def test_only_what_fits_is_cancelled(said, cancelled):
    runs = play("rest", 3)
    cancel_all(**said)
    drain()
    assert {n for n, run in enumerate(runs) if run_of(run).state == "cancelled"} == cancelled


def test_runs_are_chosen_by_when_they_were_created():
    early = play("rest")[0]
    advance("1 day")
    middle, between = play("rest")[0], now()
    advance("1 day")
    late = play("rest")[0]
    cancel_all(
        created_after=between - timedelta(hours=1), created_before=between + timedelta(hours=1)
    )
    drain()
    assert [run_of(run).state for run in (early, middle, late)] == [
        "started",
        "cancelled",
        "started",
    ]
    cancel_all(created_before=now())
    drain()
    assert states("rests") == ["cancelled"] * 3


def test_runs_that_are_created_after_it_was_asked_are_not_concerned():
    cancel_all("rests")
    advance("1s", play=False)
    (run,) = play("rest")
    assert run_of(run).state == "started"


def test_a_run_that_has_ended_meanwhile_is_left_alone():
    _, second = sorted(play("rest", 2))
    asked = cancel_all("rests", rate="1/h")
    drain()
    assert progress(asked) == ("running", 2, 1, 1)
    cancel(second, reason="by hand")
    drain()
    advance("2h")
    assert run_of(second).reason == "by hand"
    assert progress(asked) == ("done", 2, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_a_rollback_undoes_it():
    (run,) = play("rest")
    with rolled_back():
        cancel_all("rests")
    drain()
    assert run_of(run).state == "started"
    assert not BulkAction.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "ask", [lambda: cancel_all("rests"), lambda: replay("fails"), lambda: cancel_all(if_="true")]
)
def test_in_the_callers_transaction_an_event_is_inserted_and_nothing_else(ask):
    told: list[str] = []
    sql.observers.append(told.append)
    try:
        with transaction.atomic(), CaptureQueriesContext(connection) as by_the_orm:
            ask()
    finally:
        sql.observers.remove(told.append)
    told += [query["sql"] for query in by_the_orm]
    of_tables = {text for text in told if "durable_flows_" in text}
    assert {text.split(" (")[0] for text in of_tables} - {"INSERT INTO durable_flows_counter"} == {
        "INSERT INTO durable_flows_event"
    }


def test_it_is_running_from_the_moment_it_was_asked_for():
    play("rest", 2)
    asked = cancel_all("rests")
    assert bulk_progress(asked).kind == "cancel"
    assert progress(asked) == ("running", None, 0, 0)
    route()
    assert progress(asked) == ("running", None, 0, 0)
    drain()
    assert progress(asked) == ("done", 2, 2, 2)


def test_it_can_be_cancelled_in_the_transaction_that_asks_for_it():
    (run,) = play("rest")
    with transaction.atomic():
        asked = cancel_all("rests")
        cancel_bulk(asked)
    drain()
    assert progress(asked) == ("cancelled", None, 0, 0)
    assert run_of(run).state == "started"
    assert not Event.objects.filter(name=events.STOP_BULK).exclude(error="").exists()


def test_one_whose_command_was_set_aside_is_none(monkeypatch):
    def fail(_):
        raise RuntimeError("of a fault in the engine")

    play("rest")
    with monkeypatch.context() as broken:
        broken.setattr(bulk, "begin", fail)
        asked = cancel_all("rests")
        drain()
    with pytest.raises(
        UnknownBulkAction, match=r"was set aside: RuntimeError: of a fault in the engine$"
    ):
        bulk_progress(asked)
    reroute([uuid.UUID(asked)])
    drain()
    assert progress(asked) == ("done", 1, 1, 1)


@pytest.mark.parametrize(
    "place", ["between_routing_transactions", "command_obeyed", "before_routed_commit"]
)
def test_it_begins_once_though_routers_die(place):
    runs = play("rest", 2)
    asked = cancel_all("rests", rate="1000/s")
    with crash_at(place) as crash:
        advance("1 minute")
    assert crash.happened
    assert BulkAction.objects.get().pk == uuid.UUID(asked)
    assert progress(asked) == ("done", 2, 2, 2)
    assert {run_of(run).state for run in runs} == {"cancelled"}


def test_a_router_that_comes_late_begins_nothing_anew():
    play("rest", 2)
    asked = cancel_all("rests")
    bulk.begin(uuid.UUID(asked))
    while paced.next_batch(uuid.UUID(asked)) is not None:
        pass
    assert progress(asked) == ("done", 2, 2, 2)
    drain()
    assert progress(asked) == ("done", 2, 2, 2)


# -- replay ----------------------------------------------------------------------------------


def test_failed_runs_are_done_again_once_each():
    runs = play("fail", 3)
    asked = replay("fails", rate="1000/s")
    advance("1 minute")
    assert reruns() == 3
    assert set(Run.objects.filter(origin__isnull=False).values_list("origin", flat=True)) == {
        uuid.UUID(run) for run in runs
    }
    assert progress(asked) == ("done", 3, 3, 3)
    advance("1 day")
    assert Run.objects.count() == 6  # what failed again is not done again


def test_runs_are_chosen_by_their_reason():
    play("fail", 2, why="money")
    play("fail", 1, why="time")
    replay(reason_contains="no money", rate="1000/s")
    advance("1 minute")
    assert reruns() == 2


def test_completed_runs_can_be_replayed_too():
    play("fail", 2, mended=True)
    replay("fails", state="completed")
    advance("1 minute")
    assert states("fails") == ["completed"] * 4


def test_it_is_paced():
    play("fail", 10)
    asked = replay("fails", rate="1/m")
    drain()
    seen = [reruns()]
    for _ in range(3):
        advance("1 minute")
        seen.append(reruns())
    assert seen == [1, 2, 3, 4]
    advance("10 minutes")
    assert reruns() == 10
    assert progress(asked) == ("done", 10, 10, 10)


def test_after_a_pause_there_is_no_burst():
    play("fail", 30)
    replay("fails", rate="1/s")
    drain()
    advance("1h", play=False)
    tick()
    assert reruns() <= 1
    drain()
    assert reruns() <= 12  # what comes together in two ticks


def test_very_many_take_several_batches(monkeypatch):
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    monkeypatch.setattr(paced, "BATCHES", 2)
    play("fail", 9)
    asked = replay("fails", rate="10000/s")
    route()
    assert paced.carry_on() == 2
    advance("1h")
    assert reruns() == 9
    assert progress(asked) == ("done", 9, 9, 9)


@pytest.mark.parametrize("others", [0, 1, 2, 3])
def test_few_among_very_many_are_looked_for_in_pieces(monkeypatch, others):
    monkeypatch.setattr(bulk, "SPAN", 2)
    for n in range(5):
        play("rest", others)
        play("fail", 2, why="money" if n % 2 else "time")
    for said in ({"flow": "fails"}, {"state": "failed"}):
        Run.objects.filter(origin__isnull=False).delete()
        asked = replay(**said, reason_contains="no money", rate="10000/s")
        advance("1h")
        assert progress(asked) == ("done", 4, 4, 4)
        assert reruns() == 4


def test_they_are_counted_ahead_however_slowly_it_goes(monkeypatch):
    monkeypatch.setattr(bulk, "SPAN", 2)
    monkeypatch.setattr(paced, "BATCHES", 2)
    play("fail", 9)
    asked = replay("fails", rate="1/d")
    route()
    seen = []
    for _ in range(3):
        paced.carry_on()
        seen.append(bulk_progress(asked).total)
    assert seen == [None, None, 9]


def test_the_commands_name_the_bulk_action_they_come_from():
    play("fail")
    asked = replay("fails", reason="mended")
    advance("1 minute")
    command = Event.objects.get(name=events.RERUN)
    assert asked in command.data
    assert "mended" in command.data


# -- on the way ------------------------------------------------------------------------------


def test_it_can_be_cancelled_on_the_way():
    play("fail", 10)
    asked = replay("fails", rate="1/m")
    advance("2 minutes")
    done = bulk_progress(asked).done
    assert cancel_bulk(asked, reason="enough") == asked
    advance("1h")
    assert progress(asked) == ("cancelled", 10, done, done)
    assert reruns() == done < 10


def test_what_is_over_cannot_be_cancelled():
    play("fail")
    asked = replay("fails")
    advance("1 minute")
    with pytest.raises(BulkActionOver, match="is over: done"):
        cancel_bulk(asked)
    assert events.STOP_BULK not in stored()


def test_what_is_over_when_it_is_carried_out_refuses_it():
    play("fail")
    asked = replay("fails")
    with transaction.atomic():
        cancel_bulk(asked)
        cancel_bulk(uuid.UUID(asked))
    advance("1 minute")
    rows = Event.objects.filter(name=events.STOP_BULK).order_by("arrival")
    first, second = rows.values_list("error", flat=True)
    assert "is over" in second
    assert bulk_progress(asked).state in ("cancelled", "done")
    assert ("is over" in first) == (bulk_progress(asked).state == "done")


@pytest.mark.parametrize("place", ["before_bulk_commit", "bulk_carried_on"])
@pytest.mark.parametrize("ask", [replay, cancel_all])
def test_each_run_is_asked_for_once_though_whoever_carries_it_out_dies(monkeypatch, place, ask):
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    name, flow_id = ("fail", "fails") if ask is replay else ("rest", "rests")
    play(name, 5)
    asked = ask(flow_id, rate="1000/s")
    with crash_at(place, times=2) as crash:
        advance("1h")
    assert crash.count == 2
    assert progress(asked) == ("done", 5, 5, 5)
    commands = Event.objects.filter(name__in=[events.RERUN, events.CANCEL])
    assert commands.count() == commands.values("target").distinct().count() == 5


def test_the_tick_carries_it_out():
    play("rest", 2)
    cancel_all("rests")
    route()
    assert tick()
    assert bulk_progress(str(BulkAction.objects.get().pk)).state == "done"


def test_one_that_fails_holds_up_nobody(monkeypatch, caplog):
    (run,) = play("rest")
    play("fail")
    broken = cancel_all(if_="event.data.n == 0", by="ada")
    replay("fails")
    route()
    BulkAction.objects.filter(pk=broken).update(filters='{"states": [], "if_": "no expression ("}')
    advance("1 minute")
    assert reruns() == 1
    assert run_of(run).state == "started"
    assert f"bulk action {broken} could not be carried on with" in caplog.text
    assert bulk_progress(broken).state == "running"
    cancel_bulk(broken)
    drain()
    assert bulk_progress(broken).state == "cancelled"


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ({}, InvalidOption, "would cancel every run"),
        ({"flow": ""}, InvalidOption, "takes a flow"),
        ({"flow": 7}, InvalidOption, "takes a flow"),
        ({"flow": "x", "state": "failed"}, InvalidOption, "failed has ended"),
        ({"flow": "x", "state": "asleep"}, InvalidOption, "state= is any of"),
        ({"created_after": "soon"}, InvalidDuration, "created_after="),
        ({"if_": "event.data."}, InvalidExpression, "if_="),
        ({"flow": "x", "rate": "fast"}, InvalidOption, "rate= is a number for a time"),
        ({"flow": "x", "reason": 7}, InvalidOption, "reason="),
        ({"flow": "x", "by": "a\0b"}, InvalidOption, "by="),
        ({"reason_contains": 7}, InvalidOption, "reason_contains="),
    ],
)
def test_what_cannot_be_understood_is_an_error_at_the_call(said, error, match):
    with pytest.raises(error, match=match):
        cancel_all(**said)
    assert not BulkAction.objects.exists()


def test_an_unknown_bulk_action_is_an_error_at_the_call():
    for ask in (bulk_progress, cancel_bulk):
        with pytest.raises(UnknownBulkAction, match="there is no"):
            ask(uuid.uuid4())
        with pytest.raises(UnknownBulkAction, match="UUID"):
            ask("nonsense")
