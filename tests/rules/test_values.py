"""What becomes of values that JSON does not have."""

import enum
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import pydantic
import pytest

from durable_flows.errors import InvalidPayload
from durable_flows.rules.payload import Limits, dumps, loads

LIMITS = Limits(max_bytes=1_000_000)


class Size(enum.Enum):
    SMALL = "s"
    CUT = date(2026, 3, 1)


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Day(NamedTuple):
    day: date
    hour: int


@dataclass
class Price:
    amount: Decimal
    currency: str = "EUR"


@dataclass(frozen=True, slots=True)
class Line:
    sku: uuid.UUID
    prices: list[Price]
    hidden: Any = field(default=None, repr=False)


@dataclass
class Node:
    next: Any = None


class Address(pydantic.BaseModel):
    street: str
    since: date


class Customer(pydantic.BaseModel):
    id: uuid.UUID
    home: Address
    tags: set[str] = set()


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Stubborn(pydantic.BaseModel):
    x: int = 1

    @pydantic.field_serializer("x")
    def write(self, x):
        raise RuntimeError("not today")


ID = uuid.UUID("0190d5e4-7d3a-7c3e-8f5e-3b2a1c0d9e8f")
RULES = {
    "datetime": (datetime(2026, 3, 1, 12, 30, tzinfo=UTC), "2026-03-01T12:30:00+00:00"),
    "datetime elsewhere": (
        datetime(2026, 3, 1, 12, 30, 0, 250, tzinfo=timezone(timedelta(hours=9))),
        "2026-03-01T12:30:00.000250+09:00",
    ),
    "naive datetime": (datetime(2026, 3, 1, 12), "2026-03-01T12:00:00"),  # noqa: DTZ001
    "date": (date(2026, 3, 1), "2026-03-01"),
    "time": (time(9, 30), "09:30:00"),
    "uuid": (ID, str(ID)),
    "decimal": (Decimal("1.10"), "1.10"),
    "small decimal": (Decimal("1E-7"), "1E-7"),
    "enum": (Size.SMALL, "s"),
    "enum of dates": (Size.CUT, "2026-03-01"),
    "flag": (Access.READ | Access.WRITE, 3),
    "dataclass": (
        Line(ID, [Price(Decimal("9.90")), Price(Decimal(1), "USD")]),
        {
            "sku": str(ID),
            "prices": [
                {"amount": "9.90", "currency": "EUR"},
                {"amount": "1", "currency": "USD"},
            ],
            "hidden": None,
        },
    ),
    "pydantic model": (
        Customer(id=ID, home=Address(street="A", since=date(2026, 3, 1)), tags={"new"}),
        {"id": str(ID), "home": {"street": "A", "since": "2026-03-01"}, "tags": ["new"]},
    ),
    "pydantic root model": (Numbers([1, 2]), [1, 2]),
}


def refusal(value, limits=LIMITS):
    with pytest.raises(InvalidPayload) as caught:
        dumps(value, limits=limits, pointer="/data")
    return caught.value


@pytest.mark.parametrize(("value", "becomes"), RULES.values(), ids=RULES.keys())
def test_each_type_with_a_rule_is_written_by_it_wherever_it_is(value, becomes):
    assert loads(dumps(value, limits=LIMITS)) == becomes
    assert loads(dumps({"a": [value, 1], "b": (value,)}, limits=LIMITS)) == {
        "a": [becomes, 1],
        "b": [becomes],
    }
    assert loads(dumps(Node(value), limits=LIMITS)) == {"next": becomes}


def test_the_fields_of_a_dataclass_keep_their_order():
    assert dumps(Line(ID, []), limits=LIMITS) == f'{{"sku":"{ID}","prices":[],"hidden":null}}'


@pytest.mark.parametrize(
    ("value", "pointer", "problem"),
    [
        ({"at": [timedelta(1)]}, "/data/at/0", "timedelta is not a JSON type"),
        (
            Line(ID, [Price(Decimal("NaN"))]),
            "/data/prices/0/amount",
            "is Decimal('NaN'), which is no",
        ),
        ({"n": Decimal("-Infinity")}, "/data/n", "use None"),
        (Node({"x": Node(b"1")}), "/data/next/x/next", "base64"),
        (Node({1, 2}), "/data/next", "sorted(value)"),
        ({"rate": Node(float("nan"))}, "/data/rate/next", "nan, which JSON does not have"),
        ({"when": {date(2026, 3, 1): 1}}, "/data/when", "is not a string but date; use str(key)"),
        ([Stubborn()], "/data/0", "Stubborn cannot be written as JSON"),
        (Price, "/data", "type is not a JSON type; use its name"),
    ],
)
def test_what_has_no_rule_is_refused_with_a_pointer_through_what_has_one(value, pointer, problem):
    error = refusal(value)
    assert error.pointer == pointer
    assert problem in error.problem


def test_a_dataclass_that_lacks_a_field_is_refused():
    price = Price(Decimal(1))
    del price.amount
    assert "Price lacks a field: " in refusal([price]).problem
    assert refusal([price]).pointer == "/data/0"


def test_limits_hold_for_what_values_become():
    chain: Any = 1
    for _ in range(5):
        chain = Node(chain)
    assert dumps(chain, limits=Limits(max_bytes=100, max_depth=5))
    assert "deeper than 4 levels" in refusal(chain, Limits(max_bytes=100, max_depth=4)).problem
    assert "keys to 5" in refusal(chain, Limits(max_bytes=100, max_keys=4)).problem
    long = Limits(max_bytes=100, max_key_length=3)
    assert "the key 'next' of 4 characters" in refusal(Node(), long).problem
    assert "12 bytes" in refusal(date(2026, 3, 1), Limits(max_bytes=11)).problem


def test_a_dataclass_that_contains_itself_is_refused_by_depth():
    itself = Node()
    itself.next = [itself]
    assert "deeper than 64" in refusal(itself).problem


def test_a_named_tuple_is_a_list():
    assert dumps(Day(date(2026, 3, 1), 2), limits=LIMITS) == '["2026-03-01",2]'
