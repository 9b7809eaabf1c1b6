"""Typed events: fit when they are sent, and read as their model by whoever listens to the type."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pydantic
import pytest
from asgiref.sync import async_to_sync
from cryptography.fernet import Fernet

from durable_flows import (
    AsyncStep,
    Awaited,
    CancelOn,
    Event,
    EventType,
    InvalidEvent,
    On,
    StepError,
    asend,
    flow,
    rerun,
    retry,
    send,
    send_signal,
)
from durable_flows.encryption import Encryption
from durable_flows.errors import DuplicateEventType, InvalidOption, UnreadableEvent
from durable_flows.models import Event as StoredEvent
from durable_flows.registry import registry
from durable_flows.rules import payload
from durable_flows.rules.event_types import catalogue
from durable_flows.signals import emit
from durable_flows.testing import RunView, advance, crash_after, drain, run_of, sent
from tests.promises.staging import again, played, row, stored

pytestmark = pytest.mark.django_db

ADDED = "cart/product.added"
ORDERED = "order/placed"


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Line:
    sku: str
    price: Decimal
    weight: float = 0.0


@dataclass
class Cart:
    cart_id: str
    lines: list[Line] = field(default_factory=list)
    since: datetime | None = None
    size: Size = Size.SMALL
    prices: dict[str, Decimal] = field(default_factory=dict)


class Item(pydantic.BaseModel):
    sku: str
    price: Decimal = pydantic.Field(ge=0)


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    order_id: uuid.UUID = pydantic.Field(alias="id")
    items: list[Item] = []
    at: datetime | None = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.items)


ID = uuid.UUID("0190d5e4-7d3a-7c3e-8f5e-3b2a1c0d9e8f")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CART = Cart("c1", [Line("a", Decimal("1.10"), 2.0)], NOON, Size.LARGE)
CART_JSON: dict[str, Any] = {
    "cart_id": "c1",
    "lines": [{"sku": "a", "price": "1.10", "weight": 2.0}],
    "since": "2026-03-01T12:00:00+00:00",
    "size": "l",
    "prices": {},
}


@pytest.fixture
def added() -> EventType[Cart]:
    return EventType(ADDED, Cart)


@pytest.fixture
def ordered() -> EventType[Order]:
    return EventType(ORDERED, Order)


def collector(on: Any, **options: Any) -> list[Any]:
    """Declare a flow; the list grows by the data that its handler gets."""
    got: list[Any] = []

    @flow("collector", on=on, **options)
    def collect(event, events):
        got.append(event.data)
        assert events[0].data == event.data

    return got


def refused(*args: Any, **kwargs: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        send(*args, **kwargs)
    return caught.value


def refusal(*args: Any, **kwargs: Any) -> InvalidEvent:
    error = refused(*args, **kwargs)
    assert stored() == []
    return error


# -- sending ---------------------------------------------------------------------------------


def test_an_instance_of_the_model_is_stored_as_its_json(added):
    (event_id,) = send(added, CART)
    assert payload.loads(row(event_id).data) == CART_JSON
    assert row(event_id).name == ADDED


def test_a_dict_is_stored_as_it_is(added):
    given = {"more": 1, "cart_id": "c1", "lines": [{"price": 1, "sku": "a"}]}
    (event_id,) = send(added, given)
    assert row(event_id).data == '{"more":1,"cart_id":"c1","lines":[{"price":1,"sku":"a"}]}'


def test_a_pydantic_model_is_stored_by_the_names_that_it_is_read_by(ordered):
    got = collector(ordered)
    given = Order(id=ID, items=[Item(sku="a", price=Decimal("1.10"))], at=NOON)
    run = played(ordered, given)
    (kept,) = StoredEvent.objects.all()
    assert payload.loads(kept.data) == {
        "id": str(ID),
        "items": [{"sku": "a", "price": "1.10"}],
        "at": "2026-03-01T12:00:00Z",
    }
    assert run.state == "completed"
    assert got == [given]


@pytest.mark.parametrize(
    ("data", "pointer", "says"),
    [
        ({}, "/data/cart_id", "is missing"),
        (None, "/data/cart_id", "is missing"),
        ({"cart_id": 7}, "/data/cart_id", "Expected `str`, got `int`"),
        ({"cart_id": None}, "/data/cart_id", "Expected `str`, got `null`"),
        ({"cart_id": "c", "lines": [{"sku": "a"}]}, "/data/lines/0/price", "is missing"),
        (
            {"cart_id": "c", "lines": [{"sku": "a", "price": 1, "weight": "2"}]},
            "/data/lines/0/weight",
            "Expected `float`, got `str`",
        ),
        ({"cart_id": "c", "since": "yesterday"}, "/data/since", "Invalid RFC3339"),
        ({"cart_id": "c", "size": "xl"}, "/data/size", "is none of the values that it may have"),
        ({"cart_id": "c", "prices": {"a": "much"}}, "/data/prices", "in one of its values"),
        (Cart(7), "/data/cart_id", "Expected `str`"),  # type: ignore[arg-type]
        (Cart("c", lines=[{1, 2}]), "/data/lines/0", "sorted(value)"),  # type: ignore[list-item]
        (Line("a", Decimal(1)), "/data/cart_id", "is missing"),
        ([], "/data", "must be a JSON object"),
        ("c1", "/data", "must be a JSON object"),
    ],
)
def test_what_does_not_fit_a_dataclass_is_refused_with_field_and_reason(added, data, pointer, says):
    error = refusal(added, data)
    assert (error.pointer, says in error.problem) == (pointer, True), error


@pytest.mark.parametrize(
    ("data", "pointer", "says"),
    [
        ({}, "/data/id", "Field required"),
        ({"id": "x"}, "/data/id", "valid UUID"),
        ({"id": str(ID), "items": [{"sku": "a", "price": "-1"}]}, "/data/items/0/price", "greater"),
        ({"id": str(ID), "items": [{}]}, "/data/items/0/sku", "Field required"),
        ({"id": str(ID), "colour": 1}, "/data/colour", "Extra inputs are not permitted"),
        ({"items": 1, "at": 2}, "/data/id", "(and 2 more)"),
    ],
)
def test_what_does_not_fit_a_pydantic_model_is_refused_with_field_and_reason(
    ordered, data, pointer, says
):
    error = refusal(ordered, data)
    assert (error.pointer, says in error.problem) == (pointer, True), error
    assert "does not fit Order, the type of 'order/placed': " in error.problem


def test_of_several_events_none_is_stored_if_one_does_not_fit(added):
    error = refusal([Event(added, CART), Event("other"), Event(added, {"cart_id": 1})])
    assert error.pointer == "/2/data/cart_id"


def test_a_plain_name_cannot_get_around_the_type(added):
    assert refusal(ADDED, {"cart_id": 7}).pointer == "/data/cart_id"
    assert refusal(Event(ADDED, {"cart_id": 7})).pointer == "/data/cart_id"
    assert send(ADDED, {"cart_id": "c1"})


def test_a_type_checks_its_own_events_even_where_its_name_is_not_known():
    with registry.isolated():
        forgotten = EventType("forgotten", Cart)
    assert send("forgotten", {})
    with pytest.raises(InvalidEvent):
        send(forgotten, {})


def test_a_type_is_sent_from_async_code_and_from_steps(added):
    assert async_to_sync(asend)(added, CART)
    with pytest.raises(InvalidEvent):
        async_to_sync(asend)(added, {})

    @flow("sender", on="go")
    def sender(event, step):
        return step.send_event("tell", [Event(added, CART), Event(added, event.data)])

    assert len(played("go", {"cart_id": "c2"}).result) == 2
    run = played("go", {})
    assert (run.state, run.error["name"]) == ("failed", "InvalidEvent")
    assert "/1/data/cart_id: " in run.error["message"]
    assert [event.data.cart_id for event in sent(added)] == ["c1", "c1", "c2"]
    assert [event.data["cart_id"] for event in sent(ADDED)] == ["c1", "c1", "c2"]


def test_a_model_that_fails_in_its_own_code_refuses_its_data():
    @dataclass
    class Picky:
        n: int

        def __post_init__(self) -> None:
            if self.n == 13:
                raise LookupError("unlucky")
            if self.n == 14:
                raise ValueError("no better")

    picky = EventType("picky", Picky)
    assert refusal(picky, {"n": 13}).problem.endswith("LookupError: unlucky")
    assert refusal(picky, {"n": 14}).problem.endswith(": no better")


def test_a_model_that_cannot_write_its_data_refuses_them():
    class Stubborn(pydantic.BaseModel):
        x: int = 1

        @pydantic.field_serializer("x")
        def write(self, x: int) -> int:
            raise RuntimeError("not today")

    error = refusal(EventType("stubborn", Stubborn), Stubborn())
    assert error.pointer == "/data"
    assert "Stubborn cannot be written as JSON" in error.problem
    assert "not today" in error.problem


# -- listening -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trigger",
    [
        lambda added: added,
        lambda added: [added],
        lambda added: [On(added, if_="event.data.cart_id == 'c1'"), "other"],
    ],
    ids=["type", "list", "condition"],
)
def test_the_handler_of_a_type_gets_an_instance_of_its_model(added, trigger):
    got = collector(trigger(added))
    played(added, CART)
    assert got == [CART]


def test_the_handler_of_a_name_gets_a_dict(added):
    got = collector(ADDED)
    played(added, CART)
    played(added, CART, id="other")
    assert got == [CART_JSON, CART_JSON]


def test_the_handler_of_a_wildcard_gets_a_dict(added):
    got = collector("cart/*")
    played(added, CART)
    assert got == [CART_JSON]


def test_a_handler_of_several_events_gets_each_as_it_is_listened_to(added, ordered):
    got = collector([added, ORDERED, "other"])
    played(added, {"cart_id": "c1"})
    played(ordered, {"id": str(ID)})
    played("other", {"n": 1})
    assert got == [Cart("c1"), {"id": str(ID)}, {"n": 1}]


def test_each_replay_gets_the_same(added):
    got: list[Any] = []

    @flow("sleeper", on=added)
    async def sleeper(event: Event[Cart], step: AsyncStep) -> str:
        got.append(event.data)
        event.data.lines.clear()
        await step.sleep("rest", "1h")
        return event.data.cart_id

    run = played(added, CART)
    advance("1h")
    assert again(run).result == "c1"
    assert got == [replace(CART, lines=[]), replace(CART, lines=[])]


def test_conditions_and_matches_see_the_json(added):
    decided: list[Any] = []

    @flow(
        "reminder",
        on=On(added, if_="event.data.size == 'l' && event.data.lines[0].price == '1.10'"),
        cancel_on=CancelOn(EventType("cart/purchased", Cart), match="data.cart_id"),
    )
    def reminder(event, step):
        decided.append(event.data.size)
        step.sleep("rest", "1h")

    run = played(added, CART)
    other = played(added, replace(CART, cart_id="c2"))
    send("cart/purchased", {"cart_id": "c2"})
    drain()
    assert decided == [Size.LARGE, Size.LARGE]
    assert (again(run).state, again(other).state) == ("started", "cancelled")


def test_a_run_that_fails_tells_of_its_event_as_it_is_stored(added):
    told: list[Any] = []

    def tell(event):
        told.append(event.data["event"]["data"])

    @flow("failing", on=added, on_failure=tell, retries=0)
    def failing(event):
        raise ValueError(event.data.cart_id)

    played(added, CART)
    assert told == [CART_JSON]


# -- waiting ---------------------------------------------------------------------------------


def test_each_wait_answers_as_it_was_asked(added):
    got: dict[str, Any] = {}

    @flow("waiter", on="go")
    def waiter(event, step):
        one = step.wait_for_event("typed", event=added, timeout="1h", match="data.cart_id")
        two = step.wait_for_event("named", event=ADDED, timeout="1h", since="run")
        got.update(typed=one.data, named=two.data)
        got["none"] = step.wait_for_event("none", event=added, timeout="1m", since="now")

    played("go", {"cart_id": "c1"})
    send(added, CART)
    drain()
    advance("1m")
    assert got == {"typed": CART, "named": CART_JSON, "none": None}


def test_several_waits_answer_each_as_it_was_asked(added, ordered):
    got: list[Any] = []

    @flow("waiter", on="go")
    def waiter(step):
        wanted = [added, Awaited(ordered, if_="async.data.id != ''"), "other", "never"]
        found = step.wait_for_events("all", wanted, timeout="1h", mode=3)
        got.clear()
        got.extend(event and event.data for event in found)
        got.extend(event.data for event in step.collect("c", event=added, count=2, timeout="1h"))

    run = played("go")
    send(added, CART)
    send(ordered, {"id": str(ID)})
    send("other", {"n": 1})
    drain()
    send(added, {"cart_id": "c2"})
    send(added, {"cart_id": "c3"})
    drain()
    assert again(run).state == "completed", again(run)
    assert got[:4] == [CART, Order(id=ID), {"n": 1}, None]
    assert [cart.cart_id for cart in got[4:]] == ["c2", "c3"]


def test_async_waits_answer_with_the_model_too(added):
    @flow("waiter", on="go")
    async def waiter(step: AsyncStep) -> list[str]:
        first, second = await asyncio.gather(
            step.wait_for_event("one", event=added, timeout="1h"),
            step.wait_for_events("two", [added], timeout="1h"),
        )
        assert first is not None
        assert second[0] is not None
        return [first.data.cart_id, second[0].data.cart_id]

    run = played("go")
    send(added, CART)
    send(added, {"cart_id": "c2"})
    drain()
    assert sorted(again(run).result) == ["c1", "c2"]


# -- versions --------------------------------------------------------------------------------


@dataclass
class Person:
    first: str
    last: str


def split(data: dict[str, Any], v: str | None) -> dict[str, Any]:
    """Version 1 and what had none have the name in one; version 2 had no last name."""
    if v == "2":
        return {**data, "last": ""}
    first, _, last = data.pop("name").partition(" ")
    return {**data, "first": first, "last": last}


@pytest.fixture
def joined() -> EventType[Person]:
    return EventType("person/joined", Person, v="3", upcast=split)


def test_an_event_has_the_version_of_its_type_unless_it_says_another(joined):
    (event_id,) = send(joined, Person("Ada", "L"))
    assert row(event_id).v == "3"
    assert Event(joined, {"first": "Ada"}).v == "3"
    assert Event(joined, {"first": "Ada"}, v="2").v == "2"
    (event_id,) = send(joined, {"first": "Ada"}, v="2")
    assert row(event_id).v == "2"
    assert payload.loads(row(event_id).data) == {"first": "Ada"}


def test_older_versions_are_read_as_the_newest(joined):
    got = collector(joined)
    for v, data in ((None, {"name": "Ada L"}), ("1", {"name": "Ada L"}), ("2", {"first": "Ada"})):
        played("person/joined", data, v=v)
    played(joined, {"first": "Ada", "last": "L"})
    assert got == [Person("Ada", "L"), Person("Ada", "L"), Person("Ada", ""), Person("Ada", "L")]


def test_what_an_upcast_does_to_the_data_harms_nothing(joined):
    """It takes the name out of its dict, on which the wait matches."""

    @flow("waiter", on=joined)
    def waiter(event, step):
        found = step.wait_for_event("wait", event="again", match="data.name", timeout="1h")
        return [event.data.first, found.data["name"]]

    run = played("person/joined", {"name": "Ada L"})
    send("again", {"name": "Ada L"})
    drain()
    assert again(run).result == ["Ada", "Ada L"]


@pytest.mark.parametrize(
    ("v", "data", "pointer", "says"),
    [
        ("1", {"first": "Ada", "last": "L"}, "/data", "KeyError: 'name'"),
        ("2", {}, "/data/first", "is missing"),
        (None, {"name": 7}, "/data", "AttributeError"),
        ("3", {"name": "Ada L"}, "/data/first", "is missing"),
    ],
)
def test_an_older_version_is_refused_if_it_does_not_become_the_newest(
    joined, v, data, pointer, says
):
    error = refusal("person/joined", data, v=v)
    assert error.pointer == pointer
    assert says in error.problem
    assert "the type of 'person/joined', version 3" in error.problem


def test_an_upcast_that_returns_no_dict_is_named():
    joined = EventType("person/joined", Person, v="2", upcast=lambda data, v: None)  # type: ignore[arg-type, return-value]
    assert "upcast returned NoneType" in refusal("person/joined", {}).problem
    assert send(joined, Person("Ada", "L"))


def test_without_an_upcast_other_versions_are_read_as_they_are():
    EventType("person/joined", Person, v="2")
    assert send("person/joined", {"first": "Ada", "last": "L"}, v="1")
    assert send("person/joined", {"first": "Ada", "last": "L", "born": 1815}, v="3")


# -- what can no longer be read --------------------------------------------------------------


def stored_before(data: dict[str, Any], name: str = ADDED, **fields: Any) -> str:
    """An event of the time before it had a type."""
    with catalogue.isolated():
        catalogue.forget(name)
        (event_id,) = send(name, data, **fields)
    return event_id


def mended(name: str, **options: Any) -> EventType[Any]:
    """The next deploy, with a type that reads what is stored."""
    catalogue.forget(name)
    return EventType(name, Cart, **options)


def with_number(data: dict[str, Any], v: str | None) -> dict[str, Any]:
    return {**data, "cart_id": f"c{data.pop('cart')}"}


def assert_unreadable(error: Any, event_id: str, field: str, reason: str) -> None:
    assert error["name"] == "UnreadableEvent"
    assert f"event '{ADDED}' ({event_id}), {field}: does not fit Cart" in error["message"]
    assert reason in error["message"]


def test_a_run_whose_event_does_not_fit_fails_at_once_with_event_field_and_reason(added):
    got = collector(added)
    event_id = stored_before({"cart": 7})
    drain()
    run = run_of(event_id)
    assert (run.state, run.attempts, got) == ("failed", {}, [])
    assert_unreadable(run.error, event_id, "/data/cart_id", "is missing")


def test_it_can_be_retried_once_the_code_is_mended(added):
    collector(added)
    run = played_unreadable()
    registry.remove(registry_flow("collector"))
    got = collector(mended(ADDED, v="2", upcast=with_number))
    retry(run.id)
    drain()
    assert again(run).state == "completed"
    assert got == [Cart("c7")]


def test_it_can_be_done_again_once_the_code_is_mended(added):
    collector(added)
    run = played_unreadable()
    registry.remove(registry_flow("collector"))
    got = collector(mended(ADDED, v="2", upcast=with_number))
    second = rerun(run.id)
    drain()
    assert run_of(second).state == "completed"
    assert got == [Cart("c7")]


def test_it_can_be_done_again_with_other_data(added):
    got = collector(added)
    run = played_unreadable()
    with pytest.raises(InvalidEvent, match="^/data/cart_id: .* is missing"):
        rerun(run.id, data={"cart": 8})
    second, third = rerun(run.id, data={"cart_id": "c8"}), rerun(run.id, data=CART)
    drain()
    assert run_of(second).state == run_of(third).state == "completed"
    assert got == [Cart("c8"), CART]


def test_edited_data_are_of_the_version_that_the_type_has_now(joined):
    got = collector(joined)
    run = played("person/joined", {"name": "Ada L"}, v="1")
    with pytest.raises(InvalidEvent, match="^/data/first: "):
        rerun(run.id, data={"name": "Grace H"})
    second = rerun(run.id, data={"first": "Grace", "last": "H"})
    drain()
    assert run_of(second).state == "completed"
    assert got == [Person("Ada", "L"), Person("Grace", "H")]


def played_unreadable() -> RunView:
    event_id = stored_before({"cart": 7})
    drain()
    run = run_of(event_id)
    assert run.state == "failed"
    return run


def registry_flow(flow_id: str) -> Any:
    found = registry.find(flow_id)
    assert found is not None
    return found


WAITS: dict[str, Callable[[Any, Any], Any]] = {
    "one": lambda step, type_: step.wait_for_event("wait", event=type_, timeout="1h").data,
    "several": lambda step, type_: step.wait_for_events("wait", [type_], timeout="1h")[0].data,
    "collect": lambda step, type_: step.collect("wait", event=type_, count=1, timeout="1h")[0].data,
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_wait_raises_the_same_error_where_it_is_called_and_the_run_can_be_retried(added, wait):
    caught: list[Any] = []
    types = [added]

    @flow("waiter", on="go")
    def waiter(step):
        try:
            return wait(step, types[0]).cart_id
        except UnreadableEvent as error:
            caught.append((error.event, error.public_id, error.pointer))
            raise

    run = played("go")
    event_id = stored_before({"cart": 7})
    drain()
    assert caught == [(ADDED, event_id, "/data/cart_id")]
    assert (again(run).state, again(run).attempts) == ("failed", {})
    assert_unreadable(again(run).error, event_id, "/data/cart_id", "is missing")
    assert again(run).step_keys[-1] == "wait"

    types[:] = [mended(ADDED, v="2", upcast=with_number)]
    retry(run.id)
    drain()
    assert again(run).result == "c7"


def test_the_output_of_a_wait_that_is_edited_has_to_fit(added):
    @flow("waiter", on="go")
    def waiter(step):
        return step.wait_for_event("wait", event=added, timeout="1h").data.cart_id

    run = played("go")
    with pytest.raises(InvalidEvent, match="/output/data/cart_id: ") as caught:
        rerun(run.id, from_step="wait", output=Event(added, {"cart_id": 1}))
    assert caught.value.pointer == "/output/data/cart_id"
    second = rerun(run.id, from_step="wait", output=Event(added, CART))
    drain()
    assert run_of(second).result == "c1"


def test_a_saga_of_which_nothing_can_be_read_says_what_it_left(added):
    undone: list[str] = []

    @flow("saga", on=added)
    def saga(event, step):
        step.saga().run("book", lambda: 1, undo=lambda result: undone.append("book"))
        step.sleep("rest", "1h")

    run = played(added, CART)
    StoredEvent.objects.update(data='{"cart": 7}')
    advance("1h")
    message = again(run).error["message"]
    assert again(run).error["name"] == "UndoFailed"
    assert "not undone: 'book'" in message
    assert "UnreadableEvent" in message
    assert undone == []


# -- what is started, not sent ---------------------------------------------------------------


def test_a_flow_of_one_type_is_started_with_what_fits_it(added):
    got = collector(added)
    declared = registry_flow("collector")
    with pytest.raises(InvalidEvent, match="^/data/cart_id: "):
        declared.start({"cart_id": 1})
    assert stored() == []
    declared.start(CART)
    declared.start({"cart_id": "c2"})
    drain()
    assert got == [CART, Cart("c2")]


def test_a_flow_of_one_type_is_invoked_with_what_fits_it(joined):
    @flow("child", on=joined)
    def child(event: Event[Person]) -> str:
        return event.data.first

    @flow("parent", on="go")
    def parent(event, step):
        older = step.invoke("older", child, {"name": "Ada L"}, v="1")
        mapped = step.map("each", child, [Person("Grace", "H"), {"first": "Joan", "last": "C"}])
        try:
            step.invoke("wrong", "child", {"name": "Ada L"})
        except StepError as error:
            return [older, *mapped, error.name]

    assert played().result == ["Ada", "Grace", "Joan", "InvalidEvent"]


def test_items_of_a_map_are_written_and_checked_as_events_are(ordered):
    @flow("child", on=ordered)
    def child(event: Event[Order]) -> str:
        return str(event.data.order_id)

    @flow("parent", on="go")
    def parent(event, step):
        return step.map("each", child, [Order(id=ID), event.data])

    assert played("go", {"id": str(ID)}).result == [str(ID), str(ID)]
    run = played("go", {"id": 7})
    assert (run.state, run.error["name"]) == ("failed", "InvalidEvent")
    assert "/1/data/id: does not fit Order" in run.error["message"]


def test_a_flow_of_several_events_is_started_with_any_dict(added):
    got = collector([added, "other"])
    registry_flow("collector").start({"n": 1})
    drain()
    assert got == [{"n": 1}]


def test_a_run_that_was_started_is_done_again_with_what_fits(added):
    got = collector(added)
    run_id = registry_flow("collector").start(CART)
    drain()
    with pytest.raises(InvalidEvent, match="^/data/cart_id: "):
        rerun(run_id, data={})
    rerun(run_id, data={"cart_id": "c2"})
    drain()
    assert got == [CART, Cart("c2")]


# -- types -----------------------------------------------------------------------------------


def test_a_type_is_its_name(added):
    assert added == ADDED
    assert (added.name, type(added.name), str(added), f"{added}") == (ADDED, str, ADDED, ADDED)
    assert (added.model, added.v) == (Cart, None)
    assert type(Event(added, CART).as_dict()["name"]) is str


def test_the_same_type_may_be_declared_again(added, joined):
    assert EventType(ADDED, Cart) == added
    assert EventType("person/joined", Person, v="3", upcast=split)


def test_two_types_of_one_name_are_an_error_that_names_both(added):
    with pytest.raises(DuplicateEventType) as caught:
        EventType(ADDED, Line)
    assert f"{__name__}.Cart and {__name__}.Line" in str(caught.value)
    with pytest.raises(DuplicateEventType, match="Cart version 2"):
        EventType(ADDED, Cart, v="2")
    assert catalogue.find(ADDED) is added


def test_what_is_declared_in_isolation_is_forgotten():
    with registry.isolated():
        EventType("isolated", Cart)
        refusal("isolated", {})
    assert send("isolated", {})


@dataclass
class Foreign:
    thing: object


class Mixed(Enum):
    A = 1
    B = "b"


@dataclass
class WithMixed:
    x: Mixed


@dataclass
class Outer:
    inner: list[Foreign | None]


@dataclass
class Undefined:
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


class UndefinedModel(pydantic.BaseModel):
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((" blank", Cart), "blanks at its ends"),
        ((7, Cart), "text, not int"),
        (("flows/mine", Cart), "reserved"),
        (("cart/*", Cart), "wildcard"),
        (("a", dict), "takes a dataclass or a pydantic model, not <class 'dict'>"),
        (("a", CART), "takes a dataclass or a pydantic model"),
        (("a", None), "takes a dataclass or a pydantic model, not None"),
        (("a", Foreign), "Foreign has fields of type object, which JSON"),
        (("a", Outer), "Outer has fields of type object, which JSON"),
        (("a", WithMixed), "Enums must contain either all str or all int"),
        (("a", Undefined), "Undefined cannot be read: name 'Nowhere'"),
        (("a", UndefinedModel), "UndefinedModel cannot be read: "),
    ],
)
def test_a_type_that_cannot_be_is_an_error_where_it_is_declared(arguments, says):
    with pytest.raises(InvalidOption, match="^EventType") as caught:
        EventType(*arguments)
    assert says in str(caught.value)
    assert catalogue.find("a") is None


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"v": 2}, "v=: this is text or None, not int"),
        ({"v": ""}, "v=: this has 1 to 64 characters"),
        ({"upcast": "split"}, "upcast= takes a function of data and version"),
    ],
)
def test_an_option_of_a_type_that_is_wrong_is_named(option, says):
    with pytest.raises(InvalidOption, match="^EventType\\('a'\\)") as caught:
        EventType("a", Cart, **option)
    assert says in str(caught.value)


def test_a_pydantic_dataclass_is_read_by_pydantic():
    @pydantic.dataclasses.dataclass
    class Counted:
        n: pydantic.PositiveInt

    counted = EventType("counted", Counted)
    assert "greater than 0" in refusal(counted, {"n": 0}).problem
    got = collector(counted)
    played(counted, Counted(n=1))
    assert got == [Counted(n=1)]


def test_a_signal_has_no_type(added):
    assert send_signal(ADDED, {"n": 1})


def test_a_crash_changes_nothing(added):
    got: list[Any] = []

    @flow("steps", on=added)
    def steps(event, step):
        got.append(event.data)
        return step.run("work", lambda: event.data)

    with crash_after("work"):
        run = played(added, CART)
    drain()
    assert again(run).result == CART_JSON
    assert got == [CART, CART]


def test_what_is_encrypted_is_read_as_its_model_once_it_is_decrypted(added, settings):
    sealed = Encryption([Fernet.generate_key()], fields=["data.lines", "data.size"])
    settings.DURABLE_FLOWS = {"RING": "off", "MIDDLEWARE": [sealed]}
    got = collector(added)

    @flow("waiter", on="go")
    def waiter(step):
        return step.wait_for_event("wait", event=added, timeout="1h", since="run").data

    waiting = played("go")
    run = played(added, CART)
    assert "1.10" not in StoredEvent.objects.get(name=ADDED).data
    assert refused(added, {"cart_id": "c1", "size": "xl"}).pointer == "/data/size"
    assert [event.data for event in sent(added)] == [CART]
    rerun(run.id, data=replace(CART, cart_id="c2"))
    drain()
    assert got == [CART, replace(CART, cart_id="c2")]
    assert again(waiting).result == CART_JSON


def test_what_is_emitted_by_a_signal_of_djangos_has_to_fit(added):
    with pytest.raises(InvalidEvent, match="^/data/cart_id: "):
        emit.send(None, name=ADDED, data={})
    assert stored() == []
    emit.send(None, name=ADDED, data=CART)
    emit.send(None, name=added, data=CART)
    assert [event.data for event in sent(added)] == [CART, CART]


def test_a_module_that_is_loaded_again_brings_its_types_anew():
    def load() -> EventType[Any]:
        @dataclass
        class Loaded:
            n: int

        return EventType("loaded", Loaded, v="1", upcast=lambda data, v: data)

    first, second = load(), load()
    assert first.model is not second.model
    assert catalogue.find("loaded") is second
    got = collector(first)
    played(second, second.model(7))
    assert [type(data) for data in got] == [first.model]
