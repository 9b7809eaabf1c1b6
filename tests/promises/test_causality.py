"""Fifty quick hops from run to run are the last: what brings itself about stops, and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_flows import Event, NonRetriableError, On, Step, asend, cancel, flow, rerun, retry
from durable_flows import send as send_event
from durable_flows.models import Admission, Run
from durable_flows.models import Event as StoredEvent
from durable_flows.rules import causality
from durable_flows.testing import advance, drain, run_of, send
from tests.promises.staging import played

pytestmark = pytest.mark.django_db


def circle(hop: Callable[[Step, str], Any]) -> None:
    """A sends what starts B, and B what starts A."""
    _half("a", "b", hop)
    _half("b", "a", hop)


def _half(mine: str, other: str, hop: Callable[[Step, str], Any]) -> None:
    @flow(mine, on=f"{mine}/go")
    def half(step: Step) -> None:
        hop(step, other)


def by_step(step: Step, other: str) -> None:
    step.send_event("go on", Event(f"{other}/go"))


def by_send_in_a_step(step: Step, other: str) -> None:
    step.run("go on", send_event, f"{other}/go")


def by_send_between_steps(step: Step, other: str) -> None:
    send_event(f"{other}/go")


HOPS = [by_step, by_send_in_a_step, by_send_between_steps]


@pytest.mark.parametrize("hop", HOPS)
def test_two_flows_that_start_each_other_are_stopped_after_fifty_hops(hop: Any):
    circle(hop)
    send("a/go")
    drain()
    assert Run.objects.count() == 51
    skip = Admission.objects.get()
    assert (skip.flow, skip.verdict, skip.reason) == ("b", "skip", causality.TOO_DEEP)
    assert "more than 50 runs deep" in skip.reason
    assert StoredEvent.objects.get(pk=skip.event_id).depth == 51


@pytest.mark.parametrize("hop", HOPS)
def test_two_flows_that_take_their_time_start_each_other_as_long_as_they_like(hop: Any):
    def slowly(step: Step, other: str) -> None:
        step.sleep("rest", "61s")
        hop(step, other)

    circle(slowly)
    send("a/go")
    advance("61m")
    assert 55 <= Run.objects.count() <= 61
    assert not Admission.objects.exists()


def test_what_is_too_deep_starts_no_flow_and_still_resumes_and_cancels():
    circle(by_step)

    @flow("waits", on="wait")
    def waits(step: Step) -> int:
        heard = 0
        for _ in range(26):
            found = step.wait_for_event("any", event="b/go", timeout="1h")
            heard += found is not None
        return heard

    waiting = played("wait")
    send("a/go")
    advance("2h")
    assert run_of(waiting.id).result == 26  # the last was sent by run 51, and started none


def test_flows_that_start_each_other_by_their_ends_are_stopped_too():
    """What hears of an end is not told of itself: only with somebody in between there is a circle."""

    @flow("hears", on=On("flows/function.finished", if_="event.data.function_id == 'works'"))
    def hears(step: Step) -> None:
        step.send_event("once more", Event("work"))

    flow("works", on="work")(lambda: None)
    send("work")
    drain()
    assert Run.objects.count() == 51
    assert Admission.objects.get().reason == causality.TOO_DEEP


def test_starting_directly_counts_as_well():
    @flow("a")
    def a(step: Step) -> None:
        step.run("start", a.start)

    a.start()
    drain()
    assert Run.objects.count() == 51
    assert Admission.objects.get().flow == "a"


@pytest.mark.parametrize("led", [False, True])
@pytest.mark.parametrize("again", [retry, rerun])
def test_a_run_that_is_done_again_each_time_it_fails_is_stopped(again: Any, led: bool):
    @flow("fails", on="go")
    def fails() -> None:
        raise NonRetriableError("as always")

    @flow("hears", on="flows/function.failed")
    def hears(event: Event, step: Step) -> None:
        step.run("again", again, event.data["run_id"])

    flow("leads", on="lead")(lambda step: step.send_event("go", Event("go")))
    send("lead" if led else "go")
    drain()
    skipped = [admission.reason for admission in Admission.objects.all()]
    refused = list(StoredEvent.objects.exclude(error="").values_list("error", flat=True))
    done = Run.objects.filter(flow="fails")
    if again is retry:
        assert done.get().generation == 25 - led
    else:
        assert done.count() == 26 - led
    if again is retry and led:  # the hop that is one too many is the command
        assert (len(refused), skipped) == (1, [])
        assert causality.TOO_DEEP in refused[0]
    else:
        assert (refused, skipped) == ([], [causality.TOO_DEEP])


def test_a_run_that_a_person_retries_begins_a_chain_anew():
    @flow("fails", on="b/go")
    def fails() -> None:
        raise NonRetriableError("no")

    flow("sends", on="a/go")(lambda step: step.send_event("go", Event("b/go")))
    send("a/go")
    drain()
    run = Run.objects.get(flow="fails")
    assert run.depth == 1
    retry(run.pk)
    drain()
    run.refresh_from_db()
    assert (run.depth, run.generation) == (0, 1)


def test_what_code_in_a_step_sends_and_asks_for_names_the_run():
    other = flow("other", on="b/go")(lambda step: step.sleep("rest", "1h"))

    @flow("acts", on="a/go")
    def acts(step: Step) -> None:
        def act() -> None:
            send_event("b/go")
            cancel(other.start())

        step.run("act", act)

    run = played("a/go")
    sent = StoredEvent.objects.exclude(name="a/go")
    assert sent.count() == 3
    assert {str(event.sender) for event in sent} == {run.id}
    assert {event.depth for event in sent} == {1}
    send_event("b/go")
    assert StoredEvent.objects.latest("arrival").sender is None


def test_what_an_async_handler_sends_names_the_run_as_well():
    @flow("acts", on="a/go")
    async def acts(step: Step) -> None:
        await step.run("act", asend, "b/go")
        await asend("b/go")

    run = played("a/go")
    assert [str(event.sender) for event in StoredEvent.objects.filter(name="b/go")] == [run.id] * 2
