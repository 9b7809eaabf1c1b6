"""step.map: a run for each item, so many at once, and one entry in the journal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from durable_flows import InvokeError, NonRetriableError, StepError, cancel, flow, retry
from durable_flows.models import Fanout, Run, Wait
from durable_flows.testing import advance, crash_at, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db


@pytest.fixture
def doubling():
    @flow("double")
    def double(event, step):
        step.sleep("think", f"{event.data['n']}m")
        return event.data["n"] * 2

    return double


def mapping(of: Any, count: int, **options: Any) -> None:
    @flow("parent", on="go")
    def parent(step):
        return step.map("all", of, [{"n": n + 1} for n in range(count)], **options)


def test_results_come_in_the_order_of_the_items_by_one_entry(doubling):
    mapping(doubling, 3)
    run = played()
    advance("5m")
    run = again(run)
    assert run.result == [2, 4, 6]
    assert run.step_keys == ["all"]
    assert len(run.children) == 3


def test_no_more_than_so_many_are_there_at_once_and_each_end_lets_one_begin(doubling):
    mapping(doubling, 5, max_in_flight=2)
    run = played()
    assert Run.objects.filter(flow="double").count() == 2
    advance("1m")
    assert Run.objects.filter(flow="double").count() == 3
    advance("15m")
    assert again(run).result == [2, 4, 6, 8, 10]
    times = Run.objects.filter(flow="double").order_by("created_at")
    assert all(child.event.ts.year < 2100 for child in times)


def test_the_parent_is_woken_once():
    calls: Counter[str] = Counter()

    @flow("child")
    def child(event, step):
        step.sleep("think", "1m")

    @flow("parent", on="go")
    def parent(step):
        calls["parent"] += 1
        step.map("all", child, [{} for _ in range(20)], max_in_flight=3)

    run = played()
    advance("10m")
    assert again(run).state == "completed"
    assert calls["parent"] == 2


@pytest.mark.django_db(transaction=True)
def test_ten_thousand_items_are_one_entry_and_wake_the_parent_once():
    slices = []

    @flow("quick")
    def quick(event):
        return event.data["n"]

    @flow("parent", on="go")
    def parent(step):
        slices.append(1)
        return step.map("all", quick, ({"n": n} for n in range(10_000)), max_in_flight=500)

    run = played()
    assert run.result == list(range(10_000))
    assert run.step_keys == ["all"]
    assert len(slices) == 2


def test_items_for_a_flow_that_nobody_knows_are_warned_of():
    mapping("later", 2)
    run = played()
    assert run.activity == "waiting"
    assert "no worker that is alive has a flow 'later'" in run.warnings["all"]


def test_no_items_are_an_empty_list(doubling):
    mapping(doubling, 0)
    assert played().result == []


def test_the_first_that_failed_by_place_is_raised_when_all_have_ended():
    @flow("child")
    def child(event, step):
        step.sleep("think", "1m")
        if event.data["n"] > 1:
            raise NonRetriableError(f"no {event.data['n']}")

    @flow("parent", on="go")
    def parent(step):
        try:
            step.map("all", child, [{"n": n} for n in (1, 2, 3)], max_in_flight=1)
        except InvokeError as error:
            return [error.step, error.state, error.reason]

    run = played()
    advance("10m")
    assert again(run).result == ["all", "failed", "NonRetriableError: no 2"]


def test_cancelling_the_parent_cancels_those_that_are_there_and_begins_no_others(doubling):
    mapping(doubling, 5, max_in_flight=2)
    run = played()
    cancel(run.id)
    advance("1h")
    assert again(run).state == "cancelled"
    assert list(Run.objects.filter(flow="double").values_list("state", flat=True)) == [
        "cancelled",
        "cancelled",
    ]


def test_abandoned_they_go_on_but_no_others_begin(doubling):
    mapping(doubling, 5, max_in_flight=2, on_parent_cancel="abandon")
    run = played()
    cancel(run.id)
    advance("1h")
    assert Counter(Run.objects.filter(flow="double").values_list("state", flat=True)) == {
        "completed": 2
    }


def test_a_retry_maps_anew():
    broken = [True]

    @flow("child")
    def child(event):
        if broken:
            raise NonRetriableError("no")
        return 1

    mapping(child, 2)
    run = played()
    assert run.state == "failed"
    broken.clear()
    retry(run.id)
    drain()
    assert again(run).result == [1, 1]


def test_an_item_that_cannot_be_stored_fails_the_step_and_starts_nothing(doubling):
    @flow("parent", on="go")
    def parent(step):
        with pytest.raises(StepError, match="/1/data/n"):
            step.map("all", doubling, [{"n": 1}, {"n": float("nan")}])
        return "caught"

    assert played().result == "caught"
    assert not Fanout.objects.exists()


def test_an_async_flow_awaits_it_beside_others(doubling):
    @flow("parent", on="go")
    async def parent(step):
        return await step.parallel(
            step.later.map("some", doubling, [{"n": 1}]), step.later.sleep("nap", "1h")
        )

    run = played()
    advance("1h")
    assert again(run).result == [[2], None]


@pytest.mark.parametrize(
    "place", ["before_map_commit", "map_advanced", "before_routed_commit", "children_settled"]
)
def test_whoever_dies_meanwhile_every_item_is_done_once(place, doubling):
    mapping(doubling, 4, max_in_flight=2)
    with crash_at(place) as crash:
        run = played()
        advance("20m")
    assert crash.happened
    run = again(run)
    assert run.result == [2, 4, 6, 8]
    assert Run.objects.filter(flow="double").count() == 4
    assert not Wait.objects.pending().exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda step: step.map("x", "child", [1]), "item 0 is 1"),
        (lambda step: step.map("x", "child", {"n": 1}), "a list of dicts"),
        (lambda step: step.map("x", 7, []), "takes a flow or the id of one"),
        (lambda step: step.map("x", "child", [], max_in_flight=0), "max_in_flight= is a number"),
        (lambda step: step.map("x", "child", [{}] * 10_001), "10,001 items"),
        (lambda step: step.map("x", "child", [], on_parent_cancel="x"), "on_parent_cancel= is"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_the_reason(call, message):
    @flow("parent", on="go", retries=0)
    def parent(step):
        call(step)

    assert message in played().reason
