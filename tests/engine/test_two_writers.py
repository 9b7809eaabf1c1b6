"""What needs two connections at once: PostgreSQL only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from django.db import connections, transaction

from durable_flows import CancelOn, Step, cancel, flow
from durable_flows.engine import execute, failpoints, finish, leases, ring, sql
from durable_flows.engine.claim import claim
from durable_flows.engine.fence import MINE
from durable_flows.engine.route import route
from durable_flows.models import Due, Run
from durable_flows.models import Event as Stored
from durable_flows.rules.states import RunState
from durable_flows.testing import crash_at, drain, run_of, send

pytestmark = [pytest.mark.two_writers, pytest.mark.django_db(transaction=True)]

PATIENCE = 20  # seconds, after which a test gives up


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


@contextmanager
def held_open(call: Callable[[], object]) -> Iterator[None]:
    """Do something in a transaction that stays open, elsewhere, for the length of the block."""
    done, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            call()
            done.set()
            assert go_on.wait(PATIENCE)

    with elsewhere() as submit:
        held = submit(hold)
        try:
            assert done.wait(PATIENCE)
            yield
        finally:
            go_on.set()
            held.result(PATIENCE)


def test_an_event_in_a_transaction_held_open_past_the_waits_registration_resumes_the_wait() -> None:
    @flow("waits", on="a/began")
    def waits(step: Step) -> bool:
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    with held_open(lambda: send("a/replied")):
        event = send("a/began")
        drain()
        assert run_of(event).activity == "waiting"
    drain()
    assert run_of(event).result is True


def test_an_event_sent_before_the_trigger_but_seen_after_the_wait_counts_as_a_reply() -> None:
    @flow("waits", on="a/began")
    def waits(step: Step) -> bool:
        step.run("act", lambda: None)
        return step.wait_for_event("reply", event="a/replied", timeout="1h") is not None

    with held_open(lambda: send("a/replied")):
        event = send("a/began")
        drain()
    drain()
    assert run_of(event).result is True


def test_open_transactions_of_senders_and_commands_hold_up_nobody() -> None:
    @flow("rests", on="a/b", cancel_on=CancelOn("a/stop"))
    def rests(step: Step) -> None:
        step.sleep("rest", "1h")

    first = send("a/b")
    drain()

    def ask_for_much() -> None:
        cancel(run_of(first).id)
        rests.start({"x": 1})
        send("a/stop")

    with held_open(ask_for_much):
        second = send("a/b")
        drain()
        assert run_of(second).activity == "waiting"
        leases.renew()
    drain()
    assert run_of(first).state == "cancelled"


def test_two_workers_never_claim_the_same_run() -> None:
    flow("quick", on="a/b")(lambda: None)
    for _ in range(40):
        send("a/b")
    route()
    start = threading.Barrier(4)

    def take() -> list[object]:
        taken: list[object] = []
        start.wait(PATIENCE)
        while batch := claim(ring.default_queue(), 3):
            taken += [claimed.run_id for claimed in batch]
        return taken

    with elsewhere() as submit:
        batches = [submit(take) for _ in range(4)]
        taken = [run_id for batch in batches for run_id in batch.result(PATIENCE)]  # type: ignore[attr-defined]
    assert len(taken) == len(set(taken)) == 40


def test_two_routers_admit_each_event_once_and_strand_none() -> None:
    flow("quick", on="a/b")(lambda: None)
    start = threading.Barrier(5)

    def send_some() -> None:
        start.wait(PATIENCE)
        for _ in range(20):
            send("a/b")
            route()

    with elsewhere() as submit:
        senders = [submit(send_some) for _ in range(4)]
        start.wait(PATIENCE)
        for sender in senders:
            sender.result(PATIENCE)
    assert Run.objects.count() == 80
    assert not Stored.objects.filter(routed_at__isnull=True).exists()


def test_two_senders_of_one_id_store_one_event() -> None:
    start = threading.Barrier(4)

    def send_same() -> str:
        start.wait(PATIENCE)
        return send("a/b", id="the-same")

    with elsewhere() as submit:
        ids = {future.result(PATIENCE) for future in [submit(send_same) for _ in range(4)]}
    assert len(ids) == 1
    assert [str(event.pk) for event in Stored.objects.all()] == list(ids)


def test_a_run_is_not_taken_over_while_a_step_of_it_is_being_recorded() -> None:
    """Or the history that is read then would lack a step committed a moment later."""
    flow("slow", on="a/b")(lambda: None)
    send("a/b")
    route()
    (claimed,) = claim(ring.default_queue(), 1)
    Due.objects.update(wake_at=claimed.created_at)
    with elsewhere() as submit:
        with transaction.atomic():
            fence = {"run": claimed.run_id, "lease": claimed.lease}
            sql.execute(f"{MINE} SELECT 1 FROM mine", fence)
            meanwhile = submit(lambda: len(claim(ring.default_queue(), 10)))
            assert meanwhile.result(PATIENCE) == 0  # the row is in hand: skipped, not waited for
        assert submit(lambda: len(claim(ring.default_queue(), 10))).result(PATIENCE) == 1


def test_workers_that_drain_at_once_execute_each_step_once() -> None:
    calls: list[int] = []

    @flow("once", on="a/b")
    def once(step: Step) -> None:
        step.run("count", lambda: calls.append(1))

    for _ in range(10):
        send("a/b")
    route()
    with elsewhere() as submit:
        drains = [submit(lambda: execute.drain(ring.default_queue())) for _ in range(3)]
        for done in drains:
            done.result(PATIENCE)
    assert len(calls) == 10
    assert Run.objects.filter(state="completed").count() == 10


def test_a_cancel_look_back_is_made_though_the_router_that_admitted_the_run_died() -> None:
    """A trigger held open arrives late; what cancels it was routed before."""

    @flow("newest", on="a/began", cancel_on=CancelOn("a/stop", match="data.k"))
    def newest(step: Step) -> None:
        step.sleep("rest", "1h")

    send("a/began", {"k": 0})
    drain()
    late: list[str] = []
    with held_open(lambda: late.append(send("a/began", {"k": 1}))):
        send("a/stop", {"k": 1})
        drain()
    with crash_at("between_routing_transactions"):
        drain()
    drain()
    assert run_of(late[0]).state == "cancelled"


def test_commands_in_any_order_and_ends_of_the_same_runs_do_not_deadlock() -> None:
    flow("any", on="a/b")(lambda: None)
    send("a/b")
    send("a/b")
    route()
    claims = {claimed.run_id: claimed for claimed in claim(ring.default_queue(), 10)}
    low, high = sorted(claims)
    cancel(high)
    cancel(low)
    locked, go_on = threading.Event(), threading.Event()

    def observe(text: str) -> None:
        if "SET state = 'cancelling'" in text:  # the router has locked what it needs
            locked.set()
            go_on.wait(1)

    def end() -> list[finish.Ending]:
        endings = [
            finish.Ending(run_id=run, lease=claims[run].lease, state=RunState.COMPLETED, result="1")
            for run in (low, high)
        ]
        return finish.end(endings)

    sql.observers.append(observe)
    try:
        with elsewhere() as submit:
            routing = submit(route)
            assert locked.wait(PATIENCE)
            ending = submit(end)
            go_on.set()
            routing.result(PATIENCE)
            ended = ending.result(PATIENCE)
    finally:
        sql.observers.remove(observe)
    assert [ending.state for ending in ended] == ["cancelled", "cancelled"]  # type: ignore[attr-defined]


def test_heartbeats_and_ends_of_the_same_runs_do_not_deadlock() -> None:
    flow("any", on="a/b")(lambda: None)
    for _ in range(120):
        send("a/b")
    route()
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            leases.renew()

    with elsewhere() as submit:
        renewing = submit(renew)
        try:
            while claims := claim(ring.default_queue(), 40):
                ends = [
                    finish.Ending(
                        run_id=claimed.run_id,
                        lease=claimed.lease,
                        state=RunState.COMPLETED,
                        result="1",
                    )
                    for claimed in claims
                ]
                submit(lambda ends=ends: finish.end(ends)).result(PATIENCE)  # type: ignore[misc]
                for claimed in claims:
                    leases.release(claimed.run_id, claimed.lease)
        finally:
            stop.set()
            renewing.result(PATIENCE)
    assert Run.objects.filter(state="completed").count() == 120


def test_a_second_router_that_comes_between_the_transactions_of_the_first_suspects_nobody() -> None:
    flow("quick", on="a/b")(lambda: None)
    for _ in range(20):
        send("a/b")
    in_between, go_on = threading.Event(), threading.Event()

    def stop(place: str, detail: str) -> None:
        if place == "between_routing_transactions" and not in_between.is_set():
            in_between.set()
            go_on.wait(PATIENCE)

    failpoints.trap = stop
    with elsewhere() as submit:
        first = submit(route)
        assert in_between.wait(PATIENCE)
        second = submit(route)
        go_on.set()
        routed = [first.result(PATIENCE), second.result(PATIENCE)]
    assert sum(routing.events for routing in routed) == 20  # type: ignore[attr-defined]
    assert Run.objects.count() == 20
    assert not Stored.objects.filter(routed_at__isnull=True).exists()
    assert not Stored.objects.filter(quarantined=True).exists()


def test_an_event_that_three_living_routers_had_in_hand_is_not_set_aside_for_good() -> None:
    flow("quick", on="a/b")(lambda: None)
    event = send("a/b")
    stalls = [(threading.Event(), threading.Event()) for _ in range(2)]
    left = list(stalls)

    def stall(place: str, detail: str) -> None:
        if place == "between_routing_transactions" and left:
            in_between, go_on = left.pop(0)
            in_between.set()
            go_on.wait(PATIENCE)

    failpoints.trap = stall
    with elsewhere() as submit:
        routers = []
        for in_between, _ in stalls:
            routers.append(submit(route))
            assert in_between.wait(PATIENCE)
        submit(route).result(PATIENCE)  # cannot know that the two before it live
        for router, (_, go_on) in zip(routers, stalls, strict=True):
            go_on.set()
            router.result(PATIENCE)
    row = Stored.objects.get(pk=event)
    assert (row.quarantined, row.error) == (False, "")
    assert row.routed_at is not None
