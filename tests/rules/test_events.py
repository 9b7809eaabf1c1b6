import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_flows.errors import InvalidEvent
from durable_flows.rules import events
from durable_flows.rules.events import EPOCH, Event, encode, encode_all, encode_command
from durable_flows.rules.names import check as check_name
from durable_flows.rules.payload import Limits

LIMITS = Limits(max_bytes=1_000)
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def refusal(event, pointer=""):
    with pytest.raises(InvalidEvent) as caught:
        encode(event, limits=LIMITS, pointer=pointer)
    return caught.value


# -- values ----------------------------------------------------------------------------------


def test_an_event_needs_a_name_only():
    event = Event("order/placed")
    assert (event.data, event.user, event.id, event.ts, event.v) == ({}, None, None, None, None)


def test_two_events_do_not_share_their_data():
    one, other = Event("a"), Event("a")
    one.data["x"] = 1
    assert other.data == {}


def test_an_event_cannot_be_changed():
    with pytest.raises(AttributeError):
        Event("a").name = "b"  # type: ignore[misc]


def test_a_dict_of_an_event_has_ts_in_milliseconds():
    event = Event("a", {"n": 1}, user={"id": 7}, id="x", ts=MOMENT, v="2", public_id="p")
    assert event.as_dict() == {
        "name": "a",
        "data": {"n": 1},
        "user": {"id": 7},
        "id": "x",
        "ts": 1_772_366_400_000,
        "v": "2",
        "public_id": "p",
    }


@given(
    st.builds(
        Event,
        st.text(min_size=1, max_size=5),
        st.dictionaries(st.text(max_size=3), st.integers()),
        user=st.none() | st.dictionaries(st.text(max_size=3), st.booleans()),
        id=st.none() | st.text(max_size=5),
        ts=st.none()
        | st.integers(0, 4 * 10**12).map(lambda ms: EPOCH + timedelta(milliseconds=ms)),
        v=st.none() | st.text(max_size=3),
        public_id=st.text(max_size=5),
    )
)
def test_an_event_survives_being_a_dict(event):
    assert Event.from_dict(event.as_dict()) == event


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "x" * 256, "order/placed", "a b", "größe"])
def test_names_have_1_to_256_characters(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 257, " x", "x ", "\u00a0x", "a\x00", "a\x1f", "a\x9f", 7]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InvalidEvent) as caught:
        check_name(name)
    assert caught.value.pointer == "/name"


def test_flows_may_listen_to_the_engines_own_events_and_senders_may_not_send_them():
    assert check_name("flows/function.failed") == "flows/function.failed"
    assert refusal(Event("flows/function.failed")).pointer == "/name"


def test_only_commands_carry_the_reserved_prefix():
    encoded = encode_command(events.CANCEL, "run", {"reason": "x"}, limits=LIMITS)
    assert (encoded.name, encoded.data) == (events.CANCEL, '{"reason":"x"}')
    assert encoded.target == "run"
    with pytest.raises(InvalidEvent) as caught:
        encode_command(events.CANCEL, "run", {"reason": math.nan}, limits=LIMITS)
    assert caught.value.pointer == "/data/reason"


# -- what is stored --------------------------------------------------------------------------


def test_an_encoded_event_is_what_is_stored():
    encoded = encode(Event("a", {"n": 1}, user={"id": 7}, id="x", ts=MOMENT, v="2"), limits=LIMITS)
    assert (encoded.name, encoded.data, encoded.user) == ("a", '{"n":1}', '{"id":7}')
    assert (encoded.key, encoded.ts, encoded.v) == ("x", MOMENT, "2")


def test_what_is_left_out_is_stored_as_nothing():
    encoded = encode(Event("a"), limits=LIMITS)
    assert (encoded.data, encoded.user, encoded.key, encoded.ts, encoded.v) == (
        "{}",
        None,
        "",
        None,
        "",
    )


def test_an_empty_user_is_stored_as_an_empty_object():
    assert encode(Event("a", user={}), limits=LIMITS).user == "{}"


def test_the_size_counts_bytes_of_data_and_user():
    encoded = encode(Event("a", {"x": "é"}, user={"x": "é"}), limits=LIMITS)
    assert encoded.size == 2 * len('{"x":"é"}'.encode())


def test_data_and_user_together_keep_to_the_limit():
    encode(Event("a", {"x": "y" * 490}, user={"x": "y" * 490}), limits=LIMITS)
    error = refusal(Event("a", {"x": "y" * 600}, user={"x": "y" * 600}))
    assert "1,000" in str(error)


def test_milliseconds_are_a_moment():
    assert encode(Event("a", ts=1_772_366_400_000), limits=LIMITS).ts == MOMENT


def test_any_zone_is_taken():
    ts = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert encode(Event("a", ts=ts), limits=LIMITS).ts == MOMENT


@pytest.mark.parametrize(
    "ts",
    [
        datetime(1979, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2100, 1, 1, tzinfo=UTC),
        datetime(1980, 1, 1),  # noqa: DTZ001
        0,
        -(10**40),
        10**40,
        True,
        1.5e12,
        "2026-03-01",
    ],
)
def test_a_ts_that_is_none_is_refused(ts):
    assert refusal(Event("a", ts=ts)).pointer == "/ts"


# -- pointers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "pointer"),
    [
        (Event("a", {"x": [1, {"y": math.nan}]}), "/data/x/1/y"),
        (Event("a", user={"x": {1}}), "/user/x"),
        (Event("a", []), "/data"),  # type: ignore[call-overload]
        (Event("a", user=[]), "/user"),
        (Event("a", id=""), "/id"),
        (Event("a", v=2), "/v"),  # type: ignore[call-overload]
        (Event(" a"), "/name"),
    ],
)
def test_an_error_points_to_the_value(event, pointer):
    assert refusal(event).pointer == pointer
    assert refusal(event, "/3").pointer == f"/3{pointer}"
    assert str(refusal(event, "/3")).startswith(f"/3{pointer}: ")


def test_pointers_begin_with_the_index_unless_an_event_is_alone():
    with pytest.raises(InvalidEvent) as caught:
        encode_all([Event(" a")], limits=LIMITS)
    assert caught.value.pointer == "/name"
    with pytest.raises(InvalidEvent) as caught:
        encode_all([Event("a"), Event(" a")], limits=LIMITS)
    assert caught.value.pointer == "/1/name"
