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
    looking.acted(looking.latest, 7)
    assert looking.eligible == Position(5)


def test_after_an_action_it_looks_back_to_the_entry_before(looking):
    looking.acted(looking.latest, 7)
    looking.acted(looking.latest, 9)
    looking.acted(looking.latest, 12)
    assert looking.eligible == Position(9)


def test_waits_move_nothing(looking):
    looking.acted(looking.latest, 7)
    looking.acted(looking.latest, 9)
    looking.waited(11)
    looking.waited(13)
    assert looking.eligible == Position(7)


def test_a_wait_is_an_entry_to_which_the_next_action_looks_back(looking):
    looking.acted(looking.latest, 7)
    looking.waited(11)
    looking.acted(looking.latest, 13)
    assert looking.eligible == Position(11)


def test_a_sleep_means_from_its_end_on(looking):
    looking.acted(looking.latest, 7)
    looking.slept(9, NOON)
    assert looking.eligible == Position(9, NOON)


def test_waits_after_a_sleep_do_not_reach_behind_it(looking):
    looking.slept(9, NOON)
    looking.waited(11)
    assert looking.eligible == Position(9, NOON)


def test_the_first_action_after_a_sleep_looks_back_to_its_end(looking):
    looking.slept(9, NOON)
    looking.acted(looking.latest, 11)
    assert looking.eligible == Position(9, NOON)
    looking.acted(looking.latest, 13)
    assert looking.eligible == Position(11)


def test_the_later_of_two_sleeps_counts(looking):
    later = NOON.replace(hour=13)
    looking.slept(9, NOON)
    looking.slept(10, later)
    assert looking.eligible == Position(10, later)


def test_the_trigger_is_never_forgotten(looking):
    looking.acted(looking.latest, 7)
    looking.slept(9, NOON)
    assert looking.trigger == Position(5)


def test_the_reply_to_the_slower_of_two_actions_at_once_is_not_missed(looking):
    """Both began at the trigger; what the first one's record came after may answer the second."""
    began = looking.latest
    looking.acted(began, 7)
    looking.acted(began, 9)
    assert looking.eligible == Position(5)


def test_an_action_after_two_at_once_looks_back_to_the_later_of_them(looking):
    began = looking.latest
    looking.acted(began, 9)
    looking.acted(began, 7)
    looking.acted(looking.latest, 12)
    assert looking.eligible == Position(9)


def test_a_branch_begins_where_its_parent_is_and_moves_nothing_there(looking):
    looking.acted(looking.latest, 7)
    branch = looking.branch()
    assert (branch.latest, branch.eligible) == (looking.latest, looking.eligible)
    branch.acted(branch.latest, 11)
    assert (looking.latest, looking.eligible) == (Position(7), Position(5))


def test_a_branch_that_has_acted_counts_as_one_action(looking):
    began = looking.latest
    branch = looking.branch()
    branch.acted(branch.latest, 7)
    branch.acted(branch.latest, 9)
    looking.joined(branch, began)
    assert (looking.eligible, looking.latest) == (Position(5), Position(9))


def test_a_branch_that_has_only_waited_moves_nothing(looking):
    looking.acted(looking.latest, 7)
    branch = looking.branch()
    branch.slept(9, NOON)
    looking.joined(branch, looking.latest)
    assert (looking.eligible, looking.latest) == (Position(5), Position(9))


def test_what_was_taken_over_looks_back_to_where_it_was_done():
    """Its entries are those of another run, and older than this one's trigger."""
    looking = LookBack(5, since=1)
    looking.acted(looking.latest, 2)
    assert looking.eligible == Position(1)
    looking.acted(looking.latest, 3)
    assert looking.eligible == Position(2)


def test_an_action_after_what_was_taken_over_looks_back_to_the_trigger():
    looking = LookBack(5, since=1)
    looking.acted(looking.latest, 3)
    looking.acted(looking.latest, 6)
    assert looking.eligible == Position(5)
    looking.acted(looking.latest, 8)
    assert looking.eligible == Position(6)
