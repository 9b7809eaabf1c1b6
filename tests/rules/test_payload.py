import enum
import json
import math
from collections import OrderedDict
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_flows.errors import InvalidPayload
from durable_flows.rules.payload import Limits, dumps, loads

LIMITS = Limits(max_bytes=1_000_000)


class Colour(enum.StrEnum):
    RED = "red"


class TextColour(str, enum.Enum):  # noqa: UP042 - the older spelling is what is tested
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Pair(NamedTuple):
    x: int
    y: str


class Money(float):
    def __repr__(self):
        return "a lot"


class Rows:
    """What matters of a queryset."""

    def values_list(self):
        raise AssertionError("evaluated")


class Struct:
    """What matters of msgspec's."""

    __struct_fields__ = ()


class Order:
    """What matters of a Django model: pk is a property of the class."""

    @property
    def pk(self):
        raise AssertionError("looked up, which may be a query")


def refusal(value, limits=LIMITS, pointer=""):
    with pytest.raises(InvalidPayload) as caught:
        dumps(value, limits=limits, pointer=pointer)
    return caught.value


def same(one, other):
    """Equal, of the same types, in the same order, to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)


# -- round trip ------------------------------------------------------------------------------


@given(values)
def test_what_is_written_is_read_back_exactly(value):
    assert same(loads(dumps(value, limits=LIMITS)), value)


@given(st.recursive(scalars, lambda inner: st.lists(inner).map(tuple), max_leaves=8))
def test_tuples_come_back_as_lists(value):
    def as_lists(value):
        return [as_lists(item) for item in value] if isinstance(value, tuple) else value

    assert same(loads(dumps(value, limits=LIMITS)), as_lists(value))


@pytest.mark.parametrize("number", [1e22, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 1.0, 150.0])
def test_floats_stay_the_floats_they_are(number):
    assert same(loads(dumps({"n": [number]}, limits=LIMITS)), {"n": [number]})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        ("é", '"é"'),
        ([], "[]"),
        ({}, "{}"),
        ({"b": 1, "a": [None, {"c": ()}]}, '{"b":1,"a":[null,{"c":[]}]}'),
        ({"snow": "☃", "tab": "\t"}, '{"snow":"☃","tab":"\\t"}'),
    ],
)
def test_text_is_compact_and_keeps_the_order_of_keys(value, text):
    assert dumps(value, limits=LIMITS) == text


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_integers_of_64_bits_are_kept(number):
    assert dumps([number], limits=LIMITS) == f"[{number}]"
    assert dumps(number, limits=LIMITS) == str(number)


def test_a_backslash_before_u0000_is_no_nul():
    assert same(loads(dumps(["\\u0000"], limits=LIMITS)), ["\\u0000"])


# -- subclasses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, "red"),
        (TextColour.RED, "red"),
        (Level.HIGH, 3),
        (Money(2.5), 2.5),
        ({TextColour.RED: Level.HIGH}, {"red": 3}),
        ({"deep": [{"x": Colour.RED, Colour.RED: ["y"]}]}, {"deep": [{"x": "red", "red": ["y"]}]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Pair(1, Colour.RED), [1, "red"]),
    ],
)
def test_subclasses_are_written_as_their_plain_value(value, plain):
    assert same(loads(dumps(value, limits=LIMITS)), plain)


def test_true_is_no_number():
    assert dumps([True, 1], limits=LIMITS) == "[true,1]"


def test_the_value_given_is_not_changed():
    given_value = {"colour": [Colour.RED]}
    dumps(given_value, limits=LIMITS)
    assert given_value["colour"][0] is Colour.RED


# -- bad values ------------------------------------------------------------------------------

BAD = {
    "nan": (float("nan"), "nan, which JSON does not have"),
    "infinity": (float("inf"), "inf, which JSON does not have"),
    "nul": ("a\0b", "NUL character"),
    "surrogate": ("a\ud800b", "lone surrogate"),
    "too great an integer": (2**63, "more than 64 bits"),
    "too small an integer": (-(2**63) - 1, "more than 64 bits"),
    "an integer of many digits": (10**5000, "more than 64 bits"),
    "another type": (object(), "object is not a JSON type"),
}


@pytest.mark.parametrize(("value", "problem"), BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_refused_wherever_it_is(value, problem):
    assert problem in refusal(value).problem
    assert refusal(value).pointer == ""
    nested = refusal({"fine": [1, "é"], "data": {"items": [0, {}, [value]]}})
    assert problem in nested.problem
    assert nested.pointer == "/data/items/2/0"


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (1, "the key 1, which is not a string but int; use str(key)"),
        (None, "the key None, which is not a string but NoneType"),
        (True, "not a string but bool"),
        ((1, 2), "not a string but tuple"),
        pytest.param(10**5000, "the key of many digits", id="many digits"),
        ("a\0", "NUL character"),
        ("\udfff", "lone surrogate"),
        ("k" * 257, "of 257 characters, the limit is 256"),
    ],
)
def test_a_bad_key_is_refused_and_its_dict_pointed_to(key, problem):
    error = refusal({"rows": [{"fine": 1}, {"a": 0, key: 1}]})
    assert problem in error.problem
    assert error.pointer == "/rows/1"
    str(error).encode("ascii")


def test_the_first_bad_value_is_the_one_named():
    bad = float("nan")
    assert refusal({"a": [1, {"b": bad}], "c": bad, "d": bad}).pointer == "/a/1/b"


def test_pointers_are_escaped_and_carry_the_prefix():
    error = refusal({"a/b": {"m~n": [float("nan")]}}, pointer="/17/data")
    assert error.pointer == "/17/data/a~1b/m~0n/0"
    assert str(error).startswith("/17/data/a~1b/m~0n/0: ")


@pytest.mark.parametrize(
    ("value", "name", "advice"),
    [
        (timedelta(1), "timedelta", "value.total_seconds()"),
        (b"x", "bytes", "base64"),
        ({1, 2}, "set", "sorted(value)"),
        (range(3), "range", "list(value)"),
        ((i for i in "ab"), "generator", "list(value)"),
        (ValueError("no"), "ValueError", "str(value)"),
        (Rows(), "Rows", 'values_list("pk", flat=True)'),
        (Struct(), "Struct", "msgspec.to_builtins(value)"),
        (Order(), "Order", "value.pk"),
        (Order, "type", "its name"),
        (len, "builtin_function_or_method", "call it"),
        (1j, "complex", "use None, bool, int, float, str"),
    ],
)
def test_another_type_is_named_with_what_to_use_instead(value, name, advice):
    error = refusal({"x": value})
    assert error.problem.startswith(f"{name} is not a JSON type; ")
    assert advice in error.problem


def test_a_coroutine_is_to_be_awaited():
    async def work():
        pass

    coroutine = work()
    try:
        assert "await it" in refusal(coroutine).problem
    finally:
        coroutine.close()


# -- limits ----------------------------------------------------------------------------------


def nest(levels, kind):
    value: Any = 1
    for _ in range(levels):
        value = {"k": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_depth_counts_the_containers_inside_each_other(kind):
    limits = Limits(max_bytes=1000, max_depth=3)
    assert dumps(nest(3, kind), limits=limits)
    error = refusal(nest(4, kind), limits)
    assert "deeper than 3 levels" in error.problem
    assert error.pointer == ("/k/k/k" if kind is dict else "/0/0/0")


def test_subclasses_do_not_evade_the_limits():
    limits = Limits(max_bytes=10, max_depth=1, max_keys=2)
    assert "deeper than 1" in refusal([OrderedDict()], limits).problem
    assert "keys to 3" in refusal(OrderedDict(a=1, b=2, c=3), limits).problem
    assert "11 bytes" in refusal(TextColour.RED + "0123456789"[:6], limits).problem


@pytest.mark.parametrize("kind", [list, dict])
def test_nesting_without_end_is_refused_by_depth(kind):
    assert "deeper than 64" in refusal(nest(100_000, kind)).problem


def test_a_value_that_contains_itself_is_refused_by_depth():
    itself: dict[str, Any] = {}
    itself["me"] = [itself]
    assert "deeper than 64" in refusal(itself).problem


def test_lists_that_hold_each_other_many_times_are_refused_by_size():
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    assert "bytes as JSON, the limit is 9,999" in refusal(value, Limits(max_bytes=9_999)).problem


def test_a_limit_on_depth_beyond_python_is_refused_as_well():
    limits = Limits(max_bytes=1_000_000, max_depth=10**6)
    assert "deeper than Python can write" in refusal(nest(100_000, list), limits).problem


def test_keys_are_counted_over_all_dicts():
    limits = Limits(max_bytes=1000, max_keys=4)
    assert dumps([{"a": 1, "b": 2}, {"a": {}}, {"a": 1}], limits=limits)
    error = refusal([{"a": 1, "b": 2}, {"a": {}}, {"a": 1, "b": 2}], limits)
    assert "number of keys to 5, the limit is 4" in error.problem
    assert error.pointer == "/2"


def test_keys_may_be_as_long_as_the_limit_says():
    longest, limits = "é" * 256, Limits(max_bytes=10_000)
    assert dumps({longest: 1, "é" * 255: 2}, limits=limits)
    assert refusal({longest + "é": 1}, limits).pointer == ""


@pytest.mark.parametrize(
    ("value", "size"),
    [(None, 4), (True, 4), ("abc", 5), ("é", 4), ("😀", 6), ({"é": [1, 2]}, 12), ([], 2)],
)
def test_size_is_counted_in_bytes_of_utf_8(value, size):
    assert dumps(value, limits=Limits(max_bytes=size))
    error = refusal(value, Limits(max_bytes=size - 1), pointer="/data")
    assert f"takes {size} bytes as JSON, the limit is {size - 1}" in error.problem
    assert error.pointer == "/data"


@given(values)
def test_size_is_that_of_the_text(value):
    size = len(dumps(value, limits=LIMITS).encode())
    assert dumps(value, limits=Limits(max_bytes=size))
    assert refusal(value, Limits(max_bytes=size - 1))


@given(values)
def test_plain_and_subclassed_values_are_written_alike(value):
    class Text(str):
        pass

    def wrapped(value):
        match value:
            case dict():
                return OrderedDict((Text(key), wrapped(item)) for key, item in value.items())
            case list():
                return tuple(map(wrapped, value))
            case str():
                return Text(value)
        return value

    assert dumps(wrapped(value), limits=LIMITS) == dumps(value, limits=LIMITS)


# -- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "-Infinity", "1 2", "9" * 5000])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(InvalidPayload, match="is not JSON"):
        loads(text)


def test_json_too_deep_to_read_is_refused():
    with pytest.raises(InvalidPayload, match="nested too deep"):
        loads("[" * 100_000 + "]" * 100_000)


def test_other_peoples_json_is_read():
    assert loads(' {"a": [1, 2.0]}\n') == json.loads('{"a": [1, 2.0]}')
