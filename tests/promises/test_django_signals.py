"""Django's signals: `emit` sends an event, the others tell observers what the engine has done."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.dispatch import Signal
from django.test import TestCase, override_settings

from durable_flows import (
    AsyncStep,
    CancelOn,
    Event,
    Fixed,
    NonRetriableError,
    Retries,
    Step,
    cancel,
    conf,
    flow,
    models,
    retry,
    signals,
)
from durable_flows.engine import claim, deadlines, execute, ring, sql
from durable_flows.engine.route import route
from durable_flows.errors import InvalidEvent
from durable_flows.rules import clock
from durable_flows.testing import advance, crash_at, drain, run_of, send
from tests.promises.staging import again, listener, played, rolled_back, row, stored
from tests.promises.test_middleware import tenant

pytestmark = pytest.mark.django_db


@contextmanager
def observing(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """What the signal tells inside the block."""
    told: list[dict[str, Any]] = []

    def note(*, signal: Signal, **facts: Any) -> None:
        told.append(facts)

    with connected(signal, note):
        yield told


@contextmanager
def connected(signal: Signal, receiver: Any) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


#: What is committed, in a test that is one transaction itself.
committed = partial(TestCase.captureOnCommitCallbacks, execute=True)


def ids_of(answers: Any) -> list[str]:
    """What the receiver of `emit` has answered."""
    [(_, ids)] = answers
    return list(ids)


# -- emit ------------------------------------------------------------------------------------


def test_emit_sends_an_event_with_every_field():
    moment = clock.now()
    fields = {"data": {"n": 1}, "user": {"id": 7}, "id": "o1", "ts": moment, "v": "2"}
    (event_id,) = ids_of(signals.emit.send("shop", name="order/paid", **fields))
    kept = row(event_id)
    assert (kept.name, kept.data, kept.user) == ("order/paid", '{"n":1}', '{"id":7}')
    assert (kept.key, kept.ts, kept.v) == ("o1", moment, "2")


def test_what_is_emitted_starts_flows():
    started = listener("order/paid")
    ids = ids_of(signals.emit.send(None, name="order/paid"))
    drain()
    assert started == ids


def test_emit_is_part_of_the_callers_transaction():
    with rolled_back():
        signals.emit.send(None, name="order/paid")
        assert stored() == ["order/paid"]
    assert stored() == []


def test_what_is_wrong_with_an_emitted_event_reaches_the_caller():
    with pytest.raises(InvalidEvent, match="/data/items"):
        signals.emit.send(None, name="order/paid", data={"items": {1, 2}})
    with pytest.raises(TypeError, match="colour"):
        signals.emit.send(None, name="order/paid", colour="red")
    with pytest.raises(TypeError, match="name"):
        signals.emit.send(None, data={})
    assert stored() == []


def test_emit_takes_an_event_object_too():
    signals.emit.send(None, name=Event("order/paid", {"n": 1}))
    assert stored() == ["order/paid"]


def test_a_coroutine_emits_with_asend():
    (event_id,) = ids_of(async_to_sync(signals.emit.asend)(None, name="order/paid"))
    assert row(event_id).name == "order/paid"


def test_what_a_step_emits_is_sent_by_its_run():
    @flow("seller", on="go")
    def seller(step):
        step.run("emit", lambda: signals.emit.send(None, name="order/paid") and None)

    run = played()
    assert str(models.Event.objects.get(name="order/paid").sender) == run.id


# -- events ----------------------------------------------------------------------------------


def test_observers_are_told_of_an_event_that_is_stored():
    with observing(signals.event_received) as told, committed():
        event_id = send("order/paid", {"secret": 1})
        assert told == []
    kept = row(event_id)
    assert told == [
        {
            "sender": models.Event,
            "event_id": event_id,
            "name": "order/paid",
            "run_id": "",
            "received_at": kept.received_at,
            "deliver_at": kept.deliver_at,
        }
    ]


@pytest.mark.django_db(transaction=True)
def test_observers_of_events_are_told_after_the_commit_and_of_nothing_that_is_rolled_back():
    with observing(signals.event_received) as told:
        with transaction.atomic():
            send("kept")
            with rolled_back():
                send("undone/inside")
            assert told == []
        with rolled_back():
            send("undone")
        send("alone")
    assert [facts["name"] for facts in told] == ["kept", "alone"]


def test_observers_are_told_once_of_an_event_with_an_id():
    with observing(signals.event_received) as told, committed():
        send("order/paid", id="o1")
        send("order/paid", id="o1")
    assert len(told) == 1


def test_observers_are_told_which_run_has_sent_an_event_and_nothing_of_commands():
    @flow("child")
    def child(): ...

    @flow("parent", on="go", on_failure=lambda: None)
    def parent(step):
        step.send_event("send", Event("sent"))
        step.invoke("call", child)
        child.start()

    with observing(signals.event_received) as told, committed():
        run = played()
    assert [(facts["name"], facts["run_id"]) for facts in told] == [("go", ""), ("sent", run.id)]


# -- runs and steps ----------------------------------------------------------------------------


def test_observers_are_told_of_the_start_the_steps_and_the_end_of_a_run():
    @flow("buy", on="go")
    def buy(step):
        step.run("charge", lambda: "secret")
        step.send_event("tell", Event("told"))
        step.sleep("rest", "1h")
        step.wait_for_event("never", event="never", timeout="1h")

    with (
        observing(signals.run_started) as starts,
        observing(signals.step_finished) as steps,
        observing(signals.run_ended) as ends,
        committed(),
    ):
        run = played()
        advance("2h")
    kept = models.Run.objects.get(pk=run.id)
    about = {"run_id": run.id, "flow": "buy", "generation": 0}
    more = {"version": 0, "event_id": str(kept.event_id), "created_at": kept.created_at}
    assert starts == [{"sender": models.Run, **about, **more, "queue": "celery"}]
    of_a_step = {"sender": models.Step, **about, "state": "done", "attempt": 1}
    assert steps == [
        {**of_a_step, "step": "charge", "kind": "run"},
        {**of_a_step, "step": "tell", "kind": "send"},
        {**of_a_step, "step": "never", "kind": "wait"},
    ]
    ended = {"started_at": kept.started_at, "ended_at": kept.ended_at, "state": "completed"}
    assert ends == [{"sender": models.Run, **about, **more, **ended}]


def test_an_async_flow_is_observed_too():
    @flow("buy", on="go")
    async def buy(step: AsyncStep) -> None:
        await step.run("charge", int)

    with (
        observing(signals.run_started) as starts,
        observing(signals.step_finished) as steps,
        observing(signals.run_ended) as ends,
        committed(),
    ):
        run = played()
    assert [facts["run_id"] for facts in (*starts, *steps, *ends)] == [run.id] * 3


def test_a_step_that_fails_is_told_of_when_no_further_attempt_is_made():
    @flow("buy", on="go", retries=Retries(1, backoff=Fixed("10s"), jitter="0s"))
    def buy(step):
        step.run("charge", int, "no number")

    with observing(signals.step_finished) as steps, observing(signals.run_ended) as ends:
        with committed():
            run = played()
        assert (steps, ends) == ([], [])
        with committed():
            advance("10s")
    assert again(run).state == "failed"
    assert [(facts["step"], facts["state"], facts["attempt"]) for facts in steps] == [
        ("charge", "failed", 2)
    ]
    assert [facts["state"] for facts in ends] == ["failed"]


def test_observers_are_told_of_each_start_and_end_of_a_run_that_is_retried():
    broken = True

    @flow("buy", on="go", retries=0)
    def buy(step):
        step.run("charge", lambda: 1 / int(not broken))

    with (
        observing(signals.run_started) as starts,
        observing(signals.run_ended) as ends,
        committed(),
    ):
        run = played()
        broken = False
        retry(run.id)
        drain()
    assert [facts["generation"] for facts in starts] == [0, 1]
    assert [(facts["generation"], facts["state"]) for facts in ends] == [
        (0, "failed"),
        (1, "completed"),
    ]


def test_a_run_is_told_to_begin_once_however_many_slices_it_has():
    @flow("nap", on="go")
    def nap(step):
        step.sleep("doze", "1h")
        step.sleep("sleep", "1h")

    with observing(signals.run_started) as starts, committed():
        played()
        advance("2h")
    assert len(starts) == 1


@pytest.mark.parametrize("how", ["command", "rule", "deadline"])
def test_observers_are_told_of_a_run_that_is_cancelled_while_it_rests(how):
    from durable_flows import Timeouts

    @flow("nap", on="go", cancel_on=CancelOn("wake"), timeouts=Timeouts(finish="2h"))
    def nap(step):
        step.sleep("doze", "5h")

    run = played()
    with observing(signals.run_ended) as ends, committed():
        if how == "command":
            cancel(run.id)
        elif how == "rule":
            send("wake")
        else:
            advance("3h", play=False)
            deadlines.serve()
        drain()
    assert [(facts["run_id"], facts["state"]) for facts in ends] == [(run.id, "cancelled")]


def test_observers_are_told_of_a_run_that_ends_before_it_begins():
    @flow("nap", on="go")
    def nap(): ...

    event_id = send("go")
    route()
    run = run_of(event_id)
    with (
        observing(signals.run_started) as starts,
        observing(signals.run_ended) as ends,
        committed(),
    ):
        cancel(run.id)
        route()
        drain()
    assert starts == []
    assert [(facts["state"], facts["started_at"]) for facts in ends] == [("cancelled", None)]


def test_observers_learn_that_a_run_which_its_claimer_gave_back_has_begun_once():
    @flow("nap", on="go")
    def nap(): ...

    with observing(signals.run_started) as starts, committed():
        event_id = send("go")
        route()
        claim.claim(ring.default_queue(), 1)
        clock.advance(clock.real(conf.settings().LEASE_SECONDS))
        drain()
    assert run_of(event_id).state == "completed"
    assert len(starts) == 1


# -- observers harm nothing --------------------------------------------------------------------


def failing(**_: Any) -> None:
    raise ValueError("the observer is broken")


def exiting(**_: Any) -> None:
    raise SystemExit(3)


class WithoutName:
    def __call__(self, **_: Any) -> None:
        raise ValueError("the observer is broken")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "receiver", [failing, exiting, WithoutName()], ids=["raises", "exits", "nameless"]
)
def test_an_observer_that_fails_fails_nothing(receiver, caplog):
    calls: Counter[str] = Counter()

    @flow("buy", on="go")
    def buy(step: Step) -> str:
        step.run("charge", lambda: calls.update(["charge"]))
        step.run("book", lambda: calls.update(["book"]), atomic=True)
        step.send_event("tell", Event("told"))
        return "done"

    with (
        connected(signals.event_received, receiver),
        connected(signals.run_started, receiver),
        connected(signals.step_finished, receiver),
        connected(signals.run_ended, receiver),
        caplog.at_level(logging.ERROR),
    ):
        run = played()
    assert (run.state, run.result, run.attempts) == ("completed", "done", {})
    assert calls == {"charge": 1, "book": 1}
    assert stored() == ["go", "told"]
    assert caplog.records


@pytest.mark.django_db(transaction=True)
def test_the_log_names_the_observer_that_failed(caplog):
    with connected(signals.event_received, failing), caplog.at_level(logging.ERROR):
        send("go")
    (record,) = caplog.records
    assert "failing" in record.getMessage()
    assert "the observer is broken" in str(record.exc_info)


@pytest.mark.django_db(transaction=True)
def test_the_other_observers_are_told_though_one_fails():
    with (
        connected(signals.event_received, failing),
        observing(signals.event_received) as told,
    ):
        send("a")
        send("b")
    assert [facts["name"] for facts in told] == ["a", "b"]


@pytest.mark.django_db(transaction=True)
def test_an_observer_whose_query_fails_fails_nothing():
    def breaks(**_: Any) -> None:
        sql.execute("SELECT nothing FROM nowhere")

    @flow("buy", on="go")
    def buy(step):
        return step.run("charge", lambda: 1)

    with connected(signals.step_finished, breaks), connected(signals.run_ended, breaks):
        assert played().result == 1


@pytest.mark.django_db(transaction=True)
def test_a_step_is_recorded_and_the_end_is_committed_before_observers_are_told():
    seen: list[Any] = []

    def look(*, run_id: str, **_: Any) -> None:
        assert not sql.connection().in_atomic_block
        run = models.Run.objects.get(pk=run_id)
        seen.append((run.state, run.steps.count()))

    @flow("buy", on="go")
    def buy(step):
        step.run("charge", int)

    with (
        connected(signals.run_started, look),
        connected(signals.step_finished, look),
        connected(signals.run_ended, look),
    ):
        played()
    assert seen == [("started", 0), ("started", 1), ("completed", 1)]


def test_a_worker_that_dies_tells_of_a_step_at_most_once():
    @flow("buy", on="go")
    def buy(step):
        step.run("charge", int)
        step.run("book", int)

    for recorded in ("step_ran", "step_recorded"):
        with observing(signals.step_finished) as steps, committed(), crash_at(recorded) as crash:
            event_id = send("go")
            drain()
            drain()
        assert crash.happened
        assert run_of(event_id).state == "completed"
        told = Counter(facts["step"] for facts in steps)
        assert told["book"] == 1
        assert told["charge"] <= 1


def test_what_an_observer_of_an_end_sends_counts_as_sent_by_the_run():
    """So an observer that starts the flow anew does not go on without end."""

    @flow("loop", on="go")
    def loop(): ...

    def start_anew(**_: Any) -> None:
        send("go")

    with connected(signals.run_ended, start_anew):
        with committed():
            run = played()
        assert str(models.Event.objects.order_by("-arrival")[0].sender) == run.id
        for _ in range(60):
            with committed():
                drain()
    assert models.Run.objects.count() == 51


@override_settings(DURABLE_FLOWS={"RING": "off", "TENANT": tenant.get})
def test_what_an_observer_of_an_end_sends_is_of_the_tenant_of_the_run():
    @flow("any", on="go")
    def any_(): ...

    def tell(**_: Any) -> None:
        send("told")

    with connected(signals.run_ended, tell), committed():
        token = tenant.set("acme")
        send("go")
        tenant.reset(token)
        drain()
    contexts = models.Event.objects.order_by("arrival").values_list("name", "context")
    assert dict(contexts)["told"] == dict(contexts)["go"] != ""


def test_an_async_observer_is_told_too():
    told = []

    async def note(*, name: str, **_: Any) -> None:
        told.append(name)

    with connected(signals.event_received, note), committed():
        send("go")
    assert told == ["go"]


def test_nothing_is_asked_for_observers_that_are_not_there(django_assert_num_queries):
    @flow("buy", on="go")
    def buy(step):
        raise NonRetriableError("no")

    def statements() -> int:
        seen: list[str] = []
        sql.observers.append(seen.append)
        try:
            send("go")
            route()
            execute.drain(ring.default_queue())
        finally:
            sql.observers.remove(seen.append)
        return len(seen)

    statements()
    plain = statements()
    with observing(signals.run_ended):
        assert statements() == plain + 1
    assert statements() == plain
