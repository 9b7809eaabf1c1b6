"""Retention: what is purged, when, and what is kept because something may still need it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.test import override_settings

from durable_flows import (
    CancelOn,
    Event,
    InvokeError,
    NonRetriableError,
    On,
    Step,
    cancel,
    cancel_all,
    decide,
    flow,
    replay,
    rerun,
    retry,
    send_signal,
    withdraw,
)
from durable_flows import models as m
from durable_flows.engine import census, erase, execute, files, purge, tick
from durable_flows.engine import ring as bells
from durable_flows.engine.route import route
from durable_flows.errors import IllegalTransition, UnknownRun
from durable_flows.rules import clock, envelopes, events, retention
from durable_flows.testing import Crash, advance, drain, run_of, runs_of, send
from durable_flows.testing import purge as purge_now
from tests.promises.staging import once_at, played

pytestmark = pytest.mark.django_db

OF_A_RUN = (m.Run, m.Step, m.Attempt, m.Wait, m.Fanout, m.Approval, m.RunWarning)
OF_AN_EVENT = (m.Event, m.EventKey, m.EventMatch, m.Admission)


@contextmanager
def keeping(**days: Any) -> Iterator[None]:
    """Settings that say for how long."""
    changed = {f"KEEP_{name.upper()}_DAYS": value for name, value in days.items()}
    with override_settings(DURABLE_FLOWS={**getattr(settings, "DURABLE_FLOWS", {}), **changed}):
        yield


def later(by: str) -> dict[str, int]:
    """Let time pass in which nobody does anything, then purge."""
    advance(by, play=False)
    return purge_now()


def names() -> list[str]:
    """Of the stored events that users have sent."""
    found = m.Event.objects.order_by("arrival").values_list("name", flat=True)
    return [name for name in found if not name.startswith("flows/")]


def is_kept(run: Any) -> bool:
    return m.Run.objects.filter(pk=run.id).exists()


def counted(removed: Mapping[str, int] | None) -> dict[str, int]:
    """Runs and events; what processes have published may be of other tests."""
    return {name: count for name, count in (removed or {}).items() if name != "deployments"}


def rows(models: Collection[type[Any]]) -> dict[str, int]:
    """How many rows there are, of those tables that have any."""
    counts = {model.__name__: model.objects.count() for model in models}
    return {name: count for name, count in counts.items() if count}


def resting(name: str = "rest", days: str = "200 days") -> None:
    """A flow whose runs are unfinished for long."""
    flow(name, on=name)(lambda step: step.sleep("rest", days))


# -- by age and state ------------------------------------------------------------------------


def test_ended_runs_are_kept_for_as_long_as_the_setting_of_their_state_says() -> None:
    def fails(step: Step) -> None:
        raise NonRetriableError("no")

    flow("done", on="a")(lambda: None)
    flow("failed", on="b")(fails)
    flow("rests", on="c")(lambda step: step.sleep("rest", "9 days"))
    done, failed, cancelled = (send(name) for name in "abc")
    drain()
    cancel(run_of(cancelled).id)
    drain()
    with keeping(completed=10, failed=20, cancelled=15):
        for day, left in ((9, 3), (2, 2), (5, 1), (5, 0)):
            later(f"{day} days")
            assert m.Run.objects.count() == left
    assert (runs_of(done), runs_of(failed), runs_of(cancelled)) == ([], [], [])


def test_a_run_is_kept_from_its_end_not_from_its_start() -> None:
    flow("long", on="go")(lambda step: step.sleep("rest", "40 days"))
    event = send("go")
    advance("40 days")
    run = run_of(event)
    assert run.state == "completed"
    later("29 days")
    assert is_kept(run)
    later("2 days")
    assert not is_kept(run)


def test_an_event_that_started_nothing_is_kept_for_seven_days_after_its_routing() -> None:
    send("lonely")
    send("later", ts=clock.now() + timedelta(days=3))
    advance("4 days")
    later("2 days")
    assert names() == ["lonely", "later"]
    assert later("2 days")["events"] == 1
    assert names() == ["later"]
    later("3 days")
    assert names() == []


@pytest.mark.parametrize("kind", ["events", "completed", "failed", "cancelled"])
def test_what_is_to_be_kept_for_ever_is(kind: str) -> None:
    def fails(step: Step) -> None:
        raise NonRetriableError("no")

    flow("done", on="a")(lambda: None)
    flow("failed", on="b")(fails)
    flow("rests", on="c")(lambda step: step.sleep("rest", "9 days"))
    send("a"), send("b"), send("d")
    event = send("c")
    drain()
    cancel(run_of(event).id)
    drain()
    with keeping(**{kind: None}):
        later("2000 days")
    left = set(m.Run.objects.values_list("state", flat=True))
    assert left == ({kind} - {"events"})
    assert ("d" in names()) == (kind == "events")


def test_whatever_belongs_to_a_run_goes_with_it() -> None:
    flow("child")(lambda: 1)

    @flow("rich", on="go", cancel_on=CancelOn("stop"))
    def rich(event: Event, step: Step) -> None:
        def fail() -> None:
            raise ConnectionError("no")

        step.run("one", int)
        step.map("each", "child", [{"n": n} for n in range(3)])
        step.saga().run("charge", int, undo=lambda _: None)
        step.wait_for_event(
            "never", event="never", if_="event.data.x == async.data.x", timeout="1h"
        )
        step.wait_for_approval("may", timeout="1h")
        step.parallel(step.later.run("a", int), step.later.sleep("b", "1s"))
        step.run("fail", fail, retries=1)

    event = send("go")
    advance("3h")
    assert run_of(event).state == "failed"
    assert rows(OF_A_RUN).keys() == {model.__name__ for model in OF_A_RUN}
    later("31 days")
    assert rows(OF_A_RUN) == {}
    assert m.Event.objects.count() == 0


def test_whatever_belongs_to_an_event_goes_with_it() -> None:
    flow("waits", on="go")(
        lambda step: step.wait_for_event("reply", event="reply", match="data.n", timeout="1h")
    )
    flow("choosy", on=On("go", if_="event.data.is.missing"))(lambda: None)
    send("go", {"n": 1}, id="mine")
    drain()
    send("reply", {"n": 2}, id="other")
    advance("1 day")
    assert rows(OF_AN_EVENT).keys() == {model.__name__ for model in OF_AN_EVENT}
    later("31 days")
    assert rows(OF_AN_EVENT) == {}


def test_a_trigger_goes_in_the_transaction_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    flow("done", on="go")(lambda: None)
    send("go")
    drain()
    advance("31 days", play=False)
    monkeypatch.setattr(purge, "_after", lambda notes, now, last: _ended(notes))
    assert counted(purge_now()) == {"completed": 1, "events": 1}


def _ended(notes: Any) -> Any:
    """No stage comes after this one."""
    return retention.Notes(whole_at=notes.whole_at)


# -- what is kept ----------------------------------------------------------------------------


def test_an_unfinished_run_is_kept_with_all_that_is_its_own() -> None:
    @flow("long", on="go")
    def long(step: Step) -> None:
        step.run("one", int)
        step.wait_for_event("reply", event="reply", timeout="300 days")

    run = played("go")
    before = rows([*OF_A_RUN, *OF_AN_EVENT])
    later("200 days")
    assert rows([*OF_A_RUN, *OF_AN_EVENT]) == before
    send("reply")
    drain()
    assert run_of(run.id).state == "completed"


def test_an_ended_run_is_kept_as_long_as_its_parent_is_unfinished() -> None:
    @flow("item")
    def item(event: Event, step: Step) -> int:
        if event.data["n"] == 2:
            step.sleep("rest", "100 days")
        return int(event.data["n"])

    flow("mapper", on="go")(lambda step: step.map("each", item, [{"n": n} for n in range(3)]))
    event = send("go")
    advance("99 days")
    assert purge_now().get("completed", 0) == 0
    advance("2 days")
    assert run_of(event).result == [0, 1, 2]
    later("31 days")
    assert m.Run.objects.count() == 0


def test_the_trigger_of_a_run_that_is_kept_is_kept_and_the_run_can_be_done_again() -> None:
    flow("done", on="go")(lambda event: event.data["n"])
    run = played("go", {"n": 7})
    later("29 days")
    again = rerun(run.id)
    drain()
    assert run_of(again).result == 7


def test_an_unfinished_run_finds_all_that_was_routed_since_its_trigger() -> None:
    @flow("slow", on="go")
    def slow(event: Event, step: Step) -> Any:
        step.wait_for_event("first", event="first", timeout="100 days")
        found = step.wait_for_event("reply", event="reply", match="data.n", timeout="1h")
        return found and found.data

    send("before", {"n": 1})
    drain()
    run = played("go", {"n": 1})
    send("reply", {"n": 1})
    send("reply", {"n": 2})
    drain()
    later("50 days")
    assert names() == ["go", "reply", "reply"]  # whatever it is
    send("first")
    drain()
    assert run_of(run.id).result == {"n": 1}
    later("8 days")
    assert names() == ["go"]


def test_a_run_that_took_over_steps_holds_back_what_was_routed_since_the_first_runs_trigger() -> (
    None
):
    @flow("slow", on="go")
    def slow(step: Step) -> Any:
        step.run("one", int)
        step.sleep("rest", "100 days")

    run = played("go")
    send("reply")
    drain()
    rerun(run.id, from_step="rest")
    drain()
    cancel(run.id)
    drain()
    later("40 days")
    assert "reply" in names()


def test_a_run_is_kept_as_long_as_another_that_took_over_steps_of_it() -> None:
    flow("done", on="go")(lambda step: [step.run("one", int), step.run("two", int)])
    first = played("go")
    advance("20 days")
    second = rerun(first.id, from_step="two")
    drain()
    plain = rerun(first.id)
    drain()
    later("20 days")
    assert is_kept(first), "its files may be those of the second"
    later("11 days")
    assert m.Run.objects.filter(pk__in=[second, plain]).count() == 0
    later("2 days")
    assert m.Run.objects.count() == 0


def test_what_a_wait_with_since_looks_back_to_is_kept() -> None:
    send("reply", {"n": 0})
    advance("1 day")
    send("reply", {"n": 1})
    advance("1 day")
    since = clock.now() - timedelta(days=1, minutes=1)

    @flow("asks", on="go")
    def asks(step: Step) -> Any:
        found = step.wait_for_event("reply", event="other", since=since, timeout="100 days")
        return found is not None

    played("go")
    later("20 days")
    assert [event.data for event in m.Event.objects.filter(name="reply")] == ['{"n":1}']


def test_an_event_that_ended_a_wait_is_kept_until_that_is_recorded() -> None:
    send("reply", {"n": 5})
    advance("1 day")

    @flow("asks", on="go")
    def asks(step: Step) -> Any:
        since = clock.now() - timedelta(days=2)
        found = step.wait_for_event("reply", event="reply", since=since, timeout="100 days")
        return found and found.data

    event = send("go")
    with once_at("wait_settled", _die):
        drain()
    m.Due.objects.update(state="parked", wake_at=None)  # as if nobody knew its flow for a while
    later("50 days")
    m.Due.objects.update(state="queued", wake_at=clock.now())
    drain()
    assert run_of(event).result == {"n": 5}


def _die() -> None:
    raise Crash


def test_an_event_that_is_gone_is_never_taken_for_a_timeout() -> None:
    send("reply", {"n": 5})
    advance("1 day")

    @flow("asks", on="go", retries=0)
    def asks(step: Step) -> Any:
        since = clock.now() - timedelta(days=2)
        return step.wait_for_event("reply", event="reply", since=since, timeout="100 days")

    event = send("go")
    with once_at("wait_settled", _die):
        drain()
    m.Event.objects.filter(name="reply").delete()
    drain()
    assert run_of(event).error["name"] == "UnknownEvent"
    assert "no longer kept" in run_of(event).error["message"]


def test_an_event_that_is_not_delivered_yet_is_kept() -> None:
    flow("late", on="go")(lambda: "came")
    event = send("go", ts=clock.now() + timedelta(days=50))
    later("40 days")
    advance("11 days")
    assert run_of(event).result == "came"


def test_nothing_that_came_after_an_event_which_is_not_routed_yet_is_purged() -> None:
    send("stuck")
    m.Event.objects.update(error="its router is away")
    other = send("other")
    m.Event.objects.filter(pk=other).update(routed=5, routed_at=clock.now())
    later("9 days")
    assert names() == ["stuck", "other"]


def test_a_withdrawn_event_is_purged_as_others() -> None:
    event = send("go", ts=clock.now() + timedelta(days=50))
    withdraw(event)
    drain()
    later("8 days")
    assert names() == []


def test_a_signal_that_was_sent_first_is_kept_until_it_expires() -> None:
    @flow("asks", on="go")
    def asks(step: Step) -> Any:
        found = step.wait_for_signal("door", "door", timeout="1h")
        return found and found.data

    send_signal("door", {"n": 1}, expires="60 days")
    send_signal("other", expires="1h")
    drain()
    later("59 days")
    (left,) = m.Event.objects.all()
    assert '"door"' in left.data
    assert played("go").result == {"n": 1}
    later("40 days")
    assert m.Event.objects.count() == 0


def test_a_signal_that_somebody_waits_for_is_kept_though_it_has_expired() -> None:
    flow("asks", on="go")(
        lambda step: step.wait_for_signal("door", "door", timeout="100 days") is not None
    )
    send_signal("door", expires="1h")
    drain()
    event = send("go")
    with once_at("wait_registered", _die):
        drain()
    later("30 days")
    drain()
    assert run_of(event).result is True


def test_a_decision_is_kept_until_it_is_recorded() -> None:
    flow("asks", on="go")(lambda step: step.wait_for_approval("may", timeout="1 day").approved)
    event = send("go")
    drain()
    decide(m.Approval.objects.get().pk, True, by="ada")
    route()
    later("40 days")
    drain()
    assert run_of(event).result is True


def test_an_event_that_was_set_aside_is_kept_as_long_as_failed_runs() -> None:
    send("bad")
    drain()
    m.Event.objects.update(quarantined=True)
    with keeping(failed=20):
        later("19 days")
        assert names() == ["bad"]
        later("2 days")
        assert names() == []


# -- ids of senders ----------------------------------------------------------------------------


def test_an_id_is_taken_for_as_long_as_its_event_is_kept() -> None:
    first = send("go", id="mine")
    drain()
    later("6 days")
    assert send("go", id="mine") == first
    later("2 days")
    second = send("go", id="mine")
    assert second != first
    assert send("go", id="mine") == second
    assert names() == ["go"]


def test_an_id_is_taken_for_a_day_however_short_events_are_kept() -> None:
    with keeping(events=0.01, completed=0.01):
        flow("done", on="go")(lambda: None)
        first = send("go", id="mine")
        send("go")
        drain()
        later("23h")
        assert names() == ["go"]
        assert send("go", id="mine") == first
        later("2h")
        assert send("go", id="mine") != first


def test_a_run_that_was_started_by_a_key_begins_anew_once_it_was_purged() -> None:
    once = flow("once")(lambda: None)
    first = once.start(key="k")
    drain()
    assert once.start(key="k") == first
    later("31 days")
    second = once.start(key="k")
    drain()
    assert second != first
    assert run_of(second).state == "completed"


def test_whoever_joins_a_run_that_is_gone_is_told_so_at_once() -> None:
    child = flow("child")(lambda: 1)

    @flow("parent", on="go")
    def parent(step: Step) -> Any:
        try:
            return step.invoke("child", child, key="k", timeout="10 days")
        except InvokeError as error:
            return [error.state, str(error)]

    with keeping(events=None):
        child.start(key="k")
        drain()
        later("31 days")
        state, said = played("go").result
    assert state == "gone"
    assert "is no longer kept" in said


def test_a_run_that_somebody_has_joined_is_kept_until_he_has_read_what_it_came_to() -> None:
    child = flow("child")(lambda: 1)
    flow("parent", on="go")(lambda step: step.invoke("child", child, key="k", timeout="200 days"))
    child.start(key="k")
    drain()
    advance("29 days", play=False)
    event = send("go")
    with once_at("before_child_settled", _die):
        drain()
    later("40 days")  # its wait is pending
    drain()
    assert run_of(event).result == 1


def test_a_joined_run_is_kept_while_whoever_joined_it_is_parked() -> None:
    @flow("child")
    def child(step: Step) -> int:
        step.sleep("rest", "1 day")
        return 1

    flow("parent", on="go")(lambda step: step.invoke("child", child, key="k", timeout="200 days"))
    child.start(key="k")
    drain()
    event = send("go")
    drain()
    advance("1 day", play=False)
    _end_the_child()
    m.Due.objects.filter(run__flow="parent").update(state="parked", wake_at=None)
    later("40 days")
    m.Due.objects.update(state="queued", wake_at=clock.now())
    drain()
    assert run_of(event).result == 1


def _end_the_child() -> None:
    """Let the child end, and its router tell of it; the parent does not come to read it."""
    execute.drain(bells.default_queue())
    route()


# -- commands --------------------------------------------------------------------------------


def failed_run() -> Any:
    def fails(step: Step) -> None:
        raise NonRetriableError("no")

    flow("fails", on="go")(fails)
    return played("go")


def test_a_run_that_a_command_is_about_is_kept_until_that_is_carried_out() -> None:
    run = failed_run()
    advance("31 days", play=False)
    retry(run.id)
    assert purge_now().get("failed", 0) == 0
    drain()
    assert m.Run.objects.get(pk=run.id).generation == 1


def test_a_run_that_is_gone_is_unknown_to_commands() -> None:
    run = failed_run()
    later("31 days")
    for command in (retry, rerun):
        with pytest.raises(UnknownRun, match="was it purged"):
            command(run.id)


def test_a_bulk_replay_leaves_out_what_is_gone() -> None:
    failed_run()
    send("go"), send("go")
    drain()
    advance("31 days", play=False)
    replay("fails", rate="1/h")
    drain()
    assert m.Run.objects.exclude(origin=None).count() == 1
    purge_now()
    advance("5h")
    assert m.Run.objects.exclude(origin=None).count() == 1
    assert m.BulkAction.objects.get().state == "done"


def test_bulk_actions_that_are_over_are_purged() -> None:
    resting()
    cancel_all(created_before=clock.now())
    drain()
    later("29 days")
    assert m.BulkAction.objects.count() == 1
    later("2 days")
    assert m.BulkAction.objects.count() == 0


def test_deployments_that_have_long_been_silent_are_purged() -> None:
    m.Deployment.objects.create(
        digest="old", flows="{}", first_seen_at=clock.now(), alive_at=clock.now()
    )
    old = m.Deployment.objects.filter(digest="old")  # that of this process may stand beside it
    later("6 days")
    assert old.exists()
    later("2 days")
    assert not old.exists()


# -- files -----------------------------------------------------------------------------------


def with_files(count: int) -> list[UUID]:
    """Ended runs with results that are elsewhere."""
    flow("done", on="go")(lambda step: step.run("one", int))
    for _ in range(count):
        send("go")
    drain()
    runs = list(m.Run.objects.order_by("pk").values_list("pk", flat=True))
    for run in runs:
        m.Step.objects.filter(run=run).update(output=named(run, "step"))
        m.Run.objects.filter(pk=run).update(result=named(run, "run"))
    advance("31 days", play=False)
    return runs


def named(run: object, kind: str) -> str:
    return envelopes.filed(f"runs/{run}/{kind}.json", 9)


def test_the_files_of_a_run_are_forgotten_before_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = with_files(2)
    forgotten: set[str] = set()
    monkeypatch.setattr(files, "forget", forgotten.update)
    purge_now()
    assert forgotten == {named(run, kind) for kind in ("step", "run") for run in runs}
    assert rows(OF_A_RUN) == {}


def test_rows_stay_whose_files_could_not_be_deleted_and_others_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = with_files(3)

    def forget(texts: set[str]) -> None:
        if named(runs[1], "run") in texts:
            raise OSError("the storage is down")

    monkeypatch.setattr(files, "forget", forget)
    assert purge_now()["completed"] == 2
    assert list(m.Run.objects.values_list("pk", flat=True)) == [runs[1]]
    monkeypatch.setattr(files, "forget", lambda _: None)
    assert purge_now()["completed"] == 1


def test_no_transaction_has_very_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files(6)
    counts: list[int] = []
    monkeypatch.setattr(erase, "MOST_FILES", 4)
    monkeypatch.setattr(files, "forget", lambda texts: counts.append(len(texts)))
    assert purge_now()["completed"] == 6
    assert sum(counts) == 12
    assert max(counts) <= 4


# -- turns -----------------------------------------------------------------------------------


def many(count: int) -> None:
    flow("done", on="go")(lambda: None)
    for _ in range(count):
        send("go")
    drain()


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(bells, "purge", lambda: found.append("purge"))
    return found


def test_a_tick_rings_for_a_purge_when_it_is_time_to(rung: list[str]) -> None:
    def ticks() -> int:
        rung.clear()
        advance("1m", play=False)
        tick.tick()
        return len(rung)

    assert ticks() == 1
    purge.take_turn()
    assert ticks() == 0
    advance("10m", play=False)
    assert ticks() == 1


def test_one_process_at_a_time_purges() -> None:
    mine = purge._take()
    assert mine is not None
    assert not purge.is_due()
    assert purge.take_turn() is None
    purge._leave(mine)
    assert purge.take_turn() is not None


def test_whoever_dies_is_followed_by_another_that_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many(4)
    advance("31 days", play=False)
    monkeypatch.setattr(retention, "next_size", lambda size, took, most: 1)
    first = purge._take()
    assert first is not None
    first.size = 2
    assert first.notes.underway is not None
    purge._next_batch(first, first.notes.underway, rests=False)
    assert m.Run.objects.count() == 2
    assert purge.take_turn() is None  # it may be alive
    advance("61s", play=False)
    assert counted(purge.take_turn()) == {"completed": 2, "events": 2}
    assert not purge._note(first.turn, first.notes), "it still thinks that it is its turn"


def test_a_turn_ends_after_its_time_and_the_next_goes_on() -> None:
    many(3)
    advance("31 days", play=False)
    with override_settings(DURABLE_FLOWS={"PURGE_SECONDS": 1e-9, "PURGE_BATCH": 1}):
        turns = 0
        while m.Run.objects.exists():
            assert purge.take_turn() is not None
            turns += 1
            assert turns < 50
        assert turns == 3


def test_a_pass_begins_where_the_last_one_ended_and_once_a_day_at_the_beginning() -> None:
    flow("long", on="go")(lambda step: step.sleep("rest", "2 days"))
    resting("holds", "10 days")
    send("holds")
    run = played("go")
    advance("32 days")
    purge.take_turn()
    assert not is_kept(run)
    assert m.Run.objects.count() == 1  # it ended twelve days later
    advance("10 days", play=False)
    assert counted(purge.take_turn()) == {"completed": 1, "events": 1}


def test_a_pass_goes_by_the_settings_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    many(3)
    advance("31 days", play=False)
    mine = purge._take()
    assert mine is not None
    mine.size = 1
    assert mine.notes.underway is not None
    purge._next_batch(mine, mine.notes.underway, rests=False)
    purge._leave(mine)
    with keeping(completed=60, events=60):
        purge.take_turn()
        assert m.Run.objects.count() == 2


def test_notes_of_another_version_are_a_new_beginning() -> None:
    many(1)
    advance("31 days", play=False)
    m.Purge.objects.create(
        id=1, turn=7, held_until=clock.now(), next_at=clock.now(), notes='{"underway": {"x": 1}}'
    )
    assert counted(purge.take_turn()) == {"completed": 1, "events": 1}


def test_a_row_that_cannot_be_purged_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many(3)
    bad = m.Run.objects.order_by("pk")[1].pk
    advance("31 days", play=False)
    delete = erase.runs

    def runs(bounds: Any, ids: Any) -> Any:
        if bad in ids:
            raise ValueError("odd")
        return delete(bounds, ids)

    monkeypatch.setattr(erase, "runs", runs)
    assert purge_now()["completed"] == 2
    assert list(m.Run.objects.values_list("pk", flat=True)) == [bad]


def test_a_purge_that_fails_again_and_again_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    many(3)
    advance("31 days", play=False)
    monkeypatch.setattr(purge, "MOST_FAILURES", 1)

    def runs(*_: object) -> Any:
        raise OSError("the storage is down")

    with monkeypatch.context() as patch:
        patch.setattr(erase, "runs", runs)
        with pytest.raises(OSError, match="down"):
            purge.take_turn()
    assert not purge.is_due()
    advance("10m", play=False)
    assert counted(purge.take_turn()) == {"completed": 1, "events": 1}
    assert counted(purge_now()) == {"completed": 2, "events": 2}


def test_what_is_purged_and_kept_is_counted_beforehand() -> None:
    resting()
    many(3)
    first = m.Event.objects.get(pk=send("before"))
    drain()
    run = played("rest")
    send("since"), send_signal("door", expires="300 days")
    drain()
    advance("31 days", play=False)
    found = census.take()
    assert found.gone == {"completed": 3, "events": 4}
    assert found.held == {"triggers": 1, "events": 2}
    assert found.oldest is not None
    assert str(found.oldest.id) == run.id
    assert counted(purge_now()) == {"completed": 3, "events": 4}
    assert not m.Event.objects.filter(pk=first.pk).exists()


def test_advancing_the_clock_in_a_test_purges_nothing() -> None:
    many(1)
    advance("300 days")
    assert m.Run.objects.count() == 1


def test_a_retry_of_what_was_purged_meanwhile_is_refused_with_the_reason() -> None:
    run = failed_run()
    retry(run.id)
    m.Run.objects.all().delete()
    drain()
    assert "there is no run" in m.Event.objects.get(name=events.RETRY).error


def test_a_completed_run_is_still_no_failed_one() -> None:
    many(1)
    with pytest.raises(IllegalTransition):
        retry(m.Run.objects.get().pk)
