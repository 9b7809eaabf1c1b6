from datetime import timedelta

import pytest

from durable_flows.errors import InvalidDuration, InvalidInput, InvalidKey, InvalidOption
from durable_flows.rules.options import CancelOn, check_event_name, longest_wait


def test_a_cancel_rule_without_a_timeout_holds_for_366_days():
    rule = CancelOn("cart/emptied")
    assert (rule.event, rule.match, rule.timeout) == ("cart/emptied", None, timedelta(days=366))


@pytest.mark.parametrize("timeout", ["24h", 86_400, timedelta(days=1)])
def test_its_timeout_is_a_duration_in_any_form(timeout):
    assert CancelOn("a", timeout=timeout).timeout == timedelta(days=1)


def test_equal_rules_are_equal():
    assert CancelOn("a", match="data.x", timeout="24h") == CancelOn("a", "data.x", "1 day")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"event": ""}, InvalidOption, "CancelOn: an event's name has 1 to 256"),
        ({"event": " a"}, InvalidOption, "blanks"),
        ({"event": None}, InvalidOption, "CancelOn"),
        ({"event": "a", "match": "cart_id"}, InvalidKey, 'did you mean "data.cart_id"'),
        ({"event": "a", "match": ""}, InvalidKey, "CancelOn.match"),
        ({"event": "a", "match": "data.x == 1"}, InvalidKey, "CancelOn.match"),
        ({"event": "a", "match": 7}, InvalidKey, "CancelOn.match"),
        ({"event": "a", "timeout": "367 days"}, InvalidDuration, "CancelOn.timeout"),
        ({"event": "a", "timeout": "soon"}, InvalidDuration, "CancelOn.timeout"),
        ({"event": "a", "timeout": -1}, InvalidDuration, "CancelOn.timeout"),
        ({"event": "a", "timeout": None}, InvalidDuration, "CancelOn.timeout"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused_where_it_is_written(arguments, error, says):
    with pytest.raises(error) as caught:
        CancelOn(**arguments)
    assert says in str(caught.value)
    assert isinstance(caught.value, InvalidInput)


def test_an_events_name_is_checked_and_its_place_named():
    assert check_event_name("order/placed", "somewhere") == "order/placed"
    with pytest.raises(InvalidOption, match="^flow 'x', on=: .*blanks"):
        check_event_name(" a", "flow 'x', on=")


def test_nothing_waits_longer_than_366_days():
    assert longest_wait("366 days", what="x") == timedelta(days=366)
    with pytest.raises(InvalidDuration, match="^x: .*366"):
        longest_wait("366 days 1s", what="x")
