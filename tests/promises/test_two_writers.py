"""What needs two transactions at once: on PostgreSQL only, where there are two writers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection, transaction

from durable_flows import CancelOn, Event, InvokeError, cancel, flow, rerun, send
from durable_flows.engine import execute, leases, ring
from durable_flows.engine.claim import claim
from durable_flows.engine.route import route
from durable_flows.models import Due, Run, Signature, Wait
from durable_flows.rules.keys import event_key_hash
from durable_flows.testing import RunView, advance, drain, run_of
from tests.promises.staging import again, execute_due, listener, now, once_at, played, stored

pytestmark = [pytest.mark.two_writers, pytest.mark.django_db(transaction=True)]

PATIENCE = 20  # seconds after which a test that hangs is told to


class Other(threading.Thread):
    """Somebody else with a connection of its own; ``result`` is what they came to."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error
        finally:
            connection.close()

    def done(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "somebody waits for a lock that nobody gives back"
        if self.error is not None:
            raise self.error
        return self.result


@contextmanager
def held_open(work: Callable[[], Any], *, commit: bool = True) -> Iterator[Any]:
    """Somebody's transaction, open during the block: its work is done and not committed yet."""
    worked, may_end = threading.Event(), threading.Event()
    results: list[Any] = []

    def transact() -> None:
        with transaction.atomic():
            results.append(work())
            worked.set()
            may_end.wait(PATIENCE)
            transaction.set_rollback(not commit)

    other = Other(transact)
    assert worked.wait(PATIENCE), other.error
    try:
        yield results[0]
    finally:
        may_end.set()
        other.done()


def wait_until_somebody_waits_for_a_lock() -> None:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    for _ in range(100_000):
        with connection.cursor() as cursor:
            cursor.execute(asked)
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waits")


@contextmanager
def impatient() -> Iterator[None]:
    """Whoever would wait for a lock fails instead."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")
    yield
    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")


def waiter(**options: Any) -> None:
    @flow("waiter", on="go")
    def handler(step):
        found = step.wait_for_event("reply", event="replied", timeout="1h", **options)
        return None if found is None else found.public_id


# -- a caller's transaction that stays open --------------------------------------------------


def test_an_event_sent_in_a_transaction_held_open_past_the_waits_registration_is_not_lost():
    waiter()
    with held_open(lambda: send("replied")) as ids:
        run = played()
        assert again(run).activity == "waiting"
    drain()
    assert [again(run).result] == ids


def test_it_is_not_lost_though_others_of_its_name_were_routed_meanwhile():
    waiter(match="data.n")
    with held_open(lambda: send("replied", {"n": 1})) as ids:
        run = played("go", {"n": 1})
        send("replied", {"n": 2})
        drain()
    drain()
    assert [again(run).result] == ids


def test_it_is_seen_by_a_wait_that_begins_after_the_commit_and_looks_back():
    """Sent before the trigger, visible after it: visibility decides, and not birth."""

    @flow("asks", on="go")
    def asks(step):
        step.run("ask", lambda: None)
        step.wait_for_event("pause", event="resumed", timeout="1h")
        return step.wait_for_event("reply", event="replied", timeout="1h").public_id

    with held_open(lambda: send("replied")) as ids:
        run = played()
    drain()
    send("resumed")
    drain()
    assert [again(run).result] == ids


def test_a_rollback_of_such_a_transaction_resumes_nothing():
    waiter()
    with held_open(lambda: send("replied"), commit=False):
        run = played()
    drain()
    assert again(run).activity == "waiting"


def test_no_view_can_hold_a_lock_that_routing_or_execution_waits_for():
    started = listener("go", flow_id="listening")
    waiter()

    def view() -> None:
        send("go", id="held")
        send("replied")
        cancel("00000000-0000-4000-8000-000000000000")

    with held_open(view), impatient():
        send("go")
        drain()
        advance("1m")
    assert len(started) == 1
    drain()
    assert len(started) == 2


def test_a_trigger_that_becomes_visible_late_is_cancelled_by_what_is_newer_and_was_routed_before():
    @flow("sleeper", on="go", cancel_on=CancelOn("stop", match="data.n"))
    def sleeper(step):
        step.sleep("long", "1 day")

    with held_open(lambda: send("go", {"n": 1})):
        send("stop", {"n": 1})
        drain()
    drain()
    assert Run.objects.get().state == "cancelled"


def test_it_is_so_also_where_routers_have_long_known_the_rule():
    @flow("sleeper", on="go", cancel_on=CancelOn("stop", match="data.n"))
    def sleeper(step):
        step.sleep("long", "1 day")

    played("go", {"n": 2})
    assert Signature.objects.exists()
    with held_open(lambda: send("go", {"n": 1})) as (trigger,):
        send("stop", {"n": 1})
        drain()
    drain()
    assert Run.objects.get(event_id=trigger).state == "cancelled"


# -- ids -------------------------------------------------------------------------------------


def test_a_sender_of_the_same_id_waits_for_the_first_and_gets_its_public_id():
    with held_open(lambda: send("go", id="x")) as first:
        other = Other(lambda: send("go", id="x"))
        wait_until_somebody_waits_for_a_lock()
    assert other.done() == first
    assert stored() == ["go"]


def test_if_the_first_is_rolled_back_the_one_who_waited_is_the_sender():
    with held_open(lambda: send("go", id="x"), commit=False) as first:
        other = Other(lambda: send("go", id="x"))
        wait_until_somebody_waits_for_a_lock()
    assert other.done() != first
    assert stored() == ["go"]


def test_senders_of_other_ids_wait_for_nobody():
    with held_open(lambda: send("go", id="x")), impatient():
        send("go", id="y")
        send("go")


@pytest.mark.parametrize("order", [1, -1])
def test_the_keys_of_a_list_are_taken_in_one_order_so_that_none_is_held_while_waiting_for_one_before(
    order: int,
):
    first, last = sorted(("x", "y"), key=lambda key: event_key_hash("go", key))
    batch = [Event("go", id=first), Event("go", id=last)][::order]
    with held_open(lambda: send("go", id=first)):
        other = Other(lambda: send(batch))
        wait_until_somebody_waits_for_a_lock()
        with impatient():
            send("go", id=last)
    other.done()
    assert len(stored()) == 2


def test_two_lists_with_the_same_ids_in_another_order_do_not_block_each_other_for_good():
    forward = [Event("go", id=str(n)) for n in range(50)]
    others = [
        Other(lambda batch=batch: send(batch))  # type: ignore[misc]
        for batch in [forward, forward[::-1]] * 3
    ]
    answers = [other.done() for other in others]
    assert all(sorted(answer) == sorted(answers[0]) for answer in answers)
    assert len(stored()) == 50


# -- routers and workers ---------------------------------------------------------------------


def test_an_event_that_comes_while_a_router_is_at_work_is_routed_by_it():
    started = listener("go")

    def meanwhile() -> None:
        def send_and_route() -> int:
            send("go", {"late": True})
            route()
            return Run.objects.count()

        assert Other(send_and_route).done() == 0  # it leaves: somebody is at it

    send("go")
    with once_at("runs_admitted", meanwhile):
        route()
    drain()
    assert len(started) == 2


def test_two_workers_never_take_the_same_run():
    calls: list[int] = []

    @flow("counts", on="go")
    def counts(event, step):
        step.run("count", lambda: calls.append(event.data["n"]))

    for n in range(60):
        send("go", {"n": n})
    route()
    workers = [Other(lambda: execute.drain(ring.default_queue())) for _ in range(4)]
    assert sum(worker.done() for worker in workers) == 60
    assert sorted(calls) == list(range(60))
    assert not Due.objects.exists()


def test_a_slice_that_lost_its_run_writes_nothing_more():
    values: list[str] = []

    @flow("slow", on="go")
    def slow(step):
        def work() -> str:
            if not values:
                values.append("first")
                Due.objects.update(wake_at=now())  # it is thought dead
                Other(drain).done()
                return "first"
            values.append("second")
            return "second"

        result = step.run("work", work)
        step.run("after", lambda: values.append(f"after {result}"))
        return result

    run = played()
    assert again(run).result == "second"
    assert values == ["first", "second", "after second"]
    assert again(run).step_keys == ["work", "after"]


def test_what_one_worker_is_about_to_claim_another_neither_takes_nor_waits_for():
    listener("go")
    send("go")
    route()
    with held_open(lambda: claim(ring.default_queue(), 10)) as first:
        send("go")
        route()
        with impatient():
            second = claim(ring.default_queue(), 10)
    assert len(first) == len(second) == 1
    assert first[0].run_id != second[0].run_id


def test_an_event_that_is_committed_in_the_moment_of_the_timeout_ends_the_wait_alone():
    """Sent before the timeout, in a transaction that commits after the slice's last look."""
    waiter()
    run = played()
    advance("3570s", play=False)
    with ExitStack() as stack:
        (event_id,) = stack.enter_context(held_open(lambda: send("replied")))
        advance("45s", play=False)

        def commit_and_route() -> None:
            stack.close()
            Other(route).done()

        with once_at("before_timeout", commit_and_route):
            drain()
    assert again(run).result == event_id
    assert Wait.objects.get().outcome == "event"
    assert not Due.objects.exists()


def test_a_second_start_with_a_key_waits_for_the_first_and_names_its_run():
    once = flow("once")(lambda: None)
    with held_open(lambda: once.start(key="k")) as first:
        second = Other(lambda: once.start(key="k"))
        wait_until_somebody_waits_for_a_lock()
        with impatient():
            other = once.start(key="l")
            drain()
    assert second.done() == first != other
    drain()
    assert Run.objects.count() == 2


def test_what_is_newer_than_a_rerun_cancels_it_though_it_was_routed_before():
    flow("sleeper", on="go", cancel_on=CancelOn("stop"))(lambda step: step.sleep("rest", "1h"))
    first = played()
    with held_open(lambda: rerun(first.id)) as second:
        send("stop")
        drain()
    drain()
    assert again(first).state == "cancelled"
    assert run_of(second).state == "cancelled"


# -- atomic steps ----------------------------------------------------------------------------


def take_over() -> None:
    """Somebody else thinks that the worker of every run is dead."""
    Due.objects.update(wake_at=now())
    assert claim(ring.default_queue(), 10)


def test_the_writes_of_an_atomic_step_are_undone_if_its_run_was_taken_over_meanwhile():
    calls: list[int] = []

    def work():
        calls.append(1)
        Group.objects.create(name=f"booked {len(calls)}")
        if len(calls) == 1:
            Other(take_over).done()

    flow("booking", on="go")(lambda step: step.run("book", work, atomic=True))
    run = played()
    assert (again(run).steps, Group.objects.count()) == ((), 0)
    for run_id, lease in leases.held().items():
        leases.release(run_id, lease)
    Due.objects.update(wake_at=now())
    drain()
    assert again(run).state == "completed"
    assert list(Group.objects.values_list("name", flat=True)) == ["booked 2"]


def test_between_fence_and_commit_nobody_can_take_the_run_over():
    claimed: list[Any] = []

    def work():
        Group.objects.create(name="once")
        Other(lambda: Due.objects.update(wake_at=now())).done()  # its lease is over

    def steal():
        claimed.append(Other(lambda: claim(ring.default_queue(), 10)).done())

    flow("booking", on="go")(lambda step: step.run("book", work, atomic=True))
    send("go")
    with once_at("before_atomic_commit", steal):
        drain()
    assert claimed == [[]]
    assert Group.objects.count() == 1
    assert not Due.objects.exists()


def test_an_atomic_step_holds_up_nobody_while_its_function_runs():
    waiter()
    done: list[str] = []

    def meanwhile():
        """Everything that needs its due row, each on a connection that waits for no lock."""
        with impatient():
            [run] = Run.objects.filter(flow="booking")
            leases.renew()
            send("nudge")
            cancel(str(run.pk))
            route()
            done.append(Due.objects.get(pk=run.pk).state)

    def work():
        Group.objects.create(name="booked")
        Other(meanwhile).done()

    @flow("booking", on="go", cancel_on=CancelOn("nudge"))
    def booking(step):
        step.run("book", work, atomic=True)
        step.run("never", done.append, "never")

    send("go")
    drain()
    assert done == ["cancelling"]
    assert Run.objects.get(flow="booking").state == "cancelled"
    assert Group.objects.count() == 1


# -- invoked runs ----------------------------------------------------------------------------


def family(**options: Any) -> Any:
    """A flow that invokes another, whose queue is served by nobody but `execute_children`."""

    @flow("child", queue="children")
    def child():
        return "done"

    @flow("parent", on="go")
    def parent(step):
        try:
            return step.invoke("call", child, **options)
        except InvokeError as error:
            return error.state

    return child


def execute_children() -> None:
    assert execute.drain("children") == 1


def begun() -> RunView:
    """A parent that is admitted, and waits."""
    [event] = send("go")
    route()
    execute_due()
    return run_of(event)


def test_a_child_that_ends_and_is_told_of_while_it_is_being_joined_is_not_missed():
    child = family(key="k")
    child.start(key="k")
    route()

    def end() -> None:
        execute_children()
        route()

    with once_at("before_invoke_commit", lambda: Other(end).done()):
        run = begun()
    assert again(run).result == "done"


def test_a_child_that_ends_after_it_was_joined_and_before_the_parent_looks_is_not_missed():
    family(key="k").start(key="k")
    route()
    with once_at("invoke_registered", lambda: Other(execute_children).done()):
        run = begun()
    assert again(run).result == "done"
    drain()
    assert Wait.objects.get(kind="child").outcome == "completed"


def test_a_child_that_ends_after_the_parent_has_looked_wakes_it():
    family(key="k").start(key="k")
    route()
    with once_at("before_suspend", lambda: Other(execute_children).done(), "parent"):
        run = begun()
    assert again(run).activity == "waiting"
    drain()
    assert again(run).result == "done"


def test_an_end_that_is_told_while_the_parent_suspends_wakes_it_at_once():
    family()

    def end() -> None:
        route()
        execute_children()
        route()

    with once_at("before_suspend", lambda: Other(end).done(), "parent"):
        run = begun()
    execute_due()
    assert again(run).result == "done"


def test_a_start_in_a_transaction_held_open_is_joined_when_that_is_committed():
    child = family(key="k")
    with held_open(lambda: child.start(key="k")) as first:
        send("go")
        route()
        parent = Other(execute_due)
        wait_until_somebody_waits_for_a_lock()
    parent.done()
    drain()
    assert str(Run.objects.get(flow="child").pk) == first
    assert Run.objects.get(flow="parent").result == '"done"'


def test_the_ends_of_parent_and_child_wait_for_nothing_of_each_other():
    family()
    first, second = begun(), begun()
    route()

    def end_children() -> None:
        with impatient():
            assert execute.drain("children") == 2

    cancel(first.id)
    with once_at("before_end_commit", lambda: Other(end_children).done()):
        route()
    assert again(first).state == "cancelled"

    def cancel_parent() -> None:
        with impatient():
            cancel(third.id)
            route()

    third = begun()
    route()
    with once_at("before_end_commit", lambda: Other(cancel_parent).done()):
        execute_children()
    drain()
    assert [again(run).state for run in (first, second, third)] == [
        *("cancelled", "completed", "cancelled")
    ]
    assert not Due.objects.exists()


def test_an_end_that_the_router_and_the_parent_find_at_once_ends_the_wait_once():
    family(timeout="30m")
    run = begun()
    route()
    execute_children()
    advance("31m", play=False)
    with once_at("before_child_settled", lambda: Other(route).done()):
        execute_due()
    assert again(run).result == "done"
    assert Wait.objects.get(kind="child").outcome == "completed"


def test_an_end_while_the_parent_gives_up_is_too_late():
    family(timeout="30m")
    run = begun()
    route()
    advance("31m", play=False)

    def end() -> None:
        execute_children()
        route()

    with once_at("before_child_settled", lambda: Other(end).done()):
        execute_due()
    drain()
    assert again(run).result == "timeout"
    assert Wait.objects.get(kind="child").outcome == "timeout"
    assert run_of(again(run).children[0]).state == "completed"


def test_an_end_in_time_that_is_told_while_the_parent_gives_up_wins():
    family(timeout="30m")
    run = begun()
    route()
    in_time = now()
    advance("31m", play=False)

    def end() -> None:
        execute_children()  # its commit took long
        Run.objects.filter(flow="child").update(ended_at=in_time)
        route()

    with once_at("before_child_settled", lambda: Other(end).done()):
        execute_due()
    drain()
    assert again(run).result == "done"
    assert Wait.objects.get(kind="child").outcome == "completed"


def test_a_cancel_while_the_parent_gives_up_ends_it_cancelled_with_its_wait_timed_out():
    family(timeout="30m")
    run = begun()
    advance("31m", play=False)

    def stop() -> None:
        cancel(run.id)
        route()

    with once_at("before_child_settled", lambda: Other(stop).done()):
        execute_due()
    drain()
    assert (again(run).state, again(run).step_keys) == ("cancelled", ["call"])
    assert Wait.objects.get(kind="child").outcome == "timeout"


def test_a_cancel_of_the_parent_waits_for_the_invoke_in_hand_and_cancels_that_child():
    family()
    [event] = send("go")
    route()
    asked: list[Other] = []

    def stop() -> None:
        Other(lambda: cancel(run_of(event).id)).done()
        asked.append(Other(route))
        Other(wait_until_somebody_waits_for_a_lock).done()  # anew: a transaction sees one picture

    with once_at("before_invoke_commit", stop):
        execute_due()
    asked[0].done()
    drain()
    assert set(Run.objects.values_list("flow", "state")) == {
        ("parent", "cancelled"),
        ("child", "cancelled"),
    }


def test_a_zombie_that_invokes_starts_no_child():
    @flow("parent", on="go")
    def parent(step):
        Other(take_over).done()
        step.invoke("call", "child")

    played()
    assert not Run.objects.filter(flow="child").exists()
    assert stored() == ["go"]
