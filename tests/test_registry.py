"""Declaring flows: what is registered, and what is refused at import."""

from __future__ import annotations

import pytest

from durable_flows import CancelOn, Fixed, Retries, flow
from durable_flows.errors import DuplicateFlow, InvalidHandler, InvalidOption
from durable_flows.flows import Flow
from durable_flows.handlers import PARAMETERS
from durable_flows.registry import Registry, registry


def declare(id="mine", **options):
    def handler(event, step):
        return None

    return flow(id, **options)(handler)


# -- what is registered ----------------------------------------------------------------------


def test_a_decorated_function_is_a_flow():
    rule = CancelOn("stop")
    declared = declare(on=["a", "b"], cancel_on=[rule], retries=2, queue="mails")
    assert isinstance(declared, Flow)
    assert declared.id == "mine"
    assert declared.triggers == ("a", "b")
    assert declared.cancel_on == (rule,)
    assert declared.retries.limit == 2
    assert declared.queue == "mails"
    assert declared.parameters == {"event", "step"}
    assert registry.find("mine") is declared


def test_defaults():
    declared = declare()
    assert (declared.triggers, declared.cancel_on, declared.queue) == ((), (), "")
    assert declared.retries == Retries(4)


def test_one_trigger_and_one_rule_need_no_list():
    declared = declare(on="a", cancel_on=CancelOn("stop"))
    assert (declared.triggers, declared.cancel_on) == (("a",), (CancelOn("stop"),))


def test_a_number_of_retries_keeps_the_default_delays():
    assert declare(retries=7).retries == Retries(7)


def test_a_policy_is_taken_as_it_is():
    policy = Retries(1, backoff=Fixed("1m"), on=TimeoutError)
    assert declare(retries=policy).retries is policy


def test_a_flow_cannot_be_changed():
    with pytest.raises(AttributeError):
        declare().queue = "elsewhere"


def test_the_registry_finds_flows_by_id_and_by_event():
    one, other = declare("one", on=["a", "b"]), declare("other", on="b")
    assert registry.find("one") is one
    assert registry.find("nobody") is None
    assert list(registry.listening("b")) == [one, other]
    assert list(registry.listening("c")) == []


def test_what_a_test_declares_is_forgotten_after_it():
    before = len(registry)
    with registry.isolated():
        declare("passing", on="a")
        assert len(registry) == before + 1
    assert len(registry) == before
    assert registry.find("passing") is None
    assert list(registry.listening("a")) == []


def test_a_registry_of_ones_own_is_empty():
    assert list(Registry()) == []


# -- a flow is not a function ----------------------------------------------------------------


def test_calling_a_flow_is_a_type_error_that_names_start_and_send():
    declared = declare(on=["order/placed"])
    with pytest.raises(TypeError) as caught:
        declared({"n": 1})
    for word in ("'mine'", ".start(", "send()", "order/placed"):
        assert word in str(caught.value)


def test_calling_a_flow_without_triggers_says_that_it_has_none():
    with pytest.raises(TypeError, match="none"):
        declare()()


# -- ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["a", "cart-abandonment", "shop/cart.v2", "A_1", "x" * 200, "1"])
def test_ids_have_letters_digits_and_some_marks_in_between(id):
    assert declare(id).id == id


@pytest.mark.parametrize(
    "id", ["", "x" * 201, " a", "a b", "-a", "a-", "a\n", "größe", "a:b", ".", "a#1"]
)
def test_an_id_that_is_none_is_refused_at_import(id):
    with pytest.raises(InvalidOption) as caught:
        declare(id)
    assert repr(id) in str(caught.value)
    assert registry.find(id) is None


@pytest.mark.parametrize("id", [None, 7, lambda event: None])
def test_a_forgotten_id_is_told_by_example(id):
    with pytest.raises(InvalidOption, match=r"@flow\('send-welcome', on="):
        flow(id)


def test_two_flows_of_one_id_are_an_error_that_names_both():
    def one(event):
        return 1

    def other(event):
        return 2

    flow("mine", on="a")(one)
    with pytest.raises(DuplicateFlow) as caught:
        flow("mine", on="b")(other)
    assert "'mine'" in str(caught.value)
    assert ".one" in str(caught.value)
    assert ".other" in str(caught.value)
    assert [flow.triggers for flow in registry] == [("a",)]


def test_two_flows_of_one_id_are_an_error_though_their_functions_share_a_name():
    """Copied, pasted, and the id forgotten."""

    @flow("mine", on="a")
    def handler(event):
        return 1

    with pytest.raises(DuplicateFlow):

        @flow("mine", on="b")
        def handler(event):  # noqa: F811
            return 2


def test_importing_the_same_function_again_is_no_duplicate():
    def handler(event):
        return 1

    flow("mine", on="a")(handler)
    flow("mine", on="a")(handler)
    assert [flow.handler for flow in registry] == [handler]
    assert len(registry.listening("a")) == 1


# -- handlers --------------------------------------------------------------------------------


def ask_for_a_request(event, request):
    pass


def ask_for_anything(*args):
    pass


def ask_for_everything(**kwargs):
    pass


def ask_by_position(event, /):
    pass


def ask_for_a_default(event, colour="red"):
    pass


@pytest.mark.parametrize(
    ("handler", "parameter"),
    [
        (ask_for_a_request, "'request'"),
        (ask_for_anything, "*args"),
        (ask_for_everything, "**kwargs"),
        (ask_by_position, "'event'"),
        (ask_for_a_default, "'colour'"),
        (lambda self: None, "'self'"),
        (lambda ctx, step: None, "'ctx'"),
    ],
)
def test_a_parameter_that_no_run_can_offer_is_refused_at_import_and_named(handler, parameter):
    with pytest.raises(InvalidHandler) as caught:
        flow("mine", on="a")(handler)
    assert isinstance(caught.value, TypeError)
    assert "'mine'" in str(caught.value)
    assert parameter in str(caught.value)
    for name in PARAMETERS:
        assert name in str(caught.value)
    assert registry.find("mine") is None


@pytest.mark.parametrize("handler", [None, 7, "shop.flows.cart"])
def test_anything_but_a_function_is_refused(handler):
    with pytest.raises(InvalidHandler, match="'mine'"):
        flow("mine")(handler)


def test_an_async_handler_makes_an_async_flow():
    async def handler(event):
        pass

    assert flow("mine")(handler).is_async


def test_a_generator_is_refused_for_it_would_never_run():
    def handler(step):
        yield step

    with pytest.raises(InvalidHandler, match="'mine'"):
        flow("mine")(handler)


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on": [f"e{n}" for n in range(11)]}, "at most 10 triggers, not 11"),
        ({"on": ["a", "a"]}, "twice"),
        ({"on": ""}, "on="),
        ({"on": " a"}, "blanks"),
        ({"on": ["a", 7]}, "on="),
        ({"on": 7}, "on="),
        ({"on": None}, "on="),
        ({"cancel_on": [CancelOn(f"e{n}") for n in range(6)]}, "at most 5 rules, not 6"),
        ({"cancel_on": ["stop"]}, "CancelOn('event/name'"),
        ({"cancel_on": "stop"}, "CancelOn('event/name'"),
        ({"cancel_on": 7}, "cancel_on="),
        ({"cancel_on": None}, "cancel_on="),
        ({"retries": -1}, "0 to 20"),
        ({"retries": 21}, "0 to 20"),
        ({"retries": "4"}, "0 to 20"),
        ({"retries": True}, "0 to 20"),
        ({"retries": 1.5}, "0 to 20"),
        ({"queue": 7}, "queue="),
        ({"queue": None}, "queue="),
        ({"queue": "x" * 256}, "queue="),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_import_with_the_flow_and_the_remedy(options, says):
    with pytest.raises(InvalidOption) as caught:
        declare("mine", **options)
    assert "flow 'mine'" in str(caught.value)
    assert says in str(caught.value)
    assert registry.find("mine") is None


def test_ten_triggers_and_five_rules_are_taken():
    declared = declare(
        on=[f"e{n}" for n in range(10)], cancel_on=[CancelOn(f"e{n}") for n in range(5)]
    )
    assert (len(declared.triggers), len(declared.cancel_on)) == (10, 5)


def test_a_flow_may_listen_to_the_engines_own_events():
    assert declare(on="flows/function.failed").triggers == ("flows/function.failed",)
