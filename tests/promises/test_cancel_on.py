"""Events that cancel runs."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from durable_flows import CancelOn, Event, cancel, flow, retry, send
from durable_flows.engine.route import route
from durable_flows.models import Due, Run, Wait
from durable_flows.testing import advance, crash_after, drain, run_of
from tests.promises.staging import again, forget, now, played, row

pytestmark = pytest.mark.django_db


def sleeper(*rules: CancelOn, on: str = "go") -> list[str]:
    """A flow that sleeps for a day; the list grows by each event whose run got through it."""
    done: list[str] = []

    @flow("sleeper", on=on, cancel_on=rules)
    def handler(event, step):
        step.sleep("long", "1 day")
        done.append(event.public_id)

    return done


def states(event_ids: list[str]) -> list[str]:
    return [run_of(event_id).state for event_id in event_ids]


# -- which runs ------------------------------------------------------------------------------


def test_an_event_with_the_same_value_cancels():
    sleeper(CancelOn("cart/emptied", match="data.cart_id"))
    one, other = send([Event("go", {"cart_id": 1}), Event("go", {"cart_id": 2})])
    drain()
    send("cart/emptied", {"cart_id": 1})
    drain()
    assert states([one, other]) == ["cancelled", "started"]


def test_the_reason_names_the_event():
    sleeper(CancelOn("stop"))
    run = played()
    (event_id,) = send("stop")
    drain()
    assert again(run).reason == f"event stop {event_id}"


def test_a_rule_without_a_match_cancels_every_unfinished_run():
    sleeper(CancelOn("stop"))
    ids = [*send("go", {"n": 1}), *send("go", {"n": 2})]
    drain()
    ids += send("go", {"n": 3})
    route()  # not executed yet
    send("stop", {"n": "whatever"})
    drain()
    assert states(ids) == ["cancelled"] * 3


def test_runs_that_have_ended_stay_as_they_are():
    done = sleeper(CancelOn("stop"))
    run = played()
    advance("1 day")
    send("stop")
    drain()
    assert again(run).state == "completed"
    assert len(done) == 1


def test_a_cancelled_run_does_not_wake():
    done = sleeper(CancelOn("stop"))
    run = played()
    send("stop")
    advance("2 days")
    assert again(run).state == "cancelled"
    assert done == []
    assert not Due.objects.exists()
    assert not Wait.objects.pending().exists()


def test_runs_that_start_later_are_not_cancelled():
    sleeper(CancelOn("stop"))
    send("stop")
    drain()
    run = played()
    assert run.state == "started"


def test_what_arrives_in_one_batch_cancels_only_what_came_before_it():
    sleeper(CancelOn("stop"))
    first, _, second = send([Event("go"), Event("stop"), Event("go")])
    drain()
    assert states([first, second]) == ["cancelled", "started"]


def test_any_of_several_rules_cancels():
    sleeper(CancelOn("stop"), CancelOn("cart/emptied", match="data.cart_id"))
    one, other = send([Event("go", {"cart_id": 1}), Event("go", {"cart_id": 2})])
    drain()
    send("cart/emptied", {"cart_id": 2})
    drain()
    assert states([one, other]) == ["started", "cancelled"]
    send("stop")
    drain()
    assert states([one, other]) == ["cancelled", "cancelled"]


# -- its own trigger -------------------------------------------------------------------------


def test_cancelling_on_the_own_trigger_leaves_only_the_newest_run():
    done = sleeper(CancelOn("go", match="data.cart_id"))
    ids = []
    for _ in range(3):
        ids += send("go", {"cart_id": 1})
        drain()
    assert states(ids) == ["cancelled", "cancelled", "started"]
    advance("1 day")
    assert done == ids[-1:]


def test_it_does_so_within_one_batch_as_well():
    done = sleeper(CancelOn("go", match="data.cart_id"))
    ids = send([Event("go", {"cart_id": 1})] * 4 + [Event("go", {"cart_id": 2})])
    drain()
    assert states(ids) == ["cancelled"] * 3 + ["started"] * 2
    advance("1 day")
    assert done == ids[-2:]


def test_it_does_so_over_several_batches(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "ROUTE_BATCH": 2}
    sleeper(CancelOn("go"))
    ids = send([Event("go")] * 5)
    drain()
    assert states(ids) == ["cancelled"] * 4 + ["started"]


def test_a_trigger_does_not_cancel_its_own_run():
    sleeper(CancelOn("go"))
    assert played().state == "started"


def test_a_trigger_that_is_routed_twice_does_not_cancel_its_own_run():
    from durable_flows.models import Event as StoredEvent

    sleeper(CancelOn("go"))
    run = played()
    StoredEvent.objects.update(routed_at=None, routed=None)
    drain()
    assert again(run).state == "started"


def test_the_newest_is_the_one_delivered_last():
    sleeper(CancelOn("go"))
    late, early = send([Event("go", ts=now() + timedelta(hours=2)), Event("go")])
    advance("1h")
    assert run_of(early).state == "started"
    advance("2h")
    assert states([early, late]) == ["cancelled", "started"]


# -- missing and equal values ----------------------------------------------------------------


def test_a_missing_value_in_the_trigger_matches_nothing():
    sleeper(CancelOn("cart/emptied", match="data.cart_id"))
    run = played("go", {})
    send("cart/emptied", {"cart_id": 1})
    send("cart/emptied", {})
    drain()
    assert again(run).state == "started"


def test_a_missing_value_in_the_event_matches_nothing():
    sleeper(CancelOn("cart/emptied", match="data.cart_id"))
    run = played("go", {"cart_id": 1})
    send("cart/emptied", {})
    drain()
    assert again(run).state == "started"


def test_null_matches_null():
    sleeper(CancelOn("cart/emptied", match="data.cart_id"))
    run = played("go", {"cart_id": None})
    send("cart/emptied", {"cart_id": None})
    drain()
    assert again(run).state == "cancelled"


@pytest.mark.parametrize(
    ("own", "new", "state"),
    [
        (150, 150.0, "cancelled"),
        (1, True, "started"),
        ("1", 1, "started"),
        ([1], [1.0], "cancelled"),
    ],
)
def test_values_are_compared_as_json_values(own, new, state):
    sleeper(CancelOn("cart/emptied", match="data.cart_id"))
    run = played("go", {"cart_id": own})
    send("cart/emptied", {"cart_id": new})
    drain()
    assert again(run).state == state


def test_a_match_reaches_into_the_user():
    sleeper(CancelOn("user/left", match="user.account.id"))
    run = played("go", user={"account": {"id": 7}})
    send("user/left", user={"account": {"id": 8}})
    drain()
    assert again(run).state == "started"
    send("user/left", user={"account": {"id": 7}})
    drain()
    assert again(run).state == "cancelled"


# -- the rule's timeout ----------------------------------------------------------------------


def test_a_rule_holds_for_its_timeout_and_not_longer():
    sleeper(CancelOn("stop", timeout="1h"))
    early = played()
    advance("59m")
    send("stop")
    drain()
    assert again(early).state == "cancelled"
    late = played()
    advance("61m")
    send("stop")
    drain()
    assert again(late).state == "started"


def test_an_event_that_is_delivered_after_the_rules_timeout_does_not_cancel():
    sleeper(CancelOn("stop", timeout="1h"))
    run = played()
    send("stop", ts=now() + timedelta(minutes=90))
    advance("2h")
    assert again(run).state == "started"


# -- a run that executes ---------------------------------------------------------------------


def test_the_result_in_hand_is_recorded_no_new_step_starts_and_the_run_ends_cancelled():
    calls: list[str] = []

    def charge() -> str:
        calls.append("charge")
        send("stop")
        route()
        return "charged"

    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        step.run("charge", charge)
        calls.append("after")
        step.run("ship", lambda: calls.append("ship"))
        return "done"

    run = played()
    assert run.state == "cancelled"
    assert run.step("charge").output == "charged"
    assert run.step_keys == ["charge"]
    assert calls == ["charge"]
    assert run.result is None
    assert run.reason.startswith("event stop")
    assert not Due.objects.exists()


def test_a_command_cancels_an_executing_run_in_the_same_way():
    @flow("charging", on="go")
    def charging(step, run):
        def charge() -> str:
            cancel(run.id, reason="changed my mind")
            route()
            assert Due.objects.get().state == "cancelling"
            return "charged"

        step.run("charge", charge)
        step.run("ship", pytest.fail)

    run = played()
    assert (run.state, run.reason) == ("cancelled", "changed my mind")
    assert run.step_keys == ["charge"]


def test_a_failing_attempt_in_hand_is_recorded_and_not_made_again():
    calls: list[int] = []

    def charge() -> None:
        calls.append(1)
        send("stop")
        route()
        raise ConnectionError("refused")

    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        step.run("charge", charge)

    run = played()
    advance("1 day")
    assert again(run).state == "cancelled"
    assert again(run).attempts == {"charge": 1}
    assert calls == [1]


def test_a_run_whose_last_step_is_in_hand_ends_cancelled_too():
    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        send("stop")
        route()
        return "done"

    run = played()
    assert (run.state, run.result) == ("cancelled", None)


@pytest.mark.parametrize("tool", ["sleep", "wait", "send"])
def test_every_tool_stops_a_run_that_was_cancelled(tool):
    after: list[int] = []

    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        send("stop")
        route()
        if tool == "sleep":
            step.sleep("nap", 0)
        elif tool == "wait":
            step.wait_for_event("reply", event="replied", timeout="1h")
        else:
            step.send_event("tell", Event("told"))
        after.append(1)

    run = played()
    assert run.state == "cancelled"
    assert after == []


def test_what_a_cancelled_run_sent_was_sent():
    from durable_flows.models import Event as StoredEvent

    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        send("stop")
        route()
        step.send_event("tell", Event("told"))
        step.run("ship", pytest.fail)

    run = played()
    assert run.state == "cancelled"
    assert run.step_keys == ["tell"]
    assert StoredEvent.objects.filter(name="told").count() == 1


def test_a_handler_that_swallows_the_signal_ends_cancelled_all_the_same():
    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        with suppress(BaseException):
            step.run("charge", lambda: (send("stop"), route(), None)[-1])
        return "done"

    assert played().state == "cancelled"


def test_a_worker_that_dies_after_the_cancellation_was_asked_for_leaves_a_cancelled_run():
    calls: list[str] = []

    def charge() -> str:
        calls.append("charge")
        send("stop")
        route()
        return "charged"

    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        step.run("charge", charge)
        step.run("ship", lambda: calls.append("ship"))

    (event_id,) = send("go")
    with crash_after("charge", recorded=False):
        drain()
    assert run_of(event_id).activity == "cancelling"
    drain()
    assert run_of(event_id).state == "cancelled"
    assert calls == ["charge"]


def test_it_ends_cancelled_even_if_its_flow_is_gone_by_then():
    @flow("charging", on="go", cancel_on=CancelOn("stop"))
    def charging(step):
        step.run("charge", lambda: (send("stop"), route(), None)[-1])

    (event_id,) = send("go")
    with crash_after("charge", recorded=False):
        drain()
    forget(charging)
    drain()
    assert run_of(event_id).state == "cancelled"


# -- cancelled before, cancelled late --------------------------------------------------------


def test_the_router_does_not_wait_for_a_runs_first_slice():
    """Both in one batch: the rule is there as soon as the run is."""
    sleeper(CancelOn("stop", match="data.n"))
    event_id, _ = send([Event("go", {"n": 1}), Event("stop", {"n": 1})])
    drain()
    run = run_of(event_id)
    assert run.state == "cancelled"
    assert run.steps == ()


def test_a_trigger_that_is_delivered_in_the_future_is_cancelled_by_what_comes_after_it():
    sleeper(CancelOn("stop", match="data.n"))
    ts = now() + timedelta(hours=1)
    trigger, before = send([Event("go", {"n": 1}, ts=ts), Event("stop", {"n": 1})])
    advance("61m")
    assert run_of(trigger).state == "started", row(before)
    send("stop", {"n": 1})
    drain()
    assert run_of(trigger).state == "cancelled"


def failing(world: dict[str, Any]) -> None:
    @flow("failing", on="go", cancel_on=CancelOn("stop"), retries=0)
    def handler(step):
        step.run("charge", lambda: None if world["mended"] else 1 / 0)
        step.sleep("long", "1 day")


def test_what_came_before_a_retry_does_not_cancel_it():
    world = {"mended": False}
    failing(world)
    run = played()
    send("stop")
    drain()
    assert again(run).state == "failed"
    world["mended"] = True
    retry(run.id)
    drain()
    assert again(run).state == "started"


def test_what_comes_after_a_retry_cancels_it():
    world = {"mended": False}
    failing(world)
    run = played()
    world["mended"] = True
    retry(run.id)
    drain()
    send("stop")
    drain()
    assert again(run).state == "cancelled"


def test_what_comes_after_a_retry_cancels_it_even_in_the_same_batch():
    world = {"mended": False}
    failing(world)
    run = played()
    world["mended"] = True
    retry(run.id)
    send("stop")
    drain()
    assert again(run).state == "cancelled"
    assert Run.objects.count() == 1
