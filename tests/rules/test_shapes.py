"""Where and why JSON does not fit a dataclass or a model."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal, Optional

import pydantic
import pytest

from durable_flows.errors import InvalidOption, InvalidPayload
from durable_flows.rules.payload import Limits, dumps
from durable_flows.rules.shapes import shape_of

LIMITS = Limits(max_bytes=1_000_000)


class Level(IntEnum):
    HIGH = 3


class Colour(Enum):
    RED = "red"


@dataclass
class Leaf:
    n: int = 0


@dataclass
class Tree:
    leaf: Leaf | None = None
    leaves: list[Leaf] = field(default_factory=list)
    named: dict[str, Leaf] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    below: Optional[Tree] = None  # noqa: UP045 - so that the name is read late


@dataclass
class Everything:
    moment: datetime
    day: date
    hour: time
    id: uuid.UUID
    price: Decimal
    rate: float
    colour: Colour
    level: Level
    kind: Literal["a", "b"]
    maybe: int | None
    anything: Any


class TreeModel(pydantic.BaseModel):
    leaves: list[Leaf] = []
    named: dict[str, Leaf] = {}


def misfit(model: type, data: Any) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        shape_of(model, "here").read(json.dumps(data))
    return caught.value


def test_what_the_rules_write_for_a_dataclass_is_read_as_the_same():
    every = Everything(
        moment=datetime(2026, 3, 1, 12, 30, 0, 250),  # noqa: DTZ001
        day=date(2026, 3, 1),
        hour=time(9, 30),
        id=uuid.UUID(int=7),
        price=Decimal("1.10"),
        rate=2.5,
        colour=Colour.RED,
        level=Level.HIGH,
        kind="b",
        maybe=None,
        anything={"n": [1]},
    )
    assert shape_of(Everything, "here").read(dumps(every, limits=LIMITS)) == every


def test_whole_numbers_are_floats_and_numbers_are_decimals():
    @dataclass
    class Numbers:
        rate: float
        price: Decimal

    found = shape_of(Numbers, "here").read('{"rate":1,"price":1.5}')
    assert (found.rate, type(found.rate), found.price) == (1.0, float, Decimal("1.5"))


@pytest.mark.parametrize(
    ("data", "pointer", "says"),
    [
        ([], "", "Expected `object`, got `array`"),
        ({"leaf": {"n": "1"}}, "/leaf/n", "Expected `int`, got `str`"),
        ({"leaves": [{}, {"n": 1.5}]}, "/leaves/1/n", "Expected `int`, got `float`"),
        ({"named": {"a": {"n": "x"}}}, "/named", "in one of its values (at .named[...].n)"),
        ({"pair": [1, 2]}, "/pair/1", "Expected `str`, got `int`"),
        ({"pair": [1]}, "/pair", "length 2"),
        ({"below": {"below": {"leaf": 1}}}, "/below/below/leaf", "Expected `object | null`"),
    ],
)
def test_a_pointer_leads_to_what_does_not_fit_a_dataclass(data, pointer, says):
    error = misfit(Tree, data)
    assert error.pointer == pointer
    assert says in error.problem


def test_a_key_that_does_not_fit_is_pointed_to_by_its_dict():
    @dataclass
    class ByNumber:
        named: dict[int, str]

    error = misfit(ByNumber, {"named": {"a": "b"}})
    assert error.pointer == "/named"
    assert error.problem == "Expected `int`, got `str`, in one of its keys"


@pytest.mark.parametrize(
    ("data", "pointer", "says"),
    [
        ({"leaves": [{}, {"n": "x"}]}, "/leaves/1/n", "valid integer"),
        ({"named": {"a/b~c": {"n": "x"}}}, "/named/a~1b~0c/n", "valid integer"),
        ({"leaves": [{"n": "x"}, {"n": "y"}]}, "/leaves/0/n", "(and 1 more)"),
    ],
)
def test_a_pointer_leads_to_what_does_not_fit_a_model(data, pointer, says):
    error = misfit(TreeModel, data)
    assert error.pointer == pointer
    assert says in error.problem


def test_keys_that_a_dataclass_does_not_have_are_passed_over():
    assert shape_of(Leaf, "here").read('{"n":1,"more":[]}') == Leaf(1)


def test_without_pydantic_a_dataclass_is_read_as_well(monkeypatch):
    monkeypatch.delitem(sys.modules, "pydantic")
    assert shape_of(Leaf, "here").read('{"n":1}') == Leaf(1)
    assert dumps(Leaf(1), limits=LIMITS) == '{"n":1}'


@pytest.mark.parametrize("model", [dict, int, Leaf(), None, list[Leaf], Colour])
def test_what_is_neither_a_dataclass_nor_a_model_is_refused(model):
    with pytest.raises(InvalidOption, match="^here takes a dataclass or a pydantic model"):
        shape_of(model, "here")
