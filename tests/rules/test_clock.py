import os
import subprocess
import sys
from datetime import UTC, timedelta

import pytest
import time_machine

from durable_flows.rules import clock

NOON = 1_772_366_400.0  # 2026-03-01 12:00 UTC


@pytest.fixture(autouse=True)
def at_noon(monkeypatch):
    monkeypatch.delenv(clock.VARIABLE, raising=False)
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller
    clock.reset()
    os.environ.pop(clock.VARIABLE, None)


def seconds():
    return clock.now().timestamp() - NOON


def test_it_tells_real_time_aware_and_in_utc():
    assert seconds() == 0
    assert clock.now().tzinfo is UTC


def test_it_goes_on_by_itself(at_noon):
    at_noon.shift(5)
    assert seconds() == 5


def test_it_can_be_moved_forward(at_noon):
    clock.advance(timedelta(hours=1))
    clock.advance(timedelta(minutes=1))
    at_noon.shift(5)
    assert seconds() == 3665


def test_reset_puts_it_back():
    clock.advance(timedelta(hours=1))
    clock.run_at(60)
    clock.reset()
    assert seconds() == 0
    assert clock.real(1) == timedelta(seconds=1)
    assert clock.VARIABLE not in os.environ


def test_at_speed_an_hour_passes_in_a_second(at_noon):
    clock.run_at(3600)
    assert seconds() == 0
    at_noon.shift(2)
    assert seconds() == 7200


def test_real_seconds_stay_real_whatever_the_speed(at_noon):
    clock.run_at(3600)
    assert clock.real(30) == timedelta(hours=30)
    assert clock.real_seconds_until(clock.now() + timedelta(hours=2)) == 2
    assert clock.real_seconds_until(clock.now() - timedelta(hours=1)) == -1


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_a_clock_does_not_stand_still_or_go_back(speed):
    with pytest.raises(ValueError, match="positive"):
        clock.run_at(speed)
    assert clock.VARIABLE not in os.environ


def test_child_processes_inherit_anchor_and_speed(at_noon):
    clock.run_at(3600)
    at_noon.shift(10)
    here = clock.now()
    anchor, _, speed = os.environ[clock.VARIABLE].partition(":")
    assert (float(anchor), float(speed)) == (NOON, 3600)
    show = (
        "import time; time.time = lambda: %r\n"
        "from durable_flows.rules import clock; print(clock.now().isoformat())" % (NOON + 10)
    )
    told = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert told.strip() == here.isoformat()


# -- the database's clock --------------------------------------------------------------------


def test_a_clock_that_is_ahead_or_behind_is_corrected():
    clock.correct(clock.now() + timedelta(seconds=10), asked=NOON, answered=NOON)
    assert seconds() == 10
    clock.correct(clock.now().fromtimestamp(NOON - 10, UTC), asked=NOON, answered=NOON)
    assert seconds() == -10


def test_a_difference_within_the_time_that_the_question_took_is_none(at_noon):
    database = clock.now()
    clock.correct(database, asked=NOON - 1, answered=NOON + 0.5)
    assert seconds() == 0


def test_a_slow_answer_is_taken_to_be_from_the_middle():
    clock.correct(clock.now() + timedelta(seconds=10), asked=NOON, answered=NOON + 2)
    assert seconds() == 9


def test_a_correction_replaces_the_one_before():
    clock.correct(clock.now() + timedelta(seconds=10), asked=NOON, answered=NOON)
    clock.correct(clock.now().fromtimestamp(NOON, UTC), asked=NOON, answered=NOON)
    assert seconds() == 0


def test_a_correction_leaves_what_was_advanced():
    clock.advance(timedelta(hours=1))
    clock.correct(clock.now().fromtimestamp(NOON + 10, UTC), asked=NOON, answered=NOON)
    assert seconds() == 3610
