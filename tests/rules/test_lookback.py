from datetime import UTC, datetime

import pytest

from durable_flows.rules.lookback import LookBack, Position

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def looking():
    return LookBack(5)


def test_at_first_a_wait_looks_back_to_the_trigger(looking):
    assert looking.eligible == looking.trigger == Position(5)


def test_after_the_first_action_it_still_does(looking):
    """The reply may be faster than the record of what asked for it."""
    looking.acted(7)
    assert looking.eligible == Position(5)


def test_after_an_action_it_looks_back_to_the_entry_before(looking):
    looking.acted(7)
    looking.acted(9)
    looking.acted(12)
    assert looking.eligible == Position(9)


def test_waits_move_nothing(looking):
    looking.acted(7)
    looking.acted(9)
    looking.waited(11)
    looking.waited(13)
    assert looking.eligible == Position(7)


def test_a_wait_is_an_entry_to_which_the_next_action_looks_back(looking):
    looking.acted(7)
    looking.waited(11)
    looking.acted(13)
    assert looking.eligible == Position(11)


def test_a_sleep_means_from_its_end_on(looking):
    looking.acted(7)
    looking.slept(9, NOON)
    assert looking.eligible == Position(9, NOON)


def test_waits_after_a_sleep_do_not_reach_behind_it(looking):
    looking.slept(9, NOON)
    looking.waited(11)
    assert looking.eligible == Position(9, NOON)


def test_the_first_action_after_a_sleep_looks_back_to_its_end(looking):
    looking.slept(9, NOON)
    looking.acted(11)
    assert looking.eligible == Position(9, NOON)
    looking.acted(13)
    assert looking.eligible == Position(11)


def test_the_later_of_two_sleeps_counts(looking):
    later = NOON.replace(hour=13)
    looking.slept(9, NOON)
    looking.slept(10, later)
    assert looking.eligible == Position(10, later)


def test_the_trigger_is_never_forgotten(looking):
    looking.acted(7)
    looking.slept(9, NOON)
    assert looking.trigger == Position(5)
