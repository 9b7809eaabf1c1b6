"""Several routers at once, each with the events of its shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections, transaction

from durable_flows import CancelOn, Step, cancel, flow, rerun, retry
from durable_flows.engine import failpoints, route, shards
from durable_flows.engine.hand import Routing
from durable_flows.engine.shards import Shard
from durable_flows.models import Event as Stored
from durable_flows.models import Run, Signature
from durable_flows.testing import drain, run_of, runs_of, send

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 20  # seconds, after which a test gives up


def name_in(index: int, count: int = 2, prefix: str = "a") -> str:
    """A name of an event of this shard."""
    names = (f"{prefix}/{n}" for n in range(10_000))
    return next(name for name in names if shards.number_of(name) % count == index)


FIRST, SECOND = name_in(0), name_in(1)


@pytest.fixture
def two(settings: Any) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "ROUTE_SHARDS": 2}


@contextmanager
def elsewhere() -> Iterator[Callable[[Callable[[], object]], Future[object]]]:
    """Call something in another thread, on a connection of its own."""

    def with_connection(call: Callable[[], object]) -> object:
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        yield lambda call: pool.submit(with_connection, call)


def route_shard(index: int, count: int = 2) -> int:
    done = Routing()
    route._route_shard(Shard(index, count), done)
    return done.events


def shard_of(event_id: str) -> int:
    return Stored.objects.get(pk=event_id).shard


# -- which shard -------------------------------------------------------------------------------


def test_events_of_one_name_have_one_shard_and_names_are_spread() -> None:
    assert shard_of(send(FIRST)) == shard_of(send(FIRST)) == shards.number_of(FIRST)
    assert {shards.number_of(f"shop/{n}") % 4 for n in range(50)} == {0, 1, 2, 3}
    assert all(0 <= shards.number_of(f"shop/{n}") < 256 for n in range(50))


def test_the_commands_about_one_run_have_one_shard() -> None:
    @flow("fails", on=FIRST)
    def fails() -> None:
        raise ValueError

    fails_at_once = flow("once", retries=0)(lambda: 1 / 0)
    run = fails_at_once.start()
    drain()
    again = rerun(run)
    retry(run)
    cancel(run)
    cancel(again)
    found = [
        (event.name.rpartition("/")[2], event.shard)
        for event in Stored.objects.filter(name__startswith="flows/").order_by("arrival")
    ]
    old, new = shards.number_of(run), shards.number_of(again)
    assert [shard for _, shard in found] == [old, new, old, old, new]


@pytest.mark.parametrize("count", [1, 2, 8, 256])
def test_every_event_is_of_exactly_one_shard(count: int, settings: Any) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "ROUTE_SHARDS": count}
    for n in range(20):
        send(f"shop/{n}")
    assert drain() == 20
    assert not Stored.objects.filter(routed_at=None).exists()


# -- locks -------------------------------------------------------------------------------------


@pytest.mark.two_writers
@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (Shard(0, 2), Shard(1, 2), True),
        (Shard(0, 2), Shard(0, 2), False),
        (Shard(), Shard(1, 2), False),
        (Shard(1, 2), Shard(), False),
        (Shard(1, 2), Shard(3, 4), False),
        (Shard(3, 4), Shard(1, 2), False),
        (Shard(0, 2), Shard(3, 4), True),
        (Shard(200, 256), Shard(0, 8), False),
        (Shard(200, 256), Shard(1, 8), True),
        (Shard(), Shard(), False),
    ],
)
def test_two_routers_are_at_work_only_if_their_shards_have_nothing_in_common(
    one: Shard, other: Shard, together: bool
) -> None:
    numbers = [
        {number for number in range(256) if number % shard.count == shard.index}
        for shard in (one, other)
    ]
    assert together == (not numbers[0] & numbers[1])

    def is_free() -> bool:
        with transaction.atomic():
            return other.try_lock()

    with elsewhere() as submit:
        with transaction.atomic():
            assert one.try_lock()
            assert submit(is_free).result(PATIENCE) is together
        assert submit(is_free).result(PATIENCE) is True


@pytest.mark.two_writers
def test_a_router_that_stands_still_holds_up_its_own_shard_only(two: None) -> None:
    flow("any", on=[FIRST, SECOND])(lambda: None)
    held, free = send(FIRST), send(SECOND)
    stands, go_on = threading.Event(), threading.Event()

    def stand(place: str, detail: str) -> None:
        if place == "runs_admitted" and threading.current_thread() is not threading.main_thread():
            stands.set()
            go_on.wait(PATIENCE)

    failpoints.trap = stand
    with elsewhere() as submit:
        standing = submit(lambda: route_shard(0))
        assert stands.wait(PATIENCE)
        assert route.route().events == 1
        assert [len(runs_of(held)), len(runs_of(free))] == [0, 1]
        go_on.set()
        assert standing.result(PATIENCE) == 1


@pytest.mark.two_writers
def test_many_routers_of_several_shards_route_everything_once(settings: Any) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "ROUTE_SHARDS": 4, "ROUTE_BATCH": 7}
    names = [f"shop/{n}" for n in range(10)]
    flow("quick", on=names)(lambda: None)
    start = threading.Barrier(4)

    def work() -> None:
        start.wait(PATIENCE)
        for _ in range(5):
            for name in names:
                send(name)
            route.route()

    with elsewhere() as submit:
        for worker in [submit(work) for _ in range(4)]:
            worker.result(PATIENCE)
    route.route()
    assert Run.objects.count() == 200
    assert not Stored.objects.filter(routed_at=None).exists()
    assert not Stored.objects.filter(quarantined=True).exists()
    numbers = list(Stored.objects.values_list("routed", flat=True))
    assert len(set(numbers)) == 200


# -- what one shard's router must see of another's ----------------------------------------------


def newest() -> None:
    """A run of this flow is cancelled by an event that another shard routes."""

    @flow("newest", on=FIRST, cancel_on=CancelOn(SECOND, match="data.k"))
    def handler(step: Step) -> None:
        step.sleep("rest", "1h")


@pytest.mark.two_writers
def test_a_run_is_cancelled_by_what_another_router_routed_just_before_it_was_there(
    two: None,
) -> None:
    newest()
    trigger = send(FIRST, {"k": 1})
    send(SECOND, {"k": 1})
    assert route_shard(1) == 1  # knows no signature, and sees no wait
    assert route_shard(0) == 1
    assert run_of(trigger).state == "cancelled"


@pytest.mark.two_writers
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("place", ["events_numbered", "runs_admitted"])
def test_a_run_is_cancelled_by_what_another_router_has_in_hand_while_it_is_admitted(
    place: str, known: bool, two: None
) -> None:
    """The one router stands still inside its first transaction while the other does everything."""
    newest()
    if known:  # the signature is old: all that matters is who sees whom
        send(FIRST, {"k": 0})
        send(SECOND, {"k": 0})
        route.route()
        assert Signature.objects.count() == 1
    for standing, other in ((0, 1), (1, 0)):
        trigger = send(FIRST, {"k": 1})
        send(SECOND, {"k": 1})
        stands, go_on = threading.Event(), threading.Event()

        def stand(
            reached: str,
            detail: str,
            stands: threading.Event = stands,
            go_on: threading.Event = go_on,
        ) -> None:
            if reached == place and threading.current_thread() is not threading.main_thread():
                stands.set()
                go_on.wait(PATIENCE)

        failpoints.trap = stand
        with elsewhere() as submit:
            router = submit(lambda standing=standing: route_shard(standing))  # type: ignore[misc]
            assert stands.wait(PATIENCE)
            assert route_shard(other) == 1
            go_on.set()
            assert router.result(PATIENCE) == 1
        failpoints.trap = None
        assert run_of(trigger).state == "cancelled", f"router {standing} stood"


@pytest.mark.two_writers
def test_an_event_older_than_the_trigger_cancels_nothing_though_it_is_routed_later(
    two: None,
) -> None:
    newest()
    send(SECOND, {"k": 1})
    trigger = send(FIRST, {"k": 1})
    assert route_shard(0) == 1
    assert route_shard(1) == 1
    drain()
    assert run_of(trigger).activity == "waiting"


@pytest.mark.two_writers
def test_a_start_is_routed_before_the_cancellation_of_the_same_run(two: None) -> None:
    rests = flow("rests")(lambda step: step.sleep("rest", "1h"))
    runs = []
    for _ in range(10):
        runs.append(rests.start())
        cancel(runs[-1])
    route.route()
    assert {run_of(run).state for run in runs} == {"cancelled"}


def test_a_wait_that_another_router_made_known_meanwhile_hides_no_event_from_a_late_trigger() -> (
    None
):
    """The signature is a slice's, younger than the event that cancels, and no news to the router."""
    newest()

    @flow("waits", on="a/waits")
    def waits(step: Step) -> None:
        step.wait_for_event("later", event=SECOND, match="data.k", timeout="1h")

    trigger = send(FIRST, {"k": 1})
    row = Stored.objects.get(pk=trigger)
    Stored.objects.filter(pk=trigger).update(deliver_at=row.deliver_at.replace(year=2099))
    send(SECOND, {"k": 1})
    drain()  # routed before anybody asked for its value
    send("a/waits", {"k": 2})
    drain()
    Stored.objects.filter(pk=trigger).update(deliver_at=row.deliver_at)  # now it is visible
    drain()
    assert run_of(trigger).state == "cancelled"
