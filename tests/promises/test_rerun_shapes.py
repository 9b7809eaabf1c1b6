"""rerun from a step, with an output: in the shape in which the step's tool reads it back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_flows import (
    Decision,
    Event,
    InvalidEvent,
    Signal,
    StepError,
    decide,
    flow,
    rerun,
    send,
    send_signal,
)
from durable_flows.errors import InvalidOption, UnknownStep
from durable_flows.models import Approval, Wait
from durable_flows.rules import events
from durable_flows.testing import advance, drain, run_of
from tests.promises.staging import again, played, stored

pytestmark = pytest.mark.django_db

SIGNAL = Signal(name="door", data={"n": 1}, sent_at=datetime(2026, 1, 2, tzinfo=UTC), id="given")
DECISION = Decision(
    approved=True, by="ada", at=datetime(2026, 1, 2, tzinfo=UTC), comment="yes", data={"n": 1}
)


def names(found: list[Event | None]) -> list[str | None]:
    return [event.name if event else None for event in found]


@pytest.fixture
def both():
    @flow("gathers", on="go")
    def gathers(step):
        step.run("first", lambda: None)
        return names(step.wait_for_events("both", ["a", "b"], timeout="1h"))

    return gathers


@pytest.fixture
def seen() -> list[Any]:
    return []


@pytest.fixture
def signalled(seen):
    @flow("signalled", on="go")
    def signalled(step):
        seen.append(step.wait_for_signal("wait", "door", timeout="1h"))

    return signalled


@pytest.fixture
def approved(seen):
    @flow("approved", on="go")
    def approved(step):
        seen.append(step.wait_for_approval("wait", timeout="1h"))

    return approved


def result_of(run: Any, step: str, output: Any) -> Any:
    second = rerun(run.id, from_step=step, output=output)
    drain()
    assert run_of(second).state == "completed"
    return run_of(second).result


# -- several events --------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["while it waits", "after its time", "after it was given"])
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, [None, None]),
        ([None, None], [None, None]),
        ([None, Event("b")], [None, "b"]),
        ((Event("a"), Event("b")), ["a", "b"]),
        ([Event("a")], ["a", None]),
    ],
)
def test_a_wait_for_several_events_can_be_given_a_list_of_them(both, output, expected, when):
    run = played()
    if when != "while it waits":
        advance("1h")
    if when == "after it was given":
        second = rerun(run.id, from_step="both", output=[Event("x"), Event("y")])
        drain()
        run = run_of(second)
    assert result_of(run, "both", output) == expected


@pytest.mark.parametrize(
    "output", [Event("a"), [Event("a"), {"name": "b"}], [None] * 3, SIGNAL, {}, "ab"]
)
def test_what_is_no_such_list_is_an_error_at_the_call(both, output):
    run = played()
    with pytest.raises(InvalidOption, match="'both' waits for several events: .* a list of 2"):
        rerun(run.id, from_step="both", output=output)
    with pytest.raises(InvalidEvent, match="/output/1/data"):
        rerun(run.id, from_step="both", output=[None, Event("b", {"x": {1}})])
    assert events.RERUN not in stored()


@pytest.mark.parametrize(("given", "expected"), [(None, 0), ([Event("a", {"n": 1})], 1)])
def test_what_is_collected_can_be_given(given, expected):
    @flow("collects", on="go")
    def collects(step):
        return len(step.collect("all", event="a", count=3, timeout="1h"))

    run = played()
    assert result_of(run, "all", given) == expected
    send("a")
    advance("1h")
    assert result_of(again(run), "all", given) == expected


def test_a_wait_for_several_events_that_is_open_can_be_where_a_run_begins(both):
    run = played()
    second = rerun(run.id, from_step="both")
    drain()
    assert run_of(second).step_keys == ["first"]
    for name in "ab":
        send(name)
    drain()
    assert run_of(second).result == again(run).result == ["a", "b"]


def test_a_wait_for_several_events_is_executed_again_with_all_of_its_waits(both):
    run = played()
    send("a")
    advance("1h")
    assert again(run).result == ["a", None]
    second = rerun(run.id, from_step="both")
    drain()
    assert run_of(second).step_keys == ["first", "both[0]"]
    send("b")
    drain()
    assert run_of(second).result == ["a", "b"]


# -- signals and approvals -------------------------------------------------------------------


@pytest.mark.parametrize("when", ["while it waits", "after its time", "after the signal"])
def test_a_wait_for_a_signal_can_be_given_one(signalled, seen, when):
    run = played()
    if when == "after the signal":
        send_signal("door")
    advance("1h" if when == "after its time" else 1)
    result_of(run, "wait", SIGNAL)
    assert seen[-1] == SIGNAL
    result_of(run, "wait", None)
    assert seen[-1] is None


def test_one_whose_name_was_taken_can_be_given_its_signal(signalled, seen):
    played()
    run = played()
    assert again(run).error["name"] == "SignalTaken"
    result_of(run, "wait", SIGNAL)
    assert seen == [SIGNAL]


@pytest.mark.parametrize("when", ["while it waits", "after its time", "after the decision"])
def test_a_wait_for_an_approval_can_be_given_the_decision(approved, seen, when):
    run = played()
    if when == "after the decision":
        decide(Approval.objects.get().pk, False, by="bob")
    advance("1h" if when == "after its time" else 1)
    result_of(run, "wait", DECISION)
    assert seen[-1] == DECISION
    result_of(run, "wait", None)
    assert seen[-1] is None


def test_what_was_given_a_timeout_can_be_given_a_signal_afterwards(signalled, seen):
    """Its record says nothing, and its wait is that of the run whose steps it has taken over."""
    run = played()
    second = rerun(run.id, from_step="wait", output=None)
    drain()
    assert not Wait.objects.filter(run_id=second).exists()
    result_of(run_of(second), "wait", SIGNAL)
    assert seen == [None, SIGNAL]
    with pytest.raises(InvalidOption, match="a Signal, or None"):
        rerun(second, from_step="wait", output=Event("door"))


@pytest.mark.parametrize(
    ("waits_for", "output", "message"),
    [
        ("signalled", Event("door"), "waits for a signal: output= is a Signal, or None"),
        ("signalled", DECISION, "waits for a signal"),
        ("signalled", {"n": 1}, "waits for a signal"),
        ("approved", Event("yes"), "waits for an approval: output= is a Decision, or None"),
        ("approved", True, "waits for an approval"),
        ("approved", SIGNAL, "waits for an approval"),
    ],
)
def test_what_the_tool_would_not_return_is_an_error_at_the_call(
    request, waits_for, output, message
):
    request.getfixturevalue(waits_for)
    run = played()
    with pytest.raises(InvalidOption, match=message):
        rerun(run.id, from_step="wait", output=output)
    advance("1h")
    with pytest.raises(InvalidOption, match=message):
        rerun(run.id, from_step="wait", output=output)
    assert events.RERUN not in stored()


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        ({"data": {"n": {1}}}, InvalidEvent, "/output/data/n"),
        ({"data": []}, InvalidEvent, "/output/data"),
        ({"sent_at": "now"}, InvalidOption, "cannot be read"),
    ],
)
def test_a_signal_with_a_field_that_is_wrong_is_an_error_at_the_call(
    signalled, field, error, message
):
    run = played()
    with pytest.raises(error, match=message):
        rerun(run.id, from_step="wait", output=replace(SIGNAL, **field))
    assert events.RERUN not in stored()


# -- other tools -----------------------------------------------------------------------------


@pytest.fixture
def maps():
    @flow("kid")
    def kid(event, step):
        step.sleep("rest", "1h")
        return event.data["n"]

    @flow("maps", on="go")
    def maps(step):
        return [
            step.map("all", kid, [{"n": 1}, {"n": 2}]),
            step.send_event("tell", Event("told")),
            step.race(step.later.run("act", str, 1), step.later.sleep("rest", "1h")),
        ]

    return maps


def test_a_map_can_be_given_its_results_and_be_where_a_run_begins(maps):
    run = played()
    begun, given = rerun(run.id, from_step="all"), rerun(run.id, from_step="all", output=[7, None])
    drain()
    assert run_of(given).result[0] == [7, None]
    advance("1h")
    assert run_of(begun).result[0] == [1, 2]
    with pytest.raises(UnknownStep):
        rerun(run.id, from_step="all[0]")


@pytest.mark.parametrize(
    ("step", "output", "message"),
    [
        ("all", 7, "sends runs, so output= is the list of their results, not 7"),
        ("all", None, "the list of their results"),
        ("tell", "told", "sends events, so output= is the list of their ids, not 'told'"),
        ("tell", [1], "the list of their ids"),
        ("race", "mine", "which branch has won is decided by executing it"),
    ],
)
def test_an_output_that_cannot_fit_is_an_error_at_the_call(maps, step, output, message):
    run = played()
    advance("1h")
    with pytest.raises(InvalidOption, match=message):
        rerun(run.id, from_step=step, output=output)
    assert events.RERUN not in stored()


def test_a_race_that_is_executed_again_from_its_end_decides_again(maps):
    run = played()
    advance("1h")
    second = rerun(run.id, from_step="race")
    drain()
    assert run_of(second).result == again(run).result
    assert again(run).result[2] == "1"


def test_a_failure_that_a_wait_has_recorded_is_that_of_a_signal():
    @flow("polite", on="go")
    def polite(step):
        try:
            return step.wait_for_signal("wait", "door", timeout="1h")
        except StepError:
            return "taken"

    played()
    run = played()
    with pytest.raises(InvalidOption, match="waits for a signal"):
        rerun(run.id, from_step="wait", output=Event("door"))
