"""Rolling deploys: old and new workers side by side, and whose flows an event starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command

from durable_flows import Step, flow
from durable_flows.engine import deployments, execute, ring, route, sql
from durable_flows.engine.tick import tick, turn_by_hand
from durable_flows.flows import Flow
from durable_flows.models import Deployment, Due, Run
from durable_flows.models import Event as Stored
from durable_flows.registry import registry
from durable_flows.rules import clock
from durable_flows.testing import advance, drain, run_of, runs_of, send

pytestmark = pytest.mark.django_db

TICK = timedelta(seconds=5)
GONE = timedelta(seconds=31)


class Version:
    """A process of one version of the project, among others in this one."""

    def __init__(self, *flows: Flow) -> None:
        self.flows = flows
        self.appeared: dict[str, Any] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Whatever happens inside happens in that process."""
        with registry.isolated():
            registry._flows.clear()
            for known in self.flows:
                registry.add(known)
            deployments.take_part()
            deployments._appeared.clear()
            deployments._appeared.update(self.appeared)
            try:
                yield
            finally:
                self.appeared = dict(deployments._appeared)
                deployments.leave()

    def publish(self) -> None:
        with self.at_work():
            deployments.publish()

    def work(self) -> None:
        """One turn: route and execute what this version may."""
        with self.at_work(), ring.silence():
            turn_by_hand()

    @property
    def digest(self) -> str:
        with self.at_work():
            return registry.digest


def made(
    flow_id: str,
    *on: str,
    handler: Callable[..., Any] = lambda: "done",
    version: int | None = None,
) -> Flow:
    with registry.isolated():
        return flow(flow_id, on=on, version=version)(handler)


@pytest.fixture(autouse=True)
def nobody_else_is_there(db: None) -> None:
    """A command that publishes from a thread of its own commits, also in a test that is rolled back."""
    Deployment.objects.all().delete()


@pytest.fixture
def old() -> Version:
    return Version(made("stays", "a/b"))


@pytest.fixture
def new(old: Version) -> Version:
    return Version(*old.flows, made("added", "a/b", "a/c"))


def flows_of(event: str) -> list[str]:
    return [run.flow for run in runs_of(event)]


def pass_time(by: timedelta, *alive: Version) -> None:
    """Let time pass in which these versions go on saying that they are there."""
    while by > timedelta():
        clock.advance(min(TICK, by))
        by -= TICK
        for version in alive:
            version.publish()


def test_an_old_worker_leaves_events_to_the_new_version(old: Version, new: Version) -> None:
    old.publish()
    before = send("a/b")
    old.work()
    assert flows_of(before) == ["stays"]
    pass_time(TICK, old)
    new.publish()
    event = send("a/b")
    old.work()
    assert flows_of(event) == []
    new.work()
    assert flows_of(event) == ["added", "stays"]


def test_no_event_of_a_new_flow_is_lost_while_two_versions_take_turns(
    old: Version, new: Version
) -> None:
    old.publish()
    new.publish()
    events = []
    for _ in range(10):
        events.append(send("a/b"))
        old.work()
        events.append(send("a/c"))
        new.work()
        pass_time(timedelta(seconds=7), old, new)
    assert [flows_of(event) for event in events] == [["added", "stays"], ["added"]] * 10
    assert Run.objects.filter(state="completed").count() == Run.objects.count() == 30


def test_a_process_says_what_it_knows_before_it_routes_for_the_first_time(
    old: Version, new: Version
) -> None:
    old.publish()
    pass_time(TICK, old)
    event = send("a/c")
    new.work()
    assert flows_of(event) == ["added"]
    assert Deployment.objects.get(pk=new.digest).first_seen_at == clock_of(new)


def clock_of(version: Version) -> Any:
    return version.appeared[version.digest]


def test_the_old_version_goes_on_when_the_last_process_of_the_new_one_has_been_gone_for_a_while(
    old: Version, new: Version
) -> None:
    old.publish()
    pass_time(TICK, old)
    new.publish()
    event = send("a/b")
    pass_time(timedelta(seconds=25), old)
    old.work()
    assert flows_of(event) == []
    pass_time(timedelta(seconds=10), old)
    old.work()
    assert flows_of(event) == ["stays"]


def test_a_version_that_comes_back_after_a_roll_back_is_the_newest_again(
    old: Version, new: Version
) -> None:
    for version in (old, new):
        version.publish()
        pass_time(TICK, old)
    pass_time(GONE, old)
    old.work()
    back = Version(*new.flows)
    back.publish()
    pass_time(TICK, old, back)
    event = send("a/b")
    old.work()
    assert flows_of(event) == []
    back.work()
    assert flows_of(event) == ["added", "stays"]


def test_old_code_that_is_rolled_forward_again_after_it_was_gone_is_the_newest(
    old: Version, new: Version
) -> None:
    old.publish()
    pass_time(TICK, old)
    new.publish()
    pass_time(GONE, new)
    again = Version(*old.flows)
    again.publish()
    event = send("a/b")
    new.work()
    assert flows_of(event) == []
    again.work()
    assert flows_of(event) == ["stays"]


def test_a_database_that_was_away_does_not_change_who_came_last(old: Version, new: Version) -> None:
    old.publish()
    pass_time(TICK, old)
    new.publish()
    clock.advance(timedelta(minutes=10))  # nobody could publish
    new.publish()
    pass_time(TICK)
    old.publish()
    event = send("a/b")
    old.work()
    assert flows_of(event) == []
    new.work()
    assert flows_of(event) == ["added", "stays"]


def test_of_two_that_appeared_at_the_same_moment_one_routes(old: Version, new: Version) -> None:
    old.publish()
    new.publish()
    Deployment.objects.update(first_seen_at=clock.now())
    first = max([old, new], key=lambda version: version.digest)
    other = min([old, new], key=lambda version: version.digest)
    event = send("a/b")
    other.work()
    assert flows_of(event) == []
    first.work()
    assert flows_of(event)


def test_a_clock_that_is_put_back_strands_nothing(old: Version, new: Version) -> None:
    clock.advance(timedelta(days=1))
    new.publish()
    clock.reset()
    old.publish()
    event = send("a/b")
    old.work()
    assert flows_of(event) == ["stays"]


def test_a_process_without_flows_neither_publishes_nor_takes_events_from_those_that_have_some(
    old: Version,
) -> None:
    empty = Version()
    old.publish()
    event = send("a/b")
    empty.work()
    assert Deployment.objects.count() == 1
    assert Stored.objects.filter(routed_at=None).exists()
    old.work()
    assert flows_of(event) == ["stays"]


def test_what_takes_no_part_publishes_nothing_and_routes_whatever_there_is(new: Version) -> None:
    new.publish()
    flow("other", on="a/b")(lambda: None)
    event = send("a/b")
    drain()
    assert flows_of(event) == ["other"]
    assert Deployment.objects.count() == 1


def test_the_command_takes_part(old: Version, new: Version) -> None:
    old.publish()
    pass_time(TICK)
    event = send("a/c")
    with new.at_work():
        call_command("flows", "tick", verbosity=0)
    assert flows_of(event) == ["added"]
    assert set(Deployment.objects.values_list("pk", flat=True)) == {old.digest, new.digest}


def test_a_bell_that_was_meant_for_others_is_rung_on_and_not_too_often(
    old: Version, new: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[float] = []
    monkeypatch.setattr(ring, "route_in", rung.append)
    monkeypatch.setattr(route, "_rung_on", float("-inf"))
    old.publish()
    pass_time(TICK)
    new.publish()
    with old.at_work():
        route.route()
        assert rung == []  # there is nothing to be routed
        send("a/b")
        route.route()
        route.route()
    assert rung == [route.RING_ON_SECONDS]


def test_a_version_that_appears_while_an_old_router_is_about_to_read_keeps_its_first_event(
    old: Version, new: Version
) -> None:
    """Lock, publish, send, read: whoever sees the event sees for whom it is."""
    old.publish()
    pass_time(TICK)
    sent: list[str] = []

    def appear(text: str) -> None:
        if "FROM durable_flows_event e WHERE e.routed_at IS NULL" in text and not sent:
            moment = clock.now()
            Deployment.objects.create(
                digest=new_digest, flows="{}", first_seen_at=moment, alive_at=moment
            )
            sent.append("")
            sent[0] = send("a/c")

    new_digest = new.digest
    sql.observers.append(appear)
    try:
        old.work()
    finally:
        sql.observers.remove(appear)
    assert flows_of(sent[0]) == []
    new.work()
    assert flows_of(sent[0]) == ["added"]


# -- runs of flows that this process does not know -----------------------------------------------


def test_a_run_that_some_other_worker_can_execute_is_left_to_it(old: Version, new: Version) -> None:
    old.publish()
    new.publish()
    event = send("a/c")
    with new.at_work():
        route.route()
    with old.at_work():
        assert execute.drain(ring.default_queue()) == 1
        assert execute.drain(ring.default_queue()) == 0  # not again at once
        assert run_of(event).activity == "queued"
        assert Due.objects.get().claims == 0
    clock.advance(timedelta(seconds=1))
    with new.at_work():
        assert execute.drain(ring.default_queue()) == 1
    assert run_of(event).result == "done"


def test_a_run_whose_flow_nobody_knows_is_parked_until_somebody_does(
    old: Version, new: Version
) -> None:
    old.publish()
    new.publish()
    event = send("a/c")
    with new.at_work():
        route.route()
    pass_time(GONE, old)
    old.work()
    assert run_of(event).activity == "parked"
    with old.at_work():
        assert tick()
    assert run_of(event).activity == "parked"
    new.publish()
    clock.advance(TICK)
    with old.at_work():  # whoever ticks
        assert tick()
    assert run_of(event).activity == "queued"
    new.work()
    assert run_of(event).result == "done"


def test_a_run_that_sleeps_through_a_roll_back_goes_on_when_its_flow_is_back(old: Version) -> None:
    def rests(step: Step) -> str:
        step.sleep("rest", "1h")
        return "rested"

    new = Version(*old.flows, made("rests", "a/c", handler=rests))
    new.publish()
    event = send("a/c")
    new.work()
    clock.advance(timedelta(hours=2))
    old.work()
    assert run_of(event).activity == "parked"
    back = Version(*new.flows)
    back.work()
    back.work()
    assert run_of(event).result == "rested"


def test_a_run_goes_on_with_its_version_wherever_there_is_one_that_has_it(old: Version) -> None:
    def first(step: Step) -> str:
        step.sleep("rest", "1m")
        return "first"

    one = made("rests", "a/c", handler=first, version=1)
    before = Version(*old.flows, one)
    after = Version(*old.flows, made("rests", "a/c", version=2))
    before.publish()
    event = send("a/c")
    before.work()
    pass_time(timedelta(minutes=1), before, after)
    after.work()
    assert run_of(event).activity == "queued", "the old version is alive: it is left to it"
    pass_time(GONE, after)
    after.work()
    assert run_of(event).activity == "parked", "nobody has its version"
    both = Version(*after.flows, one)
    both.publish()
    both.work()
    both.work()
    assert run_of(event).result == "first"
    newer = send("a/c")
    both.work()
    assert (run_of(newer).version, run_of(newer).result) == (2, "done")


# -- publishing --------------------------------------------------------------------------------


def test_equal_flows_and_triggers_have_the_same_digest_in_any_order() -> None:
    one, two = made("one", "a/1", "a/2"), made("two", "a/3")
    assert Version(one, two).digest == Version(two, made("one", "a/2", "a/1")).digest
    assert Version(one).digest != Version(one, two).digest
    assert Version(one).digest != Version(made("one", "a/1")).digest
    assert Version(one).digest != Version(made("one", "a/1", "a/2", version=1)).digest
    assert len(Version(one).digest) == 64


def test_what_is_published_names_the_flows_and_their_triggers(new: Version) -> None:
    new.publish()
    found = Deployment.objects.get()
    assert found.flows == '{"added": {"0": ["a/b", "a/c"]}, "stays": {"0": ["a/b"]}}'
    assert found.first_seen_at == found.alive_at


def test_publishing_again_keeps_the_first_appearance(new: Version) -> None:
    new.publish()
    first = Deployment.objects.get().first_seen_at
    pass_time(timedelta(minutes=5), new)
    found = Deployment.objects.get()
    assert found.first_seen_at == first
    assert found.alive_at - first >= timedelta(minutes=5)


def test_what_appears_anew_is_the_newest_though_it_was_there_before(
    old: Version, new: Version
) -> None:
    old.publish()
    pass_time(TICK)
    new.publish()
    pass_time(TICK)
    with old.at_work():
        deployments.publish(anew=True)
    event = send("a/b")
    old.work()
    assert flows_of(event) == ["stays"]


@pytest.mark.django_db(transaction=True)
def test_a_thread_publishes_at_once_and_then_with_each_tick(settings: Any, new: Version) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "TICK_SECONDS": 0.02}
    seen = False
    with new.at_work():
        deployments.keep_publishing()
        publisher = deployments._publisher
        for _ in range(500):
            rows = Deployment.objects.filter(first_seen_at__lt=clock.now() - timedelta(seconds=0.1))
            if any(row.alive_at > row.first_seen_at for row in rows):
                seen = True
                break
            time.sleep(0.02)
        deployments.stop_publishing()
    assert seen
    assert publisher is not None
    for _ in range(500):
        if publisher.ended:
            break
        time.sleep(0.02)
    assert publisher.ended


def test_a_run_advanced_by_the_test_kit_needs_no_deployment() -> None:
    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "40 days")

    event = send("a/b")
    advance("41 days")
    assert run_of(event).state == "completed"
