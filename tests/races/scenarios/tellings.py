"""Runs that end while somebody begins to listen to such ends, tells them to stop, or retries them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from uuid_utils.compat import uuid7

from durable_flows import NonRetriableError, Step, cancel, flow
from durable_flows.engine import audience, finish, ingest, ring, slices
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Claim, History
from durable_flows.engine.route import route
from durable_flows.models import Audience, Run, Wait
from durable_flows.models import Event as StoredEvent
from durable_flows.rules import clock, events, keys, payload
from durable_flows.rules.endings import CANCELLED, FAILED, FINISHED
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import claimed, routing, slice_of


def _told(name: str) -> list[dict[str, Any]]:
    rows = StoredEvent.objects.filter(name=name).order_by("arrival")
    return [payload.loads(row.data) for row in rows]


NOT_AWAITED = Twin(
    without="waiting for those who end runs and do not know of the listener yet",
    patch=lambda: patch.object(audience, "await_deaf", lambda: None),
)
NOT_MADE_UP_FOR = Twin(
    without="making up for what ended before anybody listened",
    patch=lambda: patch.object(audience, "ended_since", lambda name, since: []),
)
NO_ID_OF_ITS_OWN = Twin(
    without="one id for one end, whoever tells of it",
    patch=lambda: patch.object(keys, "end_event_id", lambda *_: uuid7()),
)


def _waiter(flow_id: str) -> None:
    @flow(flow_id, on="a/b")
    def waits(step: Step) -> str:
        found = step.wait_for_event(
            "end", event=FINISHED, if_="async.data.function_id == 'works'", timeout="1h"
        )
        return "heard" if found else "missed"


def _all_hear(waiters: Sequence[str]) -> str:
    results = Run.objects.filter(flow__in=waiters).values_list("result", flat=True)
    assert list(results) == ['"heard"'] * len(waiters), "the end is lost"
    told = Counter(data["run_id"] for data in _told(FINISHED))
    assert set(told.values()) == {1}, "told more than once"
    return "heard"


def end_against_the_first_wait_for_ends() -> Scenario:
    """It is not known when the run ends whether anybody listens, nor to the wait whether it was told."""
    _waiter("waits")
    flow("works", on="a/c")(lambda: None)

    return Scenario(
        stage=lambda: [claimed("a/b"), claimed("a/c")],
        actors=[
            ("waiter", lambda runs: slice_of(runs[0])),
            ("worker", lambda runs: slice_of(runs[1])),
        ],
        holds=lambda _, __: _all_hear(["waits"]),
        sampled=120,
        twins=[NOT_AWAITED, NOT_MADE_UP_FOR, NO_ID_OF_ITS_OWN],
    )


def end_against_two_first_waits_for_ends() -> Scenario:
    _waiter("waits")
    _waiter("waits-too")
    flow("works", on="a/c")(lambda: None)

    def stage() -> list[Claim]:
        ingest.send("a/b")
        route()
        waiters = claim(ring.default_queue(), 2)
        return [*waiters, claimed("a/c")]

    return Scenario(
        stage=stage,
        actors=[
            ("waiter", lambda runs: slice_of(runs[0])),
            ("another", lambda runs: slice_of(runs[1])),
            ("worker", lambda runs: slice_of(runs[2])),
        ],
        holds=lambda _, __: _all_hear(["waits", "waits-too"]),
        sampled=100,
        twins=[NOT_AWAITED, NO_ID_OF_ITS_OWN],
    )


def told_end_against_cancel() -> Scenario:
    """What is told of an end is what came of it."""
    flow("hears", on=[FINISHED, CANCELLED])(lambda event: event.name)

    @flow("works", on="a/b")
    def works(step: Step) -> str:
        return step.run("work", lambda: "done")

    def stage() -> Claim:
        run = claimed("a/b")
        cancel(run.run_id, reason="no more")
        return run

    def holds(run: Claim, _: Sequence[object]) -> str:
        state = Run.objects.get(pk=run.run_id).state
        assert [data["state"] for data in _told(FINISHED)] == [state], "told otherwise"
        reasons = ["no more"] if state == "cancelled" else []
        assert [data["reason"] for data in _told(CANCELLED)] == reasons
        assert Run.objects.filter(flow="hears").count() == 1 + len(reasons)
        return str(state)

    return Scenario(
        stage=stage,
        actors=[("slice", slice_of), ("router", routing)],
        holds=holds,
        outcomes=frozenset({"completed", "cancelled"}),
        twins=[
            Twin(
                without="the events in the transaction that ends the run",
                patch=lambda: patch.object(finish, "_announce", lambda _: None),
            ),
        ],
    )


@dataclass(slots=True)
class Broken:
    """A run that has failed, and a command to retry it that somebody was quick to give."""

    ending: finish.Ending
    calls: list[int] = field(default_factory=list)


def told_end_repeated_against_retry() -> Scenario:
    """Nobody knows whether the end was written, so it is written again, while the run is retried."""
    flow("hears", on=FAILED)(lambda event: event.data["generation"])
    calls: list[int] = []

    @flow("fails", on="a/b")
    def fails() -> None:
        calls.append(1)
        raise NonRetriableError("no")

    def stage() -> Broken:
        calls.clear()
        run = claimed("a/b")
        ending = slices.execute(run, History())
        assert isinstance(ending, finish.Ending)
        ingest.command(events.RETRY, str(run.run_id), {}, lambda _: run.run_id)
        return Broken(ending)

    def end_twice(broken: Broken) -> None:
        finish.end([broken.ending])
        finish.end([broken.ending])

    def holds(_: Broken, __: Sequence[object]) -> str:
        told = [data["generation"] for data in _told(FAILED)]
        assert told == list(range(len(calls))), "told of an end that was none"
        assert Run.objects.filter(flow="hears").count() == len(calls)
        return "retried" if len(calls) == 2 else "refused"

    return Scenario(
        stage=stage,
        actors=[("worker", end_twice), ("router", routing)],
        holds=holds,
        outcomes=frozenset({"retried", "refused"}),
        twins=[
            Twin(
                without="the lease of the end",
                rewrite=cutting(" AND given.lease = d.lease", of="DELETE FROM durable_flows_due"),
            ),
        ],
    )


def listeners_that_come_and_go() -> Scenario:
    """Two say that somebody listens, one for longer, while a third makes up for what was not told."""
    _waiter("waits")
    flow("works", on="a/c")(lambda: None)

    def publish(_: object) -> None:
        audience.expect([FAILED, FINISHED], clock.now())

    def holds(_: object, __: Sequence[object]) -> str:
        row = Audience.objects.get(event_name=FINISHED)
        assert row.until >= Wait.objects.get().expires_at, "the wait would not be told any more"
        return _all_hear(["waits"])

    return Scenario(
        stage=lambda: [claimed("a/b"), claimed("a/c")],
        actors=[
            ("waiter", lambda runs: slice_of(runs[0])),
            ("worker", lambda runs: slice_of(runs[1])),
            ("deployment", publish),
        ],
        holds=holds,
        sampled=120,
        twins=[
            Twin(
                without="keeping the later of two moments",
                rewrite=cutting(
                    r"CASE WHEN known.until < excluded.until THEN excluded.until ELSE known.until END",
                    "excluded.until",
                ),
            ),
        ],
    )


RACES = [
    end_against_the_first_wait_for_ends,
    end_against_two_first_waits_for_ends,
    listeners_that_come_and_go,
    told_end_against_cancel,
    told_end_repeated_against_retry,
]
