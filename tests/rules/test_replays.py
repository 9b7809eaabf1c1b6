"""What a replay has met of what is recorded, and what it has not."""

from __future__ import annotations

import pytest

from durable_flows.rules.replays import Replay, is_past, line_of, place_in


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("charge", ""),
        ("a/b[1]", ""),
        ("parallel[0]/charge", "parallel[0]/"),
        ("race#2[13]/charge#2", "race#2[13]/"),
        ("task[1]/parallel[0]/x", "task[1]/parallel[0]/"),
        ("task[1]", ""),
    ],
)
def test_a_key_belongs_to_the_line_that_its_branches_lead_to(key: str, line: str) -> None:
    assert line_of(key) == line


@pytest.mark.parametrize(
    ("line", "key", "place"),
    [
        ("", "charge", "charge"),
        ("", "parallel#2[0]/charge", "parallel#2"),
        ("parallel[0]/", "parallel[0]/race[1]/x", "parallel[0]/race"),
        ("parallel[0]/", "parallel[1]/x", ""),
        ("", "task[0]/x", ""),
        ("task[0]/", "task[0]/x", "task[0]/x"),
        ("", "charge#intent", "charge"),
        ("", "charge#undo", ""),
        ("", "patched:new-mail", ""),
    ],
)
def test_a_key_has_a_place_in_each_line_above_it(line: str, key: str, place: str) -> None:
    assert place_in(line, key) == place


@pytest.mark.parametrize(
    ("recorded", "line", "met", "tasks", "past"),
    [
        ([], "", set(), 0, False),
        (["a"], "", {"a"}, 0, False),
        (["a", "b"], "", {"a"}, 0, True),
        (["a", "both[0]"], "", {"a", "both"}, 0, False),  # one of several waits of a step
        (["item[0]"], "", {"item[0]"}, 0, False),
        (["parallel[0]/x"], "", set(), 0, True),
        (["parallel[0]/x"], "", {"parallel"}, 0, False),
        (["task[0]/x"], "", set(), 0, True),
        (["task[0]/x"], "", set(), 1, False),
        (["b"], "parallel[0]/", set(), 0, False),
        (["parallel[0]/b"], "parallel[0]/", set(), 0, True),
    ],
)
def test_a_run_was_further_along_a_line_where_it_has_what_the_replay_has_not_met(
    recorded: list[str], line: str, met: set[str], tasks: int, past: bool
) -> None:
    assert is_past(recorded, line, met, tasks) is past


def test_what_comes_after_is_the_first_of_the_same_line_that_is_yet_to_be_met() -> None:
    replay = Replay(["a", "parallel[0]/x", "b", "task[0]/t", "c"])
    replay.meet("a")
    assert replay.after("new") == "parallel[0]/x"
    replay.meet("parallel")
    assert replay.after("new") == "b"
    assert replay.after("parallel[0]/new") == "parallel[0]/x"
    assert replay.after("parallel[1]/new") == ""
    assert replay.after("parallel[0]/race[1]/new") == "parallel[0]/x"
    assert replay.after("race[1]/new") == "b"
    assert replay.after("task[1]/new") == ""
    replay.meet("b")
    replay.meet("c")
    assert replay.after("new") == ""


def test_what_is_left_is_what_no_line_has_met() -> None:
    replay = Replay(["a", "parallel[0]/x", "parallel[1]/y", "patched:p", "task[0]/t", "a#undo"])
    for key in ("a", "parallel", "parallel[1]/y"):
        replay.meet(key)
    assert replay.left() == "parallel[0]/x"
    replay.meet("parallel[0]/x")
    assert replay.left() == ""


def test_branches_that_have_not_decided_their_group_need_not_be_met() -> None:
    replay = Replay(["race[0]/x", "race[1]/y", "race", "after"])
    for key in ("race", "race[1]/y", "after"):
        replay.meet(key)
    assert replay.left() == "race[0]/x"
    replay.decide("race")
    assert replay.left() == ""
