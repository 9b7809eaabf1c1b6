"""The settings: read live, checked, and refused with what they take."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from django.test import override_settings

from durable_flows import conf
from durable_flows.errors import InvalidSetting


def test_without_the_dict_there_are_defaults():
    with override_settings():
        from django.conf import settings

        del settings.DURABLE_FLOWS
        assert conf.settings() == conf.DEFAULTS


@pytest.mark.parametrize("raw", [{}, None])
def test_an_empty_dict_or_none_is_defaults(raw):
    with override_settings(DURABLE_FLOWS=raw):
        assert conf.settings() == conf.DEFAULTS


def test_what_is_set_is_used_and_the_rest_are_defaults():
    with override_settings(DURABLE_FLOWS={"QUEUE": "flows", "TICK_SECONDS": 1, "PREPARE": False}):
        found = conf.settings()
        assert (found.QUEUE, found.TICK_SECONDS, found.PREPARE) == ("flows", 1, False)
        assert found.LEASE_SECONDS == conf.DEFAULTS.LEASE_SECONDS


def test_they_are_read_live():
    with override_settings(DURABLE_FLOWS={"QUEUE": "one"}):
        assert conf.settings().QUEUE == "one"
        with override_settings(DURABLE_FLOWS={"QUEUE": "other"}):
            assert conf.settings().QUEUE == "other"
        assert conf.settings().QUEUE == "one"


def test_they_cannot_be_changed_in_passing():
    with pytest.raises(AttributeError):
        conf.settings().QUEUE = "x"  # type: ignore[misc]


def test_an_unknown_name_is_left_to_the_check():
    assert conf.parse({"QUEU": "x"}) == conf.DEFAULTS


_BY_TYPE: dict[str, list[Any]] = {
    "int": [0, -1, "10", 1.5, None, True, [1]],
    "float": [0, -1, 0.0, "5", None, True, [1], float("nan"), float("inf")],
    "bool": [0, 1, "true", None],
    "str": [7, None, b"x", True],
    "tuple[Any, ...] | list[Any]": ["a path", 7, None, {}],
    "Any": [7, None, True, []],  # a callable, or its path
    "float | None": [0, -1, 0.0, "5", True, [1], float("nan"), float("inf")],
}
WRONG = [
    (field.name, value)
    for field in fields(conf.Settings)
    for value in _BY_TYPE.get(str(field.type), [])
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_the_wrong_kind_is_refused_and_named(name, value):
    with pytest.raises(InvalidSetting) as caught:
        conf.parse({name: value})
    assert f'DURABLE_FLOWS["{name}"]' in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", sorted(conf.KEEPING))
def test_what_is_to_be_kept_for_ever_is_said_by_none(name):
    assert getattr(conf.parse({name: None}), name) is None
    assert getattr(conf.parse({name: 0.5}), name) == 0.5
    with pytest.raises(
        InvalidSetting, match="a number of days above 0, or None to keep them for ever"
    ):
        conf.parse({name: 0})


def test_every_setting_was_tried():
    assert {name for name, _ in WRONG} | {"RING"} == conf.NAMES


@pytest.mark.parametrize("value", ["Thread", "", None, True, 7, []])
def test_the_ring_is_one_of_three(value):
    with pytest.raises(InvalidSetting, match=r'"thread", "inline" or "off"'):
        conf.parse({"RING": value})


@pytest.mark.parametrize("value", ["thread", "inline", "off"])
def test_each_of_them_is_taken(value):
    found = conf.parse({"RING": value}).RING
    assert found == value


def test_seconds_may_be_whole_or_not():
    assert conf.parse({"TICK_SECONDS": 2}).TICK_SECONDS == 2
    assert conf.parse({"TICK_SECONDS": 0.5}).TICK_SECONDS == 0.5


def test_a_payloads_limits_are_those_of_the_settings():
    found = conf.parse({"MAX_DEPTH": 3, "MAX_KEYS": 4, "MAX_KEY_LENGTH": 5, "MAX_EVENT_BYTES": 6})
    limits = found.event_limits
    assert (limits.max_depth, limits.max_keys, limits.max_key_length, limits.max_bytes) == (
        3,
        4,
        5,
        6,
    )
    assert found.result_limits.max_bytes == found.MAX_RESULT_BYTES
