from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_flows.errors import InvalidKey
from durable_flows.rules.keys import (
    MISSING,
    event_key_hash,
    flow_run_id,
    match_hash,
    parse_path,
    read,
    wait_id,
)

EVENT = UUID("0198f0a1-b2c3-7abc-8def-0123456789ab")
LATER = UUID("0198f0a1-b2c4-7abc-8def-0123456789ab")


# -- paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("data.cart_id", ("data", "cart_id")),
        ("data.user.id", ("data", "user", "id")),
        ("event.data.cart_id", ("data", "cart_id")),
        ("data.event.id", ("data", "event", "id")),
        ("data", ("data",)),
        ("name", ("name",)),
        ("user.id", ("user", "id")),
        ("id", ("id",)),
        ("ts", ("ts",)),
        ("v", ("v",)),
        ("data.größe", ("data", "größe")),
    ],
)
def test_a_path_is_read_from_the_fields_of_an_event(path, segments):
    assert parse_path(path) == segments


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            " ",
            ".",
            "event",
            "event.",
            "event.event.data",
            "cart_id",
            "async.data.id",
            "Data.x",
        ),
        *("data.", ".data", "data..id", "data. id", " data.id", "data.first name", "data.\tid"),
        *("data.\0", "data.\ud800", "data.id == 1", None, 7, ["data.id"], ("data", "id")),
    ],
    ids=ascii,
)
def test_another_path_is_refused_by_name(path):
    with pytest.raises(InvalidKey, match=r"^cancel_on: ") as refusal:
        parse_path(path, what="cancel_on")
    assert repr(path) in str(refusal.value)
    assert '"data.' in str(refusal.value)


# -- reading ---------------------------------------------------------------------------------

DOCUMENT = {"name": "n", "data": {"a": {"b": 0}, "none": None, "list": [1], "text": "xyz"}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "n"),
        (("data", "a"), {"b": 0}),
        (("data", "a", "b"), 0),
        (("data", "none"), None),
        (("data", "list"), [1]),
    ],
)
def test_a_path_leads_through_dicts(path, value):
    assert read(DOCUMENT, path) == value


@pytest.mark.parametrize(
    "path",
    [
        ("user",),
        ("user", "id"),
        ("data", "x"),
        ("data", "a", "b", "c"),
        ("data", "none", "x"),
        ("data", "list", "0"),
        ("data", "text", "0"),
        ("data", "x", "y", "z"),
    ],
)
def test_where_nothing_is_the_value_is_missing(path):
    assert read(DOCUMENT, path) is MISSING


def test_a_missing_value_equals_nothing():
    assert MISSING != MISSING  # noqa: PLR0124
    assert MISSING != None  # noqa: E711
    assert read({}, ("data",)) != read({}, ("data",))


def test_a_missing_value_has_no_hash_to_match():
    with pytest.raises(InvalidKey, match="MISSING cannot be compared"):
        match_hash("paid", ["data.id"], [MISSING])


# -- what equals what ------------------------------------------------------------------------


def matches(one, other):
    return match_hash("paid", ["data.x"], [one]) == match_hash("paid", ["data.x"], [other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (150, 150.0),
        (0, -0.0),
        (2**53, float(2**53)),
        (10**22, 1e22),
        (None, None),
        ("é", "é"),
        ([1, 2.0], [1.0, 2]),
        ([1], (1,)),
        ({"a": 1, "b": [None]}, {"b": [None], "a": 1.0}),
        ({}, {}),
    ],
)
def test_values_are_equal_by_what_they_mean(one, other):
    assert matches(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, False),
        (0, None),
        (False, None),
        ("", None),
        ("1", 1),
        ("true", True),
        ("null", None),
        (2**53 + 1, float(2**53)),
        (10**17 + 1, 1e17),
        (0.1, 0.1 + 2**-55),
        (1, -1),
        ("e\u0301", "é"),
        ("a", "A"),
        ("a", "a "),
        ([1, 2], [2, 1]),
        ([1], 1),
        ([], {}),
        ([], ""),
        ([[], []], [[[]]]),
        ([["a"], "b"], [["a", "b"]]),
        (["ab"], ["a", "b"]),
        (["s1:a"], ["a"]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": None}, {}),
        ({"a": "b"}, ["a", "b"]),
        ({"a": True}, {"a": 1}),
    ],
)
def test_values_that_mean_something_else_differ(one, other):
    assert not matches(one, other)


def equal(one, other):
    """The rule as it is documented, without any hash."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


numbers = [0, -0.0, 1, 1.0, -1, 0.5, 150, 150.0, 2**53, 2.0**53, 2**53 + 1, 2**63 - 1, 2.0**63]
few = st.sampled_from([None, True, False, "", "1", "a", "b", "ab", *numbers])
nested = st.recursive(
    few,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)


@given(nested, nested)
def test_hashes_are_equal_if_and_only_if_values_are(one, other):
    assert matches(one, other) == equal(one, other)


@given(st.lists(few, max_size=3), st.lists(few, max_size=3))
def test_lists_of_few_values_match_only_if_equal(one, other):
    assert matches(one, other) == equal(one, other)


@given(st.dictionaries(st.text(max_size=3), few), st.randoms())
def test_the_order_of_keys_does_not_count(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert matches(value, dict(items))


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_match_as_python_compares_them(integer, number):
    assert matches(integer, number) == (integer == number)
    assert matches(int(number), number) == (int(number) == number)


@pytest.mark.parametrize(
    "other",
    [
        match_hash("paid", ["data.a", "data.b"], ["2", "1"]),
        match_hash("paid", ["data.b", "data.a"], ["1", "2"]),
        match_hash("paid", ["data.a", "data.c"], ["1", "2"]),
        match_hash("sold", ["data.a", "data.b"], ["1", "2"]),
        match_hash("paid", ["data.a"], ["1"]),
        match_hash("paid", [], []),
    ],
)
def test_name_paths_and_values_all_count(other):
    assert match_hash("paid", ["data.a", "data.b"], ["1", "2"]) != other


def test_paths_may_be_a_list_or_a_tuple():
    assert match_hash("paid", ("data.a",), (1,)) == match_hash("paid", ["data.a"], [1])


def test_each_path_needs_its_value():
    with pytest.raises(ValueError, match="2 paths, but 1 values"):
        match_hash("paid", ["data.a", "data.b"], [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, b"x", object(), {1, 2}])
def test_what_is_not_json_cannot_be_matched(value):
    with pytest.raises(InvalidKey, match="cannot be compared"):
        match_hash("paid", ["data.a"], [[value]])


# -- ids -------------------------------------------------------------------------------------


def test_a_runs_id_begins_with_the_time_of_its_event():
    assert flow_run_id("cart", EVENT).bytes[:6] == EVENT.bytes[:6]
    assert flow_run_id("cart", EVENT) < flow_run_id("cart", LATER)


@given(st.uuids(), st.text(max_size=5), st.text(max_size=5))
def test_ids_are_uuids_of_version_8(event_id, name, key):
    for made in (
        flow_run_id(name, event_id, key),
        wait_id(event_id, key),
        event_key_hash(name, key),
        match_hash(name, ["data"], [key]),
    ):
        assert (made.version, made.variant) == (8, RFC_4122)


def test_the_same_event_and_flow_make_the_same_run():
    assert flow_run_id("cart", EVENT) == flow_run_id("cart", UUID(EVENT.hex), "")


@pytest.mark.parametrize(
    "other",
    [
        flow_run_id("carts", EVENT),
        flow_run_id("cart", LATER),
        flow_run_id("cart", UUID(int=EVENT.int + 1)),
        flow_run_id("cart", EVENT, "1"),
    ],
)
def test_flow_event_and_salt_each_make_another_run(other):
    assert flow_run_id("cart", EVENT).bytes[6:] != other.bytes[6:]


def test_a_users_id_is_unique_per_event_name():
    keys = {
        event_key_hash("a", "bc"),
        event_key_hash("ab", "c"),
        event_key_hash("ab", "d"),
        event_key_hash("c", "ab"),
    }
    assert len(keys) == 4
    assert event_key_hash("a", "bc") in keys


def test_a_wait_is_known_by_run_key_and_generation():
    waits = {
        wait_id(EVENT, "paid"),
        wait_id(EVENT, "paid#2"),
        wait_id(EVENT, "paid", 1),
        wait_id(LATER, "paid"),
    }
    assert len(waits) == 4
    assert wait_id(EVENT, "paid", 0) in waits


def test_hashes_for_different_purposes_differ():
    assert event_key_hash("a", "b") != wait_id(EVENT, "b")
    assert match_hash("a", [], []) != event_key_hash("a", "")


def test_hashes_stay_the_same_from_release_to_release():
    assert {
        "match": str(match_hash("paid", ["data.id", "data.x"], [1.0, {"b": [None, True, 0.5]}])),
        "run": str(flow_run_id("cart", EVENT, "1")),
        "event key": str(event_key_hash("paid", "order-1")),
        "wait": str(wait_id(EVENT, "paid", 1)),
    } == {
        "match": "1bc8a91a-4e57-83e3-a3a4-e8738986dc64",
        "run": "0198f0a1-b2c3-802a-9610-bec9b707c03c",
        "event key": "ba5f146f-5169-849a-88a8-e9f5f28ff3fe",
        "wait": "68cc2a93-8d06-8ae3-b142-6ef335da8f85",
    }
