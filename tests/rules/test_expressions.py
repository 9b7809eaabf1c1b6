"""Expressions: what is read without CEL, what CEL is asked, and that both say the same."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from durable_flows.errors import ExpressionFailed, InvalidExpression, InvalidOption
from durable_flows.rules import equalities, events, expressions, keys
from durable_flows.rules.equalities import Condition, Equality
from durable_flows.rules.expressions import TRIGGER, WAIT


def read(text: str, names: tuple[str, ...] = WAIT) -> Condition:
    return expressions.condition(text, what="here", names=names)


def both(own: Any = None, new: Any = None) -> dict[str, dict[str, Any]]:
    return {"event": {"data": own}, "async": {"data": new}}


# -- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "equality"),
    [
        ("event.data.a == async.data.b", Equality("data.b", own="data.a")),
        ("async.data.b == event.data.a", Equality("data.b", own="data.a")),
        ("async.data.b==event.data.a", Equality("data.b", own="data.a")),
        ("  async . data . b \n == event.user.id ", Equality("data.b", own="user.id")),
        ("async.name == 'a/b'", Equality("name", literal="a/b")),
        ('"it\'s" == async.data.b', Equality("data.b", literal="it's")),
        (r"async.data.b == r'a\d'", Equality("data.b", literal=r"a\d")),
        ("async.data.b == ''", Equality("data.b", literal="")),
        ("async.data.b == 'é && =='", Equality("data.b", literal="é && ==")),
        ("async.data.b == 150", Equality("data.b", literal=150)),
        ("async.data.b == -150", Equality("data.b", literal=-150)),
        ("async.data.b == - 1.5e3", Equality("data.b", literal=-1500.0)),
        ("async.data.b == -9223372036854775808", Equality("data.b", literal=-(2**63))),
        ("async.data.b == true", Equality("data.b", literal=True)),
        ("async.data.b == null", Equality("data.b", literal=None)),
        ("async.data.size == event.data.matches", Equality("data.size", own="data.matches")),
    ],
)
def test_a_plain_equality_needs_no_cel(text, equality):
    assert equalities.read(text, WAIT) == Condition((equality,))


def test_equalities_are_read_from_between_top_level_ands():
    found = read("event.data.a == async.data.a && async.data.n > 3 && async.data.b == 'x'")
    assert found.equalities == (Equality("data.a", own="data.a"), Equality("data.b", literal="x"))
    assert found.residual == "async.data.n > 3"


def test_the_rest_keeps_its_text_and_its_signs_inside_brackets():
    found = read(
        "(async.data.a == 1 || event.data.b == 2) && async.data.c == 3 && has(async.data.d)"
    )
    assert found.equalities == (Equality("data.c", literal=3),)
    assert found.residual == "(async.data.a == 1 || event.data.b == 2) && has(async.data.d)"


def test_what_says_the_same_is_looked_for_in_the_same_way():
    one = read("async.data.a == 1 && async.data.b == event.data.b && async.data.a == 1")
    assert one == read("event.data.b == async.data.b && async.data.a == 1")


def test_a_match_and_an_expression_are_asked_for_together():
    found = read("async.data.b == 1").matched("data.a")
    assert found.paths == ("data.a", "data.b")
    assert found.values({"data": {"a": 7}}) == [7, 1]
    assert found.matched(None) is found


def test_a_trigger_reads_equalities_of_its_event_with_literals():
    assert read("event.data.a == 'x'", TRIGGER) == Condition((Equality("data.a", literal="x"),))


@pytest.mark.parametrize(
    "text",
    [
        "event.data.a == async.data.b || async.data.c == 1",
        "event.data.a == async.data.b && async.data.c == 1 || true",
        "event.data.a == async.data.b ? true : false",
        "(event.data.a == async.data.b)",
        "!(event.data.a == async.data.b)",
        "event.data.a != async.data.b",
        "event.data.a >= async.data.b",
        "event.data.a == event.data.b",
        "async.data.a == async.data.b",
        "event.data.a == 1",  # of the run's own event: not for the event in question
        "event == async",
        "async.data.a == async",
        "async.data['a'] == 1",
        "async.data.`a` == 1",
        "async.data.a == event.data.b // as agreed",
        r"async.data.a == 'a\'b'",
        r"async.data.a == '\x61'",
        "async.data.a == '''a'''",
        "async.data.a == b'a'",
        "async.data.a == 0x96",
        "async.data.a == 5u",
        "async.data.a == .5",
        "async.data.a == 007",
        "async.data.a == 1e400",
        "async.data.a == 1 == true",
        "async.data.a + 1 == 2",
        "size(async.data.a) == 2",
        "async.data.a.size() == 2",
        "async.data.a in [1]",
        "[1].exists(x, async.data.a == x && async.data.b == 1)",
        "1 == 1",
        ".async.data.a == 1",
    ],
)
def test_whatever_is_in_doubt_is_left_to_cel(text):
    found = read(text)
    assert found == Condition((), text)


# -- what is refused where it is written -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "takes an expression as text"),
        ("  ", "takes an expression as text"),
        (7, "takes an expression as text"),
        (None, "takes an expression as text"),
        ("async.data.a ==", "does not compile"),
        ("&& async.data.a == 1", "does not compile"),
        ("async.data.a == 1 &&", "does not compile"),
        ("async.data.a == 1 && && true", "does not compile"),
        ("async.data.a = 1", "does not compile"),
        ("async.data..a == 1", "does not compile"),
        ("async.data. == 1", "does not compile"),
        ("async.data.in == 1", "does not compile"),
        ("async.data.true == 1", "does not compile"),
        ("async.data.a == 9223372036854775808", "does not compile"),
        ("async.data.a == 1)", "does not compile"),
        ("1 == 'a'", "does not compile"),
        ("data.a == 1", "undeclared reference to 'data"),
        ("events.a == 1 && async.data.a == 1", "undeclared reference to 'events"),
        (
            "async.data.a == 1 && zz == 2",
            "| async.data.a == 1 && zz == 2 |",
        ),  # its place in the whole
        ("1 + 1", "of type INT"),
        ("'yes'", "of type STRING"),
        ("event.cart == async.data.cart", "did you mean event.data.cart?"),
        ("has(async.cart) || true", "did you mean async.data.cart?"),
        ("async.data.a == 'a\0b'", "control characters"),
        ("async.data.a == '\ud800'", "control characters"),
        ("async.data.a > 1 || " * 400 + "true", "4,000"),
        ("(" * 40 + "async.data.a" + ")" * 40 + " == 1", "recursion"),
        ("async.data.a.matches(async.data.b)", "as a literal"),
        ("async.data.a.matches('a' + async.data.b)", "as a literal"),
        ("matches(async.data.a, async.data.b)", "as a literal"),
        ("matches('a', async.data['b'])", "as a literal"),
        ("async.data.a.matches(async.data.b) // 'x'", "as a literal"),
    ],
)
def test_what_is_no_condition_is_refused_and_named(text, says):
    with pytest.raises(InvalidExpression) as caught:
        read(text)
    assert isinstance(caught.value, InvalidOption)
    assert says in caught.value.problem
    assert str(caught.value).startswith(f"here: {text!r}"[:200])
    assert len(str(caught.value)) < 1_000


def test_a_trigger_knows_no_other_event():
    with pytest.raises(InvalidExpression, match="undeclared reference to 'async"):
        read("event.data.a == async.data.a", TRIGGER)


@pytest.mark.parametrize(
    "text",
    [
        "async.data.a.matches('^a+$')",
        r"matches(async.data.a, r'^\w+$') && async.data.b == 1",
        "async.data.list.exists(x, x.matches('a'))",
        "async.data.matches == 1 || true",
    ],
)
def test_a_literal_pattern_is_taken(text):
    assert read(text).residual


# -- what is evaluated -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "own", "new", "answer"),
    [
        ("async.data.n > event.data.n", {"n": 1}, {"n": 2}, True),
        ("async.data.n > event.data.n", {"n": 2}, {"n": 2}, False),
        ("has(async.data.x) && async.data.x == 1", {}, {}, False),
        ("async.data.x == 1 || async.data.n == 2", {}, {"n": 2}, True),
        (
            "async.data.tags.exists(t, t == event.data.tag)",
            {"tag": "b"},
            {"tags": ["a", "b"]},
            True,
        ),
        ("async.data.b || false", {}, {"b": True}, True),
        ("async.data.f > 9.9e299", {}, {"f": 1e300}, True),
        ("async.data.i > 0", {}, {"i": 2**63 - 1}, True),
    ],
)
def test_an_expression_answers(text, own, new, answer):
    assert expressions.evaluate(text, both(own, new)) is answer


@pytest.mark.parametrize(
    ("text", "new", "says"),
    [
        ("async.data.x == 1", {}, '"x"'),
        ("async.data.x", {"x": "true"}, "of type STRING, not a boolean"),
        ("async.data.x", {"x": 1}, "of type INT, not a boolean"),
        ("async.data.x.y == 1", {"x": None}, ""),
        ("async.data.x > 1", {"x": "a"}, ""),
        ("async.data.x - 1 < 0", {"x": -(2**63)}, "overflow"),
        ("1 / async.data.x == 1", {"x": 0}, "divide by zero"),
        ("async.data.x == 1 || false", {"x": 2**64}, "out of range"),
        ("async.data.x == 1 || false", {"x": "\ud800"}, ""),
        ("async.data.x.all(a, async.data.x.all(b, a + b >= 0))", {"x": list(range(300))}, "budget"),
    ],
)
def test_what_comes_to_nothing_is_no_answer(text, new, says):
    with pytest.raises(ExpressionFailed) as caught:
        expressions.evaluate(text, both({}, new))
    assert says in caught.value.problem
    assert caught.value.expression == text


def test_a_payload_stays_out_of_the_lines_of_a_log():
    with pytest.raises(ExpressionFailed) as caught:
        expressions.evaluate(
            "async.data[async.data.k] == 1", both({}, {"k": "a\nERROR b\0\x1b[31m"})
        )
    assert caught.value.problem.isprintable()
    with pytest.raises(ExpressionFailed) as caught:
        expressions.evaluate("async.data[async.data.k] == 1", both({}, {"k": "k" * 100_000}))
    assert len(caught.value.problem) < 400


@pytest.mark.parametrize(
    "text",
    [
        "async.data.small.all(x, !(x in async.data.large))",
        "async.data.small.exists(x, async.data.text.contains('xxxxxy'))",
    ],
)
def test_a_large_event_does_not_keep_a_loop_busy_for_long(text):
    new = {"small": list(range(9_000)), "large": [-1] * 100_000, "text": "x" * 200_000}
    before = time.monotonic()
    with pytest.raises(ExpressionFailed, match="too much work"):
        expressions.evaluate(text, both({}, new))
    assert time.monotonic() - before < 1.0


def test_a_short_list_in_a_large_event_is_looped_over():
    new = {"small": [1, 2, 3], "text": "x" * 400_000}
    assert expressions.evaluate("async.data.small.exists(x, x == 3)", both({}, new))


def test_deep_payloads_are_compared():
    deep: Any = 1
    for _ in range(64):
        deep = {"a": deep}
    assert expressions.evaluate("async.data == event.data", both(deep, deep))


def test_a_document_has_the_fields_that_paths_may_name():
    document = expressions.document(events.Event("a", {"x": 1}))
    assert tuple(document) == keys.FIELDS
    assert expressions.evaluate(
        "event.name == 'a' && event.user == null && event.ts == null", {"event": document}
    )


@pytest.mark.parametrize(
    ("literal", "value", "same"),
    [
        ("150", 150.0, True),
        ("150.0", 150, True),
        ("-0.0", 0, True),
        ("1", True, False),
        ("true", 1, False),
        ("true", True, True),
        ("false", 0, False),
        ("false", None, False),
        ("null", None, True),
        ("null", 0, False),
        ("'150'", 150, False),
        ("'a'", "a", True),
        ("'a'", ["a"], False),
        ("''", None, False),
    ],
)
def test_values_equal_as_in_a_match_however_they_are_compared(literal, value, same):
    document = {"data": {"a": value}}
    asked = read(f"event.data.a == {literal}", TRIGGER)
    assert not asked.residual
    assert expressions.holds(asked, document) is same
    assert expressions.evaluate(f"(event.data.a == {literal})", {"event": document}) is same


# -- both ways say the same ------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**53), 2**53),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, 150.0, 1e300, 2.0**53]),
    st.text("ab é'", max_size=2),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)
datas = st.dictionaries(st.sampled_from("abc"), values, max_size=3)
paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=2).map(
    lambda names: ".".join(["data", *names])
)


def spelled(literal: Any) -> str:
    return json.dumps(literal, ensure_ascii=False)


literals = scalars.filter(lambda value: not (isinstance(value, str) and '"' in value))
terms = st.one_of(
    st.builds("event.{} == async.{}".format, paths, paths),
    st.builds("async.{} == event.{}".format, paths, paths),
    st.builds(lambda path, value: f"async.{path} == {spelled(value)}", paths, literals),
    st.builds(lambda path, value: f"{spelled(value)} == async.{path}", paths, literals),
    st.builds("async.{} != event.{}".format, paths, paths),
    st.builds("(async.{} == event.{} || has(async.{}))".format, paths, paths, paths),
)
texts = st.lists(terms, min_size=1, max_size=3).map(" && ".join)


def read_answer(asked: Condition, own: Any, new: Any) -> bool:
    """As the engine decides: by the hash of the values, then by what is left."""
    mine = asked.values(own)
    found = [keys.read(new, tuple(path.split("."))) for path in asked.paths]
    if any(value is keys.MISSING for value in [*mine, *found]):
        return False
    if keys.match_hash("n", asked.paths, mine) != keys.match_hash("n", asked.paths, found):
        return False
    return not asked.residual or answered(asked.residual, own, new)


def answered(text: str, own: Any, new: Any) -> bool:
    """As CEL alone decides; what comes to nothing does not match."""
    try:
        return expressions.evaluate(text, {"event": own, "async": new})
    except ExpressionFailed:
        return False


@given(texts, datas, datas)
def test_what_is_read_says_what_cel_says(text, own, new):
    asked = read(text)
    mine, other = {"data": own}, {"data": new}
    assert read_answer(asked, mine, other) == answered(text, mine, other)


@given(st.builds(lambda p, v: f"event.{p} == {spelled(v)}", paths, literals), datas)
def test_a_trigger_that_is_read_says_what_cel_says(text, data):
    asked = read(text, TRIGGER)
    assume(not asked.residual)
    document = {"data": data}
    try:
        expected = expressions.evaluate(text, {"event": document})
    except ExpressionFailed:
        expected = False
    assert expressions.holds(asked, document) == expected


@given(st.text("eventasync.data01x=&|!?:()[]'\"\\ -/`r", max_size=40))
def test_no_text_makes_the_reader_fail_or_read_what_cel_refuses(text):
    assume(text.strip())
    asked = equalities.read(text, WAIT)
    if asked.equalities and not asked.residual:
        expressions._compiled(text, WAIT)  # raises where CEL refuses it


def test_beyond_what_floats_can_tell_apart_reading_is_exact_and_cel_is_not():
    large, near = 2**53 + 1, float(2**53)
    assert not keys.equal(large, near)
    assert answered("(event.data.a == async.data.a)", {"data": {"a": large}}, {"data": {"a": near}})
