"""Events: what the data of an event are, by how it was made and by who listens to it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, assert_type

import pydantic

from durable_flows import CancelOn, Event, EventType, On, asend, flow, send
from durable_flows import testing as kit


@dataclass
class CartData:
    cart_id: str
    price: Decimal = Decimal(0)


class OrderData(pydantic.BaseModel):
    order_id: int


CART = EventType("cart/product.added", CartData)
ORDER = EventType("order/placed", OrderData, v="2", upcast=lambda data, v: {**data, "v": v})

assert_type(CART, EventType[CartData])
assert_type(CART.model, type[CartData])
assert_type(CART.name, str)
assert_type(ORDER, EventType[OrderData])
EventType("cart/product.added", {})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
EventType("cart/product.added", CartData, upcast=str.upper)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


# -- events as values --------------------------------------------------------------------------

assert_type(Event("order/placed"), Event)
assert_type(Event("order/placed", {"n": 1}), Event)
assert_type(Event("order/placed").data, dict[str, Any])
assert_type(Event(CART, CartData("c1")), Event[CartData])
assert_type(Event(CART, CartData("c1")).data.cart_id, str)
assert_type(Event(ORDER, OrderData(order_id=1)).data.order_id, int)
assert_type(Event(CART, {"cart_id": "c1"}), Event)
Event(CART, OrderData(order_id=1))  # type: ignore[misc] # pyright: ignore[reportArgumentType, reportCallIssue]
Event("order/placed", 7)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]


# -- sending -----------------------------------------------------------------------------------

assert_type(send(CART, CartData("c1")), list[str])
assert_type(send(CART, {"cart_id": "c1"}, id="1"), list[str])
assert_type(send("order/placed", {"n": 1}, user={"id": 7}), list[str])
assert_type(send([Event(CART, CartData("c1")), Event("order/placed")]), list[str])
send(CART, OrderData(order_id=1))  # type: ignore[misc] # pyright: ignore[reportArgumentType, reportCallIssue]
send(ORDER, 7)  # type: ignore[misc] # pyright: ignore[reportArgumentType, reportCallIssue]
send(Event("order/placed"), {"n": 1})  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
assert_type(kit.send(CART, CartData("c1")), str)
assert_type(kit.sent(CART), list[Event[CartData]])
assert_type(kit.sent("order/placed"), list[Event])


async def in_a_view() -> None:
    assert_type(await asend(CART, CartData("c1")), list[str])
    await asend(CART, OrderData(order_id=1))  # type: ignore[misc] # pyright: ignore[reportArgumentType, reportCallIssue]


# -- handlers ----------------------------------------------------------------------------------


@flow("typed", on=CART, cancel_on=CancelOn(CART, match="data.cart_id"))
def typed(event: Event[CartData], events: list[Event[CartData]]) -> None:
    assert_type(event.data, CartData)
    assert_type(event.data.cart_id, str)
    assert_type(events[0].data.price, Decimal)
    event.data.basket  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


@flow("several", on=[CART, On(ORDER, if_="event.data.order_id > 7"), "other"])
def several(event: Event[CartData] | Event[OrderData] | Event) -> None:
    if isinstance(event.data, CartData):
        assert_type(event.data.cart_id, str)


@flow("plain", on="order/placed")
def plain(event: Event) -> None:
    assert_type(event.data, dict[str, Any])
    assert_type(event.data["n"], Any)


typed.start(CartData("c1"))
typed.start(OrderData(order_id=1), key="1")
typed.start({"cart_id": "c1"})
typed.start(7)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
