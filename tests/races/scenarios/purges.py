"""A purge, and whoever takes up again what it is about to remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import UUID

from django.db import transaction

from durable_flows import NonRetriableError, Step, flow, replay, rerun, retry, send_signal
from durable_flows.engine import bulk, erase, insert, paced, purge, quarantine, ripe, sql
from durable_flows.engine.history import Claim
from durable_flows.engine.stop import stopping
from durable_flows.errors import IllegalTransition, UnknownRun
from durable_flows.models import (
    Attempt,
    BulkAction,
    Deployment,
    Due,
    Event,
    EventKey,
    EventMatch,
    Run,
    Wait,
)
from durable_flows.models import (
    Step as StepRow,
)
from durable_flows.rules import clock, events
from durable_flows.rules.retention import Bounds, Needs
from durable_flows.testing import drain, run_of, send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, routing, slice_of

LONG = timedelta(days=31)

NO_ROW_LOCK = Twin(
    without="the lock on the run",
    rewrite=cutting("FOR UPDATE SKIP LOCKED", of="FROM durable_flows_run r"),
)
NO_KEY_LOCK = Twin(
    without="the lock on the key of whoever uses it",
    rewrite=cutting("FOR KEY SHARE", of="durable_flows_eventkey"),
)
NO_LOOK_FOR_COMMANDS = Twin(
    without="a look for commands that are not carried out yet",
    patch=lambda: patch.object(ripe, "_asked_for", lambda _: set()),
)


def _bounds() -> Bounds:
    """As a pass notes them at its beginning: nobody needs anything."""
    return Bounds.of(ripe.keep(), Needs(), clock.now())


def _purge_runs(*ids: UUID) -> None:
    """One batch of a purge."""
    with sql.atomic():
        erase.runs(_bounds(), ids)


def _purge_event(event: UUID) -> None:
    with sql.atomic():
        erase.events(_bounds(), [event])


def _nothing_is_left_of(run: UUID) -> None:
    for model in (StepRow, Attempt, Wait):
        assert not model.objects.filter(run=run).exists(), f"{model.__name__} rows of no run"
    assert not Due.objects.filter(run=run).exists(), "scheduled, and gone"


# -- runs that go on ---------------------------------------------------------------------------


def _failed() -> Callable[[], UUID]:
    """Declares a flow that fails once after a step; makes an old run of it."""
    failures: list[str] = []

    @flow("fails", on="a/b")
    def fails(step: Step) -> str:
        def fail_once() -> str:
            if not failures:
                failures.append("once")
                raise NonRetriableError("once")
            return "done"

        step.run("first", int)
        return step.run("try", fail_once)

    def stage() -> UUID:
        failures.clear()
        run = UUID(run_of(_sent("a/b")).id)
        clock.advance(LONG)
        return run

    return stage


def _sent(name: str) -> str:
    event = send(name)
    drain()
    return event


def _as_it_was_asked(run: UUID) -> str:
    """A run that went on is whole, and of one that is gone nothing is left."""
    found = Run.objects.filter(pk=run).first()
    if found is None:
        _nothing_is_left_of(run)
        return "gone"
    assert Event.objects.filter(pk=found.event_id).exists(), "without its trigger"
    assert StepRow.objects.filter(run=run, key="first").exists(), "without its first step"
    return "kept"


def purge_against_retry() -> Scenario:
    """The retry was asked for: it is carried out."""
    failed = _failed()

    def stage() -> UUID:
        run = failed()
        retry(run)
        return run

    def holds(run: UUID, _: Sequence[object]) -> str:
        assert _as_it_was_asked(run) == "kept", "asked for, and purged"
        assert (Run.objects.get().state, Run.objects.get().generation) == ("completed", 1)
        return "retried"

    return Scenario(
        stage=stage,
        actors=[("router", routing), ("purge", _purge_runs)],
        holds=holds,
        twins=[NO_ROW_LOCK, NO_LOOK_FOR_COMMANDS],
    )


def purge_against_whoever_retries() -> Scenario:
    """Somebody asks for it meanwhile: it is carried out, or refused."""

    def ask(run: UUID) -> None:
        retry(run)
        routing()

    def holds(run: UUID, _: Sequence[object]) -> str:
        came = _as_it_was_asked(run)
        refused = Event.objects.filter(name=events.RETRY).exclude(error="").exists()
        if came == "kept":
            assert not refused, "refused, and kept"
            assert Run.objects.get().state == "completed"
        return f"{came}{', refused' if refused else ''}"

    return Scenario(
        stage=_failed(),
        actors=[("person", ask), ("purge", _purge_runs)],
        holds=holds,
        refuses=(UnknownRun, IllegalTransition),
        sampled=100,
        outcomes=frozenset({"kept", "gone", "gone, refused"}),
        twins=[NO_ROW_LOCK],
    )


def purge_against_rerun_from_a_step() -> Scenario:
    """What the new run takes over is all there, or there is no new run."""

    def ask(run: UUID) -> None:
        rerun(run, from_step="try")
        routing()

    def holds(origin: UUID, _: Sequence[object]) -> str:
        came = _as_it_was_asked(origin)
        again = Run.objects.filter(origin=origin).first()
        command = Event.objects.filter(name=events.RERUN).first()
        if again is None:
            assert command is None or command.error, "neither begun nor refused"
            return came
        assert command is not None
        assert command.error == "", f"begun, and refused: {command.error}"
        assert _as_it_was_asked(again.pk) == "kept"
        assert again.state == "completed", again.reason
        return f"{came}, done again"

    return Scenario(
        stage=_failed(),
        actors=[("person", ask), ("purge", _purge_runs)],
        holds=holds,
        refuses=(UnknownRun, LookupError),
        sampled=120,
        outcomes=frozenset({"gone", "kept, done again"}),
        twins=[
            Twin(
                without="the lock on the run that is done again",
                rewrite=cutting("FOR KEY SHARE", of="FROM durable_flows_run"),
            ),
        ],
    )


def purge_against_bulk_replay() -> Scenario:
    """Whatever a bulk action has asked for begins anew."""
    failed = _failed()

    def stage() -> tuple[UUID, UUID]:
        run = failed()
        action = UUID(replay("fails", rate="100/s"))
        routing()
        return run, action

    def carry_on(state: tuple[UUID, UUID]) -> None:
        paced.next_batch(state[1])
        routing()

    def holds(state: tuple[UUID, UUID], _: Sequence[object]) -> str:
        while paced.next_batch(state[1]) is not None:
            pass
        begun = Run.objects.exclude(origin=None)
        assert bulk.bulk_progress(str(state[1])).done == len(begun), "asked for, and not begun"
        refused = Event.objects.filter(name=events.RERUN).exclude(error="")
        assert not refused.exists(), f"refused: {[one.error for one in refused]}"
        return f"{_as_it_was_asked(state[0])}, {len(begun)} done again"

    return Scenario(
        stage=stage,
        actors=[("tick", carry_on), ("purge", lambda state: _purge_runs(state[0]))],
        holds=holds,
        sampled=60,
        outcomes=frozenset({"kept, 1 done again", "gone, 0 done again"}),
        twins=[
            Twin(
                without="the lock on the runs that are asked for",
                patch=lambda: patch.object(paced, "_still_there", list),
            ),
            NO_LOOK_FOR_COMMANDS,
        ],
    )


# -- ids of senders ----------------------------------------------------------------------------


def _asked_once(
    encoded: Sequence[Any], ids: list[UUID], now: datetime
) -> list[UUID]:  # as if what was taken stayed taken
    hashes = {
        index: insert.key_id(event.name, event.target, event.key)
        for index, event in enumerate(encoded)
    }
    first: Mapping[UUID, UUID] = {hash_: ids[index] for index, hash_ in hashes.items()}
    known = insert.take_keys(first, now)
    known |= insert.taken_keys([hash_ for hash_ in first if hash_ not in known])
    return [known[hashes[index]] for index in range(len(ids))]


def purge_against_duplicate_send() -> Scenario:
    """It is a duplicate of an event that is kept, or the first of its id."""

    def stage() -> UUID:
        event = UUID(send("a/b", id="the same"))
        drain()
        clock.advance(LONG)
        return event

    def send_it(_: UUID) -> str:
        with transaction.atomic():
            return send("a/b", id="the same")

    def holds(first: UUID, results: Sequence[Any]) -> str:
        event = Event.objects.first()
        if event is None:
            assert results[0] == str(first), "dropped"
            assert not EventKey.objects.exists(), "its id is taken by nothing"
            return "duplicate, then gone"
        assert results[0] == str(event.pk), "the id of an event that is not there"
        assert EventKey.objects.filter(event=event).count() == 1, "its id is not taken"
        return "duplicate" if event.pk == first else "new"

    return Scenario(
        stage=stage,
        actors=[("sender", send_it), ("purge", _purge_event)],
        holds=holds,
        outcomes=frozenset({"duplicate", "duplicate, then gone", "new"}),
        twins=[
            NO_KEY_LOCK,
            Twin(
                without="another try where the key was taken away",
                patch=lambda: patch.object(insert, "_dedupe", _asked_once),
            ),
        ],
    )


def purge_against_joining() -> Scenario:
    """Whoever joins a run by its key gets what it came to; or it is begun anew."""

    @flow("child")
    def child() -> str:
        return "done"

    @flow("parent", on="a/b")
    def parent(step: Step) -> str:
        return str(step.invoke("child", child, key="the same", timeout="1h"))

    def stage() -> tuple[Claim, UUID]:
        child.start(key="the same")
        drain()
        run: UUID = Run.objects.get(flow="child").pk
        clock.advance(LONG)
        return claimed("a/b"), run

    def holds(state: tuple[Claim, UUID], _: Sequence[object]) -> str:
        run = Run.objects.get(pk=state[0].run_id)
        assert (run.state, run.result) == ("completed", '"done"'), run.error
        return "joined" if Run.objects.filter(pk=state[1]).exists() else "gone"

    return Scenario(
        stage=stage,
        actors=[
            ("parent", lambda state: slice_of(state[0])),
            ("purge", lambda state: _purge_runs(state[1])),
        ],
        holds=holds,
        sampled=120,
        outcomes=frozenset({"joined", "gone"}),
        twins=[
            NO_KEY_LOCK,
            Twin(
                without="a look at the keys that are used at this moment",
                patch=lambda: patch.object(ripe, "_busy_triggers", lambda _: set()),
            ),
            Twin(
                without="a look for those who wait for it",
                patch=lambda: patch.object(ripe, "RUN_IS_FREE", "true"),
            ),
        ],
    )


# -- events ------------------------------------------------------------------------------------


def purge_against_reroute() -> Scenario:
    """An event that is to be routed again is."""
    flow("quick", on="a/b")(lambda: None)

    def stage() -> UUID:
        event = UUID(send("a/b"))
        Event.objects.update(quarantined=True, routed_at=clock.now())
        clock.advance(LONG)
        return event

    def holds(event: UUID, results: Sequence[Any]) -> str:
        if not results[0]:
            assert not Event.objects.exists()
            return "gone"
        assert Event.objects.filter(pk=event).exists(), "routed again, and gone"
        assert Run.objects.filter(event=event).count() == 1
        return "routed again"

    return Scenario(
        stage=stage,
        actors=[("person", lambda event: quarantine.reroute([event])), ("purge", _purge_event)],
        holds=holds,
        outcomes=frozenset({"gone", "routed again"}),
        twins=[
            Twin(
                without="the lock on the event",
                rewrite=cutting("FOR UPDATE SKIP LOCKED", of="FROM durable_flows_event e"),
            ),
        ],
    )


# -- purges ------------------------------------------------------------------------------------


@contextmanager
def _hastily() -> Iterator[None]:
    with (
        patch.object(stopping, "wait", lambda _: False),
        patch.object(ripe, "bounds", lambda _: _bounds()),
    ):
        yield


def purge_against_purge() -> Scenario:
    """One at a time, and all is gone that is to go."""
    flow("quick", on="a/b")(lambda: None)

    def stage() -> None:
        for number in range(2):
            send("a/b", id=str(number))
        send_signal("door", expires="1h")
        drain()
        bulk.begin(UUID(replay("quick")))
        BulkAction.objects.update(state="done", ended_at=clock.now())
        Deployment.objects.create(
            digest="old", flows="{}", first_seen_at=clock.now(), alive_at=clock.now()
        )
        drain()
        clock.advance(LONG)

    def holds(_: None, results: Sequence[Any]) -> str:
        counted = [removed for removed in results if removed is not None]
        assert len(counted) == 1, "two at a time"
        for model in (Run, Event, EventKey, EventMatch, BulkAction, Deployment):
            assert not model.objects.exists(), f"{model.__name__} rows are left"
        return "once"

    def turn(_: None) -> object:
        return purge.take_turn()

    return Scenario(
        stage=stage,
        actors=[("one", turn), ("other", turn)],
        holds=holds,
        sampled=30,
        meanwhile=_hastily,
        twins=[
            Twin(
                without="the row that says whose turn it is",
                patch=lambda: patch.multiple(purge, _NOT_HELD="true", _IS_TIME="true"),
            ),
        ],
    )


RACES = [
    purge_against_retry,
    purge_against_whoever_retries,
    purge_against_rerun_from_a_step,
    purge_against_bulk_replay,
    purge_against_duplicate_send,
    purge_against_joining,
    purge_against_reroute,
    purge_against_purge,
]
