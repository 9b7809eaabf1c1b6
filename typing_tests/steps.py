"""Steps: what each tool returns, in handlers written with ``def`` and with ``async def``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from durable_flows import AsyncStep, Awaited, Event, EventType, Step


@dataclass
class CartData:
    cart_id: str


@dataclass
class PaidData:
    cents: int


CART = EventType("cart/product.added", CartData)
PAID = EventType("order/paid", PaidData)


def count(n: int) -> str:
    return str(n)


async def fetch(n: int) -> bytes:
    return bytes(n)


def waits(step: Step) -> None:
    one = step.wait_for_event("one", event=CART, timeout="1h", match="data.cart_id")
    assert_type(one, Event[CartData] | None)
    one.data  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
    assert one is not None
    assert_type(one.data.cart_id, str)
    assert_type(step.wait_for_event("two", event="order/paid", timeout=1.5), Event | None)
    assert_type(
        step.wait_for_events("three", [CART, CART], timeout="1h"), list[Event[CartData] | None]
    )
    assert_type(
        step.wait_for_events("four", ["a", Awaited(CART, match="data.cart_id")], timeout="1h"),
        list[Event[Any] | None],
    )
    for found in step.wait_for_events("five", [CART, PAID], timeout="1h", mode="any"):
        if found is not None and isinstance(found.data, PaidData):
            assert_type(found.data.cents, int)
    assert_type(step.collect("six", event=PAID, count=3, timeout="1h"), list[Event[PaidData]])
    assert_type(step.collect("seven", event="order/paid", count=3, timeout="1h"), list[Event])
    step.wait_for_event("eight", event=7, timeout="1h")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    step.wait_for_event("nine", event=CART)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


async def async_waits(step: AsyncStep) -> None:
    one = await step.wait_for_event("one", event=CART, timeout="1h")
    assert_type(one, Event[CartData] | None)
    assert_type(await step.wait_for_event("two", event="order/paid", timeout="1h"), Event | None)
    found = await step.wait_for_events("three", [CART], timeout="1h")
    assert_type(found, list[Event[CartData] | None])
    assert_type(await step.collect("six", event=PAID, count=3, timeout="1h"), list[Event[PaidData]])


def runs(step: Step) -> None:
    assert_type(step.run("count", count, 7), str)
    assert_type(step.sleep("rest", "1h"), None)
    assert_type(step.send_event("tell", [Event(CART, CartData("c1")), Event("other")]), list[str])
    assert_type(step.invoke("call", "child", CartData("c1")), Any)
    assert_type(step.map("each", "child", [CartData("c1"), {"n": 1}]), list[Any])

    @step.run("decorated")
    def decorated() -> int:
        return 7

    assert_type(decorated, int)


async def async_runs(step: AsyncStep) -> None:
    assert_type(await step.run("count", count, 7), str)
    assert_type(await step.run("fetch", fetch, 7), bytes)
    step.run("nothing", 7)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
