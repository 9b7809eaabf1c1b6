"""Sending: what is accepted, what is refused, and what a transaction has to do with it."""

from __future__ import annotations

import math
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.test import override_settings

from durable_flows import Event, asend, flow, send
from durable_flows.engine import sql
from durable_flows.errors import InvalidEvent, WrongDatabase
from durable_flows.models import Event as StoredEvent
from durable_flows.models import EventKey
from durable_flows.testing import drain, runs_of
from tests.promises.staging import listener, milliseconds, now, played, rolled_back, row, stored

pytestmark = pytest.mark.django_db


class Died(Exception):
    """The sender dies."""


def refusal(*args: Any, **kwargs: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        send(*args, **kwargs)
    assert stored() == []
    return caught.value


# -- what a handler gets ---------------------------------------------------------------------


def test_a_handler_gets_every_field_as_it_was_sent():
    got: list[Event] = []

    @flow("reader", on="order/placed")
    def reader(event):
        got.append(event)

    happened = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    played(
        "order/placed",
        {"items": [1, 2.5, "three", None, True]},
        user={"email": "ada@example.com"},
        id="order-1",
        ts=happened,
        v="2",
    )
    (event,) = got
    assert event.name == "order/placed"
    assert event.data == {"items": [1, 2.5, "three", None, True]}
    assert event.user == {"email": "ada@example.com"}
    assert (event.id, event.ts, event.v) == ("order-1", happened, "2")
    assert uuid.UUID(event.public_id).version == 7


def test_what_is_left_out_has_its_default():
    got: list[Event] = []

    @flow("reader", on="order/placed")
    def reader(event):
        got.append(event)

    sent = now()
    played("order/placed")
    (event,) = got
    assert (event.data, event.user, event.v) == ({}, None, None)
    assert event.id == event.public_id
    assert isinstance(event.ts, datetime)
    assert sent <= event.ts <= now()


def test_an_empty_user_is_an_empty_object():
    got: list[Any] = []

    @flow("reader", on="order/placed")
    def reader(event):
        got.append(event.user)

    played("order/placed", user={})
    assert got == [{}]


def test_ts_is_also_taken_in_milliseconds():
    (event_id,) = send("order/placed", ts=1_772_366_400_000)
    assert row(event_id).ts == datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_keys_keep_their_order_and_numbers_their_kind():
    (event_id,) = send("order/placed", {"zeta": 1, "y": 1e22, "x": -0.0, "n": 150, "f": 150.0})
    assert row(event_id).data == '{"zeta":1,"y":1e+22,"x":-0.0,"n":150,"f":150.0}'


# -- forms of send ---------------------------------------------------------------------------


def test_an_event_object_is_sent_like_its_fields():
    (event_id,) = send(Event("order/placed", {"n": 1}, user={"id": 7}, id="o1", v="3"))
    kept = row(event_id)
    assert (kept.name, kept.data, kept.user, kept.key, kept.v) == (
        "order/placed",
        '{"n":1}',
        '{"id":7}',
        "o1",
        "3",
    )


def test_a_list_is_stored_in_its_order_and_answered_in_its_order():
    ids = send([Event("a"), Event("b"), Event("c")])
    assert stored() == ["a", "b", "c"]
    assert [row(event_id).name for event_id in ids] == ["a", "b", "c"]


def test_an_empty_list_sends_nothing():
    assert send([]) == []
    assert stored() == []


def test_a_tuple_of_events_is_a_list():
    assert len(send((Event("a"), Event("b")))) == 2


def test_public_ids_are_uuids_of_version_7_also_where_an_id_was_given():
    ids = send([Event("a"), Event("a", id="mine")])
    assert [uuid.UUID(event_id).version for event_id in ids] == [7, 7]


def test_fields_beside_an_event_object_are_a_type_error():
    with pytest.raises(TypeError, match="say data, user, id, ts, v and subject in"):
        send(Event("a"), {"n": 1})  # type: ignore[call-overload]
    assert stored() == []


@pytest.mark.parametrize("wrong", [{"name": "a"}, b"a", 7, None])
def test_anything_but_a_name_an_event_or_a_list_is_refused(wrong):
    assert type(wrong).__name__ in str(refusal(wrong))


def test_a_dict_in_a_list_is_refused_with_its_index():
    error = refusal([Event("a"), {"name": "b"}])
    assert error.pointer == "/1"
    assert "dict" in str(error)


@pytest.mark.django_db(transaction=True)
def test_asend_is_send_for_async_code():
    async def view() -> list[str]:
        return await asend("order/placed", {"n": 1}, id="o1")

    started = listener("order/placed")
    (event_id,) = async_to_sync(view)()
    assert row(event_id).key == "o1"
    drain()
    assert started == [event_id]


@pytest.mark.django_db(transaction=True)
def test_asend_raises_what_send_raises():
    async def view() -> None:
        await asend("order/placed", {"n": {1}})

    with pytest.raises(InvalidEvent, match="/data"):
        async_to_sync(view)()
    assert stored() == []


# -- the caller's transaction ----------------------------------------------------------------


def test_a_list_with_one_bad_event_stores_none():
    error = refusal([Event("a"), Event("b", {"x": math.nan}), Event("c")])
    assert error.pointer == "/1/data/x"


@pytest.mark.django_db(transaction=True)
def test_a_sender_that_dies_in_the_middle_of_a_long_list_has_stored_all_or_none():
    inserts: list[str] = []

    def die(statement: str) -> None:
        if statement.startswith("INSERT INTO durable_flows_event "):
            inserts.append(statement)
            if len(inserts) == 2:  # PostgreSQL needs only one
                raise Died

    sql.observers.append(die)
    try:
        with suppress(Died):
            send([Event("a")] * 1_000)
    finally:
        sql.observers.remove(die)
    assert len(stored()) == (1_000 if len(inserts) == 1 else 0)


@pytest.mark.django_db(transaction=True)
def test_a_rollback_means_that_it_never_happened():
    started = listener("order/placed")
    with rolled_back():
        send("order/placed", id="o1")
    drain()
    assert started == []
    assert stored() == []
    assert not EventKey.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_commit_delivers_what_the_transaction_sent():
    started = listener("order/placed")
    with transaction.atomic():
        (event_id,) = send("order/placed")
    drain()
    assert started == [event_id]


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_that_is_rolled_back_takes_only_its_own_events_along():
    started = listener("order/placed")
    with transaction.atomic():
        (kept,) = send("order/placed")
        with rolled_back():
            send("order/placed")
        (also_kept,) = send("order/placed")
    drain()
    assert started == [kept, also_kept]


@pytest.mark.django_db(transaction=True)
def test_a_refused_event_leaves_the_callers_transaction_usable():
    with transaction.atomic():
        send("a")
        with pytest.raises(InvalidEvent):
            send("b", {"x": math.nan})
        send("c")
    assert stored() == ["a", "c"]


@pytest.mark.django_db(transaction=True)
def test_a_transaction_on_another_database_is_refused(other_database):
    with (
        transaction.atomic(using=other_database),
        pytest.raises(WrongDatabase, match=r"(?s)'other'.*'default'.*atomic\(using='default'\)"),
    ):
        send("order/placed")
    assert stored() == []


@pytest.mark.django_db(transaction=True)
def test_transactions_on_both_databases_are_fine(other_database):
    with transaction.atomic(using=other_database), transaction.atomic():
        send("order/placed")
    assert stored() == ["order/placed"]


# -- limits of the fields --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x", "x" * 256, "a b", "order/placed.v2", "Bestellung/größe", "🛒"]
)
def test_names_are_free_form(name):
    (event_id,) = send(name)
    assert row(event_id).name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "1 to 256 characters, this one has 0"),
        ("x" * 257, "257"),
        (" a", "blanks"),
        ("a ", "blanks"),
        ("a\n", "blanks"),
        ("a\tb", "control character"),
        ("a\0b", "control character"),
        ("a\x7fb", "control character"),
        ("a\ud800b", "control character"),
    ],
)
def test_a_name_that_is_none_is_refused(name, says):
    error = refusal(name)
    assert error.pointer == "/name"
    assert says in str(error)


@pytest.mark.parametrize("name", [None, 7, b"a"])
def test_a_name_that_is_no_text_is_refused(name):
    assert refusal(Event(name)).pointer == "/name"


@pytest.mark.parametrize("name", ["flows/function.failed", "flows/mine", "FLOWS/mine"])
def test_the_engines_own_prefix_is_reserved(name):
    error = refusal(name)
    assert error.pointer == "/name"
    assert "reserved" in str(error)


def test_a_name_that_merely_resembles_the_prefix_is_free():
    send([Event("flows"), Event("flowsy/x"), Event("my/flows/x")])
    assert len(stored()) == 3


@pytest.mark.parametrize("data", [[], "x", 7, (1,)])
def test_data_that_is_no_object_is_refused(data):
    error = refusal(Event("a", data))
    assert error.pointer == "/data"
    assert type(data).__name__ in str(error)


def test_data_that_is_none_in_an_event_object_is_refused_and_not_guessed():
    assert refusal(Event("a", None)).pointer == "/data"  # type: ignore[call-overload]


@pytest.mark.parametrize("user", [[], "ada", 7, False, ""])
def test_a_user_that_is_no_object_is_refused(user):
    assert refusal("a", user=user).pointer == "/user"


@pytest.mark.parametrize("id", ["x", "x" * 255, "ordre-é"])
def test_ids_have_up_to_255_characters(id):
    (event_id,) = send("a", id=id)
    assert row(event_id).key == id


@pytest.mark.parametrize("id", ["", "x" * 256, 7, "a\0", "a\nb"])
def test_an_id_that_is_none_is_refused(id):
    assert refusal("a", id=id).pointer == "/id"


@pytest.mark.parametrize("v", ["", "x" * 65, 2, "a\0"])
def test_a_version_that_is_none_is_refused(v):
    assert refusal("a", v=v).pointer == "/v"


def test_versions_have_up_to_64_characters():
    (event_id,) = send("a", v="x" * 64)
    assert row(event_id).v == "x" * 64


@pytest.mark.parametrize(
    "ts", [datetime(1980, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, 23, 59, tzinfo=UTC)]
)
def test_ts_reaches_from_1980_to_2100(ts):
    ids = send("a", ts=ts) + send("a", ts=milliseconds(ts))
    assert [row(event_id).ts for event_id in ids] == [ts, ts]


@pytest.mark.parametrize(
    ("ts", "says"),
    [
        (datetime(1979, 12, 31, tzinfo=UTC), "1980 to 2100"),
        (datetime(2100, 1, 1, tzinfo=UTC), "1980 to 2100"),
        (1_772_366_400, "milliseconds, not seconds"),
        (-1, "1980 to 2100"),
        (10**30, "1980 to 2100"),
        (datetime(2026, 3, 1), "aware"),  # noqa: DTZ001
        (date(2026, 3, 1), "aware datetime or milliseconds"),
        ("2026-03-01", "aware datetime or milliseconds"),
        (1.5, "aware datetime or milliseconds"),
        (True, "aware datetime or milliseconds"),
    ],
)
def test_a_ts_that_is_none_is_refused(ts, says):
    error = refusal("a", ts=ts)
    assert error.pointer == "/ts"
    assert says in str(error)


# -- limits of the payload -------------------------------------------------------------------


def limited(**limits: int) -> override_settings:
    return override_settings(DURABLE_FLOWS={"RING": "off", **limits})


def test_the_limits_are_those_that_are_documented():
    from durable_flows.conf import DEFAULTS

    assert DEFAULTS.MAX_EVENT_BYTES == 512 * 1024
    assert DEFAULTS.MAX_EVENTS == 5_000
    assert DEFAULTS.MAX_SEND_BYTES == 4 * 1024 * 1024
    assert (DEFAULTS.MAX_DEPTH, DEFAULTS.MAX_KEYS, DEFAULTS.MAX_KEY_LENGTH) == (64, 10_000, 256)


def test_an_event_may_have_512_kib_and_not_a_byte_more():
    room = 512 * 1024 - len('{"x":""}')
    send("a", {"x": "é" * (room // 2)})  # bytes, not characters
    error = pytest.raises(InvalidEvent, send, "a", {"x": "é" * (room // 2) + "e"}).value
    assert "524,288" in str(error)
    assert stored() == ["a"]


def test_data_and_user_count_together():
    with limited(MAX_EVENT_BYTES=100):
        send("a", {"x": "y" * 80})
        with pytest.raises(InvalidEvent, match="100"):
            send("a", {"x": "y" * 80}, user={"x": "y" * 40})
    assert stored() == ["a"]


def test_a_call_sends_up_to_5000_events():
    assert len(send([Event("a")] * 5_000)) == 5_000
    with pytest.raises(InvalidEvent, match="5,001"):
        send([Event("b")] * 5_001)
    assert "b" not in stored()


def test_a_call_sends_up_to_its_limit_of_bytes():
    with limited(MAX_SEND_BYTES=1_000):
        send([Event("a", {"x": "y" * 400})] * 2)
        with pytest.raises(InvalidEvent, match="1,000"):
            send([Event("b", {"x": "y" * 400})] * 3)
    assert stored() == ["a", "a"]


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"x": value}
    return value


def test_data_may_be_64_levels_deep():
    send("a", nested(64))
    with pytest.raises(InvalidEvent, match="64 levels"):
        send("a", nested(65))


def test_data_may_have_10000_keys():
    send("a", {str(n): n for n in range(10_000)})
    with pytest.raises(InvalidEvent, match="10,000"):
        send("a", {str(n): n for n in range(10_001)})


def test_a_key_may_have_256_characters():
    send("a", {"k" * 256: 1})
    with pytest.raises(InvalidEvent, match="256"):
        send("a", {"k" * 257: 1})


@pytest.mark.parametrize(
    ("setting", "limit", "too_much"),
    [
        ("MAX_EVENT_BYTES", 20, [Event("a", {"x": "y" * 30})]),
        ("MAX_EVENTS", 1, [Event("a"), Event("a")]),
        ("MAX_SEND_BYTES", 3, [Event("a"), Event("a")]),
        ("MAX_DEPTH", 2, [Event("a", nested(3))]),
        ("MAX_KEYS", 1, [Event("a", {"x": 1, "y": 2})]),
        ("MAX_KEY_LENGTH", 3, [Event("a", {"four": 1})]),
    ],
)
def test_every_limit_is_a_setting_and_its_error_names_it(setting, limit, too_much):
    with limited(**{setting: limit}):
        error = refusal(too_much)
    assert setting in str(error)


# -- bad values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "inf"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        (2**63, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        (Decimal("Infinity"), "no number"),
        (timedelta(days=1), "total_seconds"),
        ({1, 2}, "set"),
        (b"a", "bytes"),
        (object(), "object"),
    ],
)
def test_a_bad_value_is_refused_with_a_pointer_to_it(value, says):
    error = refusal("a", {"items": [{"n": 1}, {"n": value}]})
    assert error.pointer == "/data/items/1/n"
    assert says in str(error)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 1e308, "é\U0001f6d2", None, True, []])
def test_a_value_at_the_edge_is_kept(value):
    got: list[Any] = []

    @flow("reader", on="a")
    def reader(event):
        got.append(event.data["x"])

    played("a", {"x": value})
    assert got == [value]


def test_a_key_that_is_no_text_is_refused():
    error = refusal("a", {"items": {1: "one"}})
    assert error.pointer == "/data/items"
    assert "use str(key)" in str(error)


def test_a_pointer_escapes_slashes_and_tildes():
    assert refusal("a", {"a/b": {"c~d": math.nan}}).pointer == "/data/a~1b/c~0d"


def test_in_a_list_the_pointer_starts_with_the_index():
    batch = [Event("a"), Event("b"), Event("c", user={"x": [math.nan]})]
    assert refusal(batch).pointer == "/2/user/x/0"


def test_a_bad_name_in_a_list_is_pointed_to_as_well():
    assert refusal([Event("a"), Event("flows/b")]).pointer == "/1/name"


# -- what an event may start -----------------------------------------------------------------


def test_an_event_nobody_listens_to_starts_nothing():
    (event_id,) = send("order/placed")
    assert drain() == 1
    assert runs_of(event_id) == []


def test_events_are_routed_in_the_order_in_which_they_arrived():
    started = listener("order/placed")
    ids = [send("order/placed", {"n": n})[0] for n in range(25)]
    drain()
    assert started == ids


def test_a_sent_event_knows_no_sender():
    (event_id,) = send("order/placed")
    assert (row(event_id).sender, row(event_id).depth) == (None, 0)


def test_sending_touches_nothing_but_events():
    """A view may hold its transaction open for long: nothing that it locks is waited for."""
    listener("order/placed")
    send("order/placed", id="o1")
    assert StoredEvent.objects.count() == 1
    assert StoredEvent.objects.get().routed is None
