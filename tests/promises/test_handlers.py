"""`on_failure` and `on_cancel`: what handles the runs of a flow that ended so, in runs of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from durable_flows import (
    CancelOn,
    Event,
    NonRetriableError,
    Step,
    StepError,
    Timeouts,
    cancel,
    flow,
    retry,
)
from durable_flows.engine import deadlines
from durable_flows.engine.route import route
from durable_flows.errors import DuplicateFlow, InvalidHandler, InvalidOption
from durable_flows.flows import Flow
from durable_flows.models import Run
from durable_flows.registry import registry
from durable_flows.testing import RunView, advance, drain, run_of, runs_of, send
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db

DECLARED = ["option", "decorator"]


def declare(how: str, what: str, handler: Any, body: Any, **options: Any) -> Flow:
    """A flow with a handler, declared in either way."""
    if how == "option":
        return flow("order", on="go", **{what: handler}, **options)(body)
    declared = flow("order", on="go", **options)(body)
    getattr(declared, what)(handler)
    return declared


def refuse(step: Step) -> None:
    def charge() -> None:
        raise NonRetriableError("no money")

    step.run("charge", charge)


def rest(step: Step) -> None:
    step.sleep("rest", "30 days")


def handled(flow_id: str) -> list[RunView]:
    return [run_of(str(pk)) for pk in Run.objects.filter(flow=flow_id).values_list("pk", flat=True)]


# -- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", DECLARED)
def test_a_failed_run_is_handled_with_its_event_error_and_failing_step(how: str):
    def tell(event: Event, step: Step) -> list[Any]:
        error = event.data["error"]
        told = step.run("tell", lambda: f"{error['step']}: {error['message']}")
        return [event.name, event.data["event"]["data"], told]

    declare(how, "on_failure", tell, refuse)
    failed = played("go", {"order": 7})
    (run,) = handled("order/on-failure")
    assert run.result == ["flows/function.failed", {"order": 7}, "charge: no money"]
    assert run.step_keys == ["tell"]
    assert run.id != failed.id


def test_it_has_steps_waits_and_every_retry_of_its_own():
    calls: list[int] = []

    def tell() -> str:
        calls.append(len(calls))
        if len(calls) < 5:
            raise ConnectionError("not yet")
        return "told"

    @flow("order", on="go", retries=0)
    def order(step: Step) -> None:
        raise ValueError("broken")

    @order.on_failure
    def handle(step: Step) -> str:
        step.sleep("rest", "1 day")
        return step.run("tell", tell)

    played()
    advance("3 days")
    (run,) = handled("order/on-failure")
    assert (run.result, len(calls)) == ("told", 5)


def test_only_failures_of_its_own_flow_are_handled():
    seen: list[str] = []
    flow("order", on="go", on_failure=lambda event: seen.append(event.data["function_id"]))(refuse)
    flow("other", on="go")(refuse)
    flow("order-2", on="go", on_failure=lambda event: seen.append("second"))(refuse)
    played_all = send("go")
    drain()
    assert len(runs_of(played_all)) == 3
    assert sorted(seen) == ["order", "second"]


def test_a_run_that_completes_after_failed_attempts_is_not_handled():
    attempts: list[int] = []

    def body(step: Step) -> None:
        def work() -> None:
            attempts.append(1)
            if len(attempts) < 3:
                raise ValueError("not yet")

        step.run("work", work)

    flow("order", on="go", on_failure=lambda: None)(body)
    run = played()
    advance("1h")
    assert again(run).state == "completed"
    assert handled("order/on-failure") == []


@pytest.mark.parametrize("what", ["on_failure", "on_cancel"])
def test_a_cancelled_run_is_handled_as_cancelled_and_not_as_failed(what: str):
    declare("option", what, lambda event: event.data["reason"], rest)
    run = played()
    cancel(run.id, reason="enough")
    drain()
    runs = handled("order/on-failure") + handled("order/on-cancel")
    assert [one.result for one in runs] == (["enough"] if what == "on_cancel" else [])


def test_each_failure_of_a_run_that_is_retried_is_handled():
    flow("order", on="go", on_failure=lambda event: event.data["generation"])(refuse)
    run = played()
    retry(run.id)
    drain()
    assert sorted(one.result for one in handled("order/on-failure")) == [0, 1]


def test_a_handler_that_fails_is_not_handled_itself():
    def tell() -> None:
        raise NonRetriableError("nobody answers")

    flow("order", on="go", on_failure=tell)(refuse)
    played()
    assert [one.state for one in handled("order/on-failure")] == ["failed"]
    assert Run.objects.count() == 2


def test_a_failed_handler_is_retried_like_any_run():
    broken = [True]

    def tell() -> str:
        if broken:
            raise NonRetriableError("nobody answers")
        return "told"

    flow("order", on="go", on_failure=tell)(refuse)
    played()
    (run,) = handled("order/on-failure")
    broken.clear()
    retry(run.id)
    drain()
    assert again(run).result == "told"


def test_a_child_is_handled_before_its_parent_has_caught_the_error():
    order = flow("order", on="never", on_failure=lambda event: event.data["run_id"])(refuse)

    @flow("parent", on="go")
    def parent(step: Step) -> str:
        try:
            step.invoke("call", order)
        except StepError:
            return "caught"
        return ""

    assert played().result == "caught"
    assert len(handled("order/on-failure")) == 1


# -- cancellations ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", DECLARED)
@pytest.mark.parametrize("by", ["command", "rule", "timeout"])
def test_a_run_that_is_cancelled_after_it_began_is_handled(how: str, by: str):
    def tidy(event: Event, step: Step) -> list[Any]:
        return [event.data["reason"], step.run("tidy", lambda: event.data["event"]["data"]["n"])]

    options = {"cancel_on": CancelOn("stop"), "timeouts": Timeouts(finish="7 days")}
    declare(how, "on_cancel", tidy, rest, **options)
    run = played("go", {"n": 1})
    if by == "command":
        cancel(run.id, reason="enough")
    elif by == "rule":
        send("stop")
    else:
        advance("8 days")
    drain()
    (one,) = handled("order/on-cancel")
    assert one.result == [again(run).reason, 1]


def test_a_run_that_is_cancelled_before_it_began_is_not_handled():
    flow("order", on="go", timeouts=Timeouts(start="1h"), on_cancel=lambda: None)(rest)
    event = send("go")
    route()
    cancel(run_of(event).id)
    send("go")
    route()
    advance("2h", play=False)
    deadlines.serve()
    drain()
    assert set(Run.objects.values_list("flow", "state")) == {("order", "cancelled")}


def test_a_run_that_began_before_it_was_retried_has_begun():
    broken = [True]

    def body(step: Step) -> None:
        if broken:
            raise NonRetriableError("broken")
        step.sleep("rest", "30 days")

    flow("order", on="go", on_cancel=lambda event: event.data["generation"])(body)
    run = played()
    broken.clear()
    retry(run.id)
    route()
    cancel(run.id)
    drain()
    assert [one.result for one in handled("order/on-cancel")] == [1]


def test_a_flow_may_have_both():
    order = flow("order", on="go")(rest)
    order.on_failure(lambda: "failed")
    order.on_cancel(lambda: "cancelled")
    run = played()
    cancel(run.id)
    drain()
    assert [one.result for one in handled("order/on-cancel")] == ["cancelled"]
    assert handled("order/on-failure") == []


def test_a_handler_may_be_a_coroutine_function():
    async def tell(event: Event, step: Step) -> Any:
        return await step.run("tell", lambda: event.data["error"]["message"])

    flow("order", on="go", on_failure=tell)(refuse)
    played()
    assert [one.result for one in handled("order/on-failure")] == ["no money"]


# -- declaring -------------------------------------------------------------------------------


def test_a_handler_is_a_flow_of_its_own_that_knows_whose_it_is():
    order = flow("order", on="go", queue="slow")(rest)
    declared = order.on_failure(lambda event: None)
    assert isinstance(declared, Flow)
    assert (declared.id, declared.of, declared.queue) == ("order/on-failure", "order", "slow")
    assert declared.triggers == ("flows/function.failed",)
    assert declared.retries.limit == 4
    assert declared.role == "failures of order"
    assert registry.find("order/on-failure") is declared
    assert order.on_cancel(lambda: None).role == "cancellations of order"
    assert (order.of, order.role) == ("", "")


@pytest.mark.parametrize("what", ["on_failure", "on_cancel"])
def test_a_handler_of_a_wrong_shape_is_an_error_that_names_its_flow(what: str):
    def yields(event: Event) -> Any:
        yield event

    suffix = what.replace("_", "-")
    for wrong, why in (
        (lambda error: None, "asks for 'error'"),
        (yields, "is a generator"),
        ("tell", "decorates a function"),
        (flow("tell", on="a")(rest), "takes a function, not flow 'tell'"),
    ):
        with pytest.raises(InvalidHandler, match=rf"'order(/{suffix})?': .*{why}"):
            declare("option", what, wrong, rest)
        assert registry.find("order") is None


def test_declaring_one_twice_is_an_error_that_names_both():
    def first() -> None: ...

    def second() -> None: ...

    order = flow("order", on="go", on_failure=first)(rest)
    with pytest.raises(DuplicateFlow, match=r"flow 'order' has two .*first.*second.*keep one"):
        order.on_failure(second)
    order.on_failure(first)  # the module was imported again
    order.on_cancel(second)


def test_the_newest_handler_handles_runs_of_every_version():
    handled_by = Counter[str]()
    before = flow("order", on="go", on_failure=lambda: handled_by.update(["before"]))(refuse)
    played()
    after = flow("order", on="go", version=2)(refuse)
    after.on_failure(lambda event: handled_by.update([f"after, of {event.data['version']}"]))
    played()
    retry(str(Run.objects.get(flow="order", version=0).pk))
    drain()
    assert before.version == 0
    assert handled_by == {"before": 1, "after, of 2": 1, "after, of 0": 1}


def test_a_flow_that_has_such_an_id_already_is_an_error():
    flow("order/on-failure", on="a")(rest)
    with pytest.raises(DuplicateFlow, match="'order/on-failure' is declared twice"):
        flow("order", on="go", on_failure=lambda: None)(rest)


def test_a_handler_has_no_handlers():
    handler = flow("order", on="go")(rest).on_failure(lambda: None)
    with pytest.raises(InvalidOption, match=r"nobody is told of its own: on_cancel would never"):
        handler.on_cancel(lambda: None)
