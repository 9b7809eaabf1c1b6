"""Which runs are meant, and how fast they are dealt with."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, date, datetime

import pytest

from durable_flows.errors import InvalidDuration, InvalidExpression, InvalidOption
from durable_flows.rules.selection import Selection, per_second


def select(**said):
    nothing = dict.fromkeys(["created_after", "created_before", "reason_contains", "if_"])
    return Selection.of("it", **{"flow": "", "states": (), "tz": UTC, **nothing, **said})


@pytest.mark.parametrize(
    ("text", "number"),
    [("10/s", 10), ("90/m", 1.5), ("120/min", 2), ("36 / h", 0.01), ("86400/d", 1), ("0.5/s", 0.5)],
)
def test_a_rate_is_a_number_for_a_time(text, number):
    assert per_second(text, what="rate=") == pytest.approx(number)


@pytest.mark.parametrize(
    "text", ["", "10", "0/s", "-1/s", "10/y", "fast", 10, None, "10001/s", "1/s/s"]
)
def test_a_rate_that_means_nothing_is_refused(text):
    with pytest.raises(InvalidOption, match=r'rate= is a number for a time, as in "10/s"'):
        per_second(text, what="rate=")


def test_it_can_be_stored_as_json():
    found = select(
        flow="f",
        states=["failed"],
        created_after=date(2026, 3, 1),
        reason_contains="x",
        if_="event.data.a == 1",
    )
    assert Selection.from_dict(json.loads(json.dumps(asdict(found)))) == found
    assert (found.after, found.before) == (datetime(2026, 3, 1, tzinfo=UTC), None)


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ({"states": ["waiting"]}, InvalidOption, "state= is any of cancelled, completed"),
        ({"created_after": "soon"}, InvalidDuration, "created_after="),
        ({"created_before": 7}, InvalidDuration, "created_before="),
        ({"reason_contains": 7}, InvalidOption, "reason_contains="),
        ({"reason_contains": "\0"}, InvalidOption, "reason_contains="),
        ({"if_": "event.data."}, InvalidExpression, "if_="),
    ],
)
def test_what_cannot_be_understood_is_refused(said, error, match):
    with pytest.raises(error, match=match):
        select(**said)


def test_one_state_may_be_named_alone():
    assert select(states="failed").states == ("failed",)
