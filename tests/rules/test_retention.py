"""The moments, places and sizes that a purge goes by."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from durable_flows.rules import clock, keys, retention
from durable_flows.rules.retention import EVER, Bounds, Keep, Needs, Notes, Pass, Stage

NOW = datetime(2026, 11, 21, 12, 30, 15, 123456, tzinfo=UTC)
WEEK = Keep(events=7, completed=30, failed=60, cancelled=None)


def bounds(keep: Keep = WEEK, **needs: object) -> Bounds:
    return Bounds.of(keep, Needs(**needs), NOW)  # type: ignore[arg-type]


def test_what_is_older_than_the_setting_may_go() -> None:
    found = bounds()
    assert found.events == NOW - timedelta(days=7)
    assert found.completed == NOW - timedelta(days=30)
    assert found.failed == found.aside == NOW - timedelta(days=60)


@pytest.mark.parametrize("days", [None, 36_500, 1e9, 1e300])
def test_for_ever_is_none_and_whatever_is_as_long(days: float | None) -> None:
    assert bounds(replace(WEEK, completed=days)).completed == EVER


def test_an_id_of_a_senders_own_is_taken_for_a_day_at_least() -> None:
    found = bounds(replace(WEEK, events=0.5))
    assert found.events == NOW - timedelta(hours=12)
    assert found.keyed == NOW - timedelta(days=1)
    assert bounds().keyed == bounds().events


def test_what_came_after_an_unrouted_event_stays() -> None:
    long_ago = NOW - timedelta(days=100)
    found = bounds(unrouted_since=long_ago)
    assert {found.events, found.keyed, found.aside} == {long_ago}
    assert found.completed == NOW - timedelta(days=30)


def test_a_walk_ends_where_nothing_can_be_old_enough() -> None:
    found = bounds()
    assert retention.moment_of(found.runs_end) == _cut(found.completed)
    assert retention.moment_of(found.events_end) == _cut(found.events)
    assert bounds(Keep(events=None, completed=None, failed=None, cancelled=None)).runs_end.int == 0


def _cut(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_a_place_is_before_all_ids_of_its_millisecond() -> None:
    before = clock.now()
    event = uuid7()
    run = keys.flow_run_id("flow", event)
    for id_ in (event, run):
        assert retention.first_id(before) < id_
        assert id_ < retention.first_id(before + timedelta(seconds=5))
        assert abs(retention.moment_of(id_) - before) < timedelta(seconds=5)


def test_a_transaction_grows_and_shrinks_with_the_time_that_the_last_one_took() -> None:
    target = retention.TARGET
    assert retention.next_size(50, target, 500) == 50
    assert retention.next_size(50, target / 10, 500) == 100
    assert retention.next_size(50, target * 10, 500) == 25
    assert retention.next_size(400, 0.0, 500) == 500
    assert retention.next_size(1, 100.0, 500) == 1


def test_notes_are_read_as_they_were_written() -> None:
    underway = Pass(
        at=NOW,
        keep=str(WEEK),
        bounds=bounds(horizon=17, received_since=NOW),
        stage=Stage.EVENTS,
        place=UUID(int=5),
        events_from=UUID(int=3),
    )
    for notes in (Notes(), Notes(runs_from=UUID(int=7), whole_at=NOW, underway=underway)):
        assert Notes.from_text(notes.as_text()) == notes


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"underway": {}}', "null", "7"])
def test_notes_that_cannot_be_read_are_a_new_beginning(text: str) -> None:
    assert Notes.from_text(text) == Notes()


def test_a_pass_goes_by_fresh_bounds_only() -> None:
    underway = Pass(
        at=NOW,
        keep=str(WEEK),
        bounds=bounds(),
        stage=Stage.RUNS,
        place=UUID(int=0),
        events_from=UUID(int=0),
    )
    assert underway.is_fresh(WEEK, NOW + timedelta(minutes=9))
    assert not underway.is_fresh(WEEK, NOW + timedelta(minutes=11))
    assert not underway.is_fresh(WEEK, NOW - timedelta(minutes=1))
    assert not underway.is_fresh(replace(WEEK, events=8), NOW)
