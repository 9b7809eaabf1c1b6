"""Sleeping: never early by the clock, and the end is fixed when it begins."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from durable_flows import flow
from durable_flows.models import Due
from durable_flows.models import Step as StoredStep
from durable_flows.testing import advance, crash_after, drain
from tests.promises.staging import again, now, played

pytestmark = pytest.mark.django_db


def sleeper(*arguments: Any, tool: str = "sleep") -> list[datetime]:
    """A flow that sleeps once; the list tells when its handler was on either side of it."""
    seen: list[datetime] = []

    @flow("sleeper", on="go")
    def handler(step):
        seen.append(now())
        getattr(step, tool)("nap", *arguments)
        seen.append(now())

    return seen


@pytest.mark.parametrize("duration", ["1h", 3600, 3600.0, timedelta(hours=1), "60 minutes"])
def test_a_sleep_ends_after_its_duration_and_not_before(duration):
    seen = sleeper(duration)
    run = played()
    assert again(run).activity == "waiting"
    advance("59m 55s")
    assert len(seen) == 1
    advance("10s")
    assert again(run).state == "completed"
    begun, _, ended = seen
    assert ended - begun >= timedelta(hours=1)


def test_a_sleeping_run_holds_no_worker():
    sleeper("1h")
    played()
    due = Due.objects.get()
    assert due.state == "waiting"
    assert drain() == 0


def test_the_end_is_fixed_when_the_sleep_begins():
    durations = ["1h"]

    @flow("sleeper", on="go")
    def handler(step):
        step.sleep("nap", durations[-1])

    run = played()
    end = again(run).wake_at
    durations.append("1 day")
    Due.objects.update(wake_at=now())
    drain()
    assert again(run).wake_at == end
    advance("1h")
    assert again(run).state == "completed"


def test_something_else_that_wakes_the_run_does_not_shorten_the_sleep():
    seen = sleeper("1h")
    run = played()
    Due.objects.update(wake_at=now())
    drain()
    assert again(run).activity == "waiting"
    assert len(seen) == 2  # twice before the sleep, never after it


def test_a_crash_does_not_lengthen_the_sleep():
    @flow("sleeper", on="go")
    def handler(step):
        step.sleep("nap", "1h")

    with crash_after("nap"):
        run = played()
    end = StoredStep.objects.get().until
    advance("30m")
    assert again(run).wake_at == end
    advance("31m")
    assert again(run).state == "completed"


def test_sleeps_add_up():
    seen: list[datetime] = []

    @flow("sleeper", on="go")
    def handler(step):
        seen.append(now())
        for _ in range(3):
            step.sleep("nap", "1 day")
        seen.append(now())

    played()
    advance("4 days")
    assert seen[-1] - seen[0] >= timedelta(days=3)


def test_no_duration_goes_on_at_once():
    seen = sleeper(0)
    assert played().state == "completed"
    assert len(seen) == 2


def test_366_days_are_the_longest():
    sleeper("366 days")
    run = played()
    assert run.activity == "waiting"
    advance("366 days")
    assert again(run).state == "completed"


@pytest.mark.parametrize("duration", ["367 days", -1, "soon", "90", None, float("nan"), 10**12])
def test_a_duration_that_is_none_fails_the_run_at_once_and_names_the_step(duration):
    sleeper(duration)
    run = played()
    assert run.state == "failed"
    assert run.error["name"] == "InvalidDuration"
    assert "'nap'" in run.error["message"]
    assert run.attempts == {}


# -- until -----------------------------------------------------------------------------------


def test_a_sleep_until_a_moment_ends_at_it_and_not_before():
    until = now() + timedelta(hours=1)
    seen = sleeper(until, tool="sleep_until")
    run = played()
    assert again(run).wake_at == until
    advance("59m 50s")
    assert len(seen) == 1
    advance("15s")
    assert seen[-1] >= until
    assert again(run).state == "completed"


@pytest.mark.parametrize("past", [datetime(2020, 1, 1, tzinfo=UTC), date(2020, 1, 1), "2020-01-01"])
def test_a_moment_that_has_passed_is_no_sleep(past):
    sleeper(past, tool="sleep_until")
    assert played().state == "completed"


def tomorrow_in(zone: str) -> date:
    return (now() + timedelta(days=1)).astimezone(ZoneInfo(zone)).date()


@pytest.mark.parametrize("spelling", [lambda day: day, date.isoformat])
def test_a_date_is_its_first_moment_in_the_current_time_zone(settings, spelling):
    settings.TIME_ZONE = "Pacific/Auckland"
    day = tomorrow_in("Pacific/Auckland")
    sleeper(spelling(day), tool="sleep_until")
    midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo("Pacific/Auckland"))
    assert played().wake_at == midnight


def test_a_naive_datetime_is_in_the_current_time_zone(settings):
    settings.TIME_ZONE = "America/New_York"
    day = tomorrow_in("America/New_York")
    moment = datetime(day.year, day.month, day.day, 15)  # noqa: DTZ001
    sleeper(moment, tool="sleep_until")
    assert played().wake_at == moment.replace(tzinfo=ZoneInfo("America/New_York"))


def test_a_zone_that_is_given_counts():
    day = tomorrow_in("Asia/Tokyo")
    sleeper(f"{day.isoformat()}T09:00:00+09:00", tool="sleep_until")
    run = played()
    assert run.wake_at == datetime(day.year, day.month, day.day, tzinfo=UTC)


def test_the_moment_is_fixed_when_the_sleep_begins():
    moments = [now() + timedelta(hours=1)]

    @flow("sleeper", on="go")
    def handler(step):
        step.sleep_until("nap", moments[-1])

    run = played()
    moments.append(now() + timedelta(days=7))
    advance("61m")
    assert again(run).state == "completed"


def test_a_fixed_moment_stays_fixed_whatever_the_code_asks_for_later():
    """Deployed in mid-sleep: what is recorded is not argued with."""
    moments: list[Any] = [now() + timedelta(hours=1)]

    @flow("sleeper", on="go")
    def handler(step):
        step.sleep_until("nap", moments[-1])

    run = played()
    moments.append(now() + timedelta(days=400))
    advance("61m")
    assert again(run).state == "completed"


@pytest.mark.parametrize(
    "moment",
    [timedelta(days=1), 7, None, "tomorrow", "2026-13-01", datetime(2099, 1, 1, tzinfo=UTC)],
)
def test_a_moment_that_is_none_fails_the_run_at_once_and_names_the_step(moment):
    sleeper(moment, tool="sleep_until")
    run = played()
    assert run.state == "failed"
    assert run.error["name"] == "InvalidDuration"
    assert "'nap'" in run.error["message"]
