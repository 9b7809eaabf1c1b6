"""Workers and ticks that want to do the same work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch
from uuid import UUID

from durable_flows import Step, flow
from durable_flows.engine import deployments, floors, notes, ring, versions
from durable_flows.engine.claim import claim
from durable_flows.engine.history import Claim
from durable_flows.engine.route import route
from durable_flows.engine.suspend import _park
from durable_flows.engine.tick import tick, unpark_known
from durable_flows.models import Deployment, Run, RunWarning
from durable_flows.testing import send
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.stage import admitted, claimed, routing, work


def claim_against_claim() -> Scenario:
    flow("quick", on="a/b")(lambda: None)

    def stage() -> None:
        for _ in range(3):
            send("a/b")
        route()

    def take(_: None) -> list[Any]:
        return [run.run_id for run in claim(ring.default_queue(), 2)]

    def holds(_: None, taken: Sequence[Any]) -> str:
        assert not set(taken[0]) & set(taken[1]), "both have claimed the same run"
        assert Run.objects.filter(state="completed").count() == 3
        return f"{len(taken[0])} and {len(taken[1])}"

    return Scenario(
        stage=stage,
        actors=[("one", take), ("other", take)],
        holds=holds,
        outcomes=frozenset({"2 and 1", "1 and 2"}),
        twins=[
            Twin(without="row locks of a claim", rewrite=cutting("FOR UPDATE SKIP LOCKED")),
        ],
    )


def tick_against_tick() -> Scenario:
    def holds(_: None, did: Sequence[Any]) -> str:
        assert sorted(did) == [False, True], f"{did.count(True)} ticks in one interval"
        return "first" if did[0] else "second"

    return Scenario(
        stage=lambda: None,
        actors=[("one", lambda _: tick()), ("other", lambda _: tick())],
        holds=holds,
        outcomes=frozenset({"first", "second"}),
        twins=[
            Twin(
                without="the condition on the tick's row",
                rewrite=cutting(r"WHERE last\.ticked_at .* (?=RETURNING)"),
            ),
        ],
    )


def publish_against_publish() -> Scenario:
    """Two processes of one deployment say that they are there."""
    flow("quick", on="a/b")(lambda: None)

    def holds(_: None, __: Sequence[object]) -> str:
        assert Deployment.objects.count() == 1
        return "known"

    return Scenario(
        stage=deployments.leave,
        actors=[
            ("one", lambda _: deployments.publish()),
            ("other", lambda _: deployments.publish()),
        ],
        holds=holds,
        twins=[
            Twin(
                without="the conflict clause of the deployment's row",
                rewrite=cutting(r"ON CONFLICT \(digest\) .* (?=RETURNING)"),
            ),
        ],
    )


def unpark_against_work() -> Scenario:
    """A tick lets a parked run go on, and another tick comes when it does already."""
    lives: list[str] = []

    @flow("goes", on="a/b")
    def goes(step: Step) -> str:
        lives.append("on")
        return step.run("go", lambda: "on")

    def stage() -> None:
        lives.clear()
        _park(claimed("a/b"))

    def unpark_and_work(_: None) -> None:
        unpark_known()
        work()

    def holds(_: None, __: Sequence[Any]) -> str:
        assert Run.objects.get().state == "completed"
        assert len(lives) == 1, "a run that somebody executed was let go on once more"
        return "once"

    return Scenario(
        stage=stage,
        actors=[("one", unpark_and_work), ("other", unpark_and_work)],
        holds=holds,
        twins=[
            Twin(
                without="the condition that it is parked",
                rewrite=cutting(
                    r"WHERE d\.wake_at IS NULL AND d\.parked_by = %\(keeps\)s",
                    "WHERE %(keeps)s::text <> ''",
                    of="WITH next AS MATERIALIZED (SELECT d.run_id FROM",
                ),
            ),
        ],
    )


def version_against_version() -> Scenario:
    """Two slices of a run whose version is undecided: that of a worker that stalled knows an older one."""
    old = flow("rolls", on="a/b", version=1)(lambda: "old")
    new = flow("rolls", on="a/b", version=2)(lambda: "new")

    def stage() -> Claim:
        run = replace(claimed("a/b"), version=None)
        Run.objects.update(version=None)
        return run

    def holds(run: Claim, decided: Sequence[Any]) -> str:
        (version,) = Run.objects.values_list("version", flat=True)
        assert list(decided) == [version, version], "one run is executed by two versions"
        return f"version {version}"

    return Scenario(
        stage=stage,
        actors=[
            ("stalled", lambda run: versions._decide(run, old)),
            ("newer", lambda run: versions._decide(run, new)),
        ],
        holds=holds,
        outcomes=frozenset({"version 1", "version 2"}),
        twins=[
            Twin(
                without="the look at what is decided",
                rewrite=cutting(r"coalesce\(version, (%\(version\)s)\)", r"\1"),
            ),
        ],
    )


def floor_against_admission() -> Scenario:
    """A tick notes how far all is done while runs are admitted that are due."""
    flow("quick", on="a/b")(lambda: None)

    def stage() -> None:
        admitted("a/b")
        send("a/b")

    def holds(_: None, __: Sequence[Any]) -> str:
        assert Run.objects.filter(state="completed").count() == 2
        return "both executed"

    return Scenario(
        stage=stage,
        actors=[("tick", lambda _: tick()), ("router", routing)],
        holds=holds,
        twins=[
            Twin(
                without="slack below what is due",
                patch=lambda: patch.object(floors, "SLACK", -timedelta(seconds=1)),
            ),
        ],
    )


def warning_against_warning() -> Scenario:
    """Two note the same about the same runs."""
    about = {(UUID(int=run), "rule"): "no value" for run in (1, 2)}

    def holds(_: None, __: Sequence[Any]) -> str:
        assert RunWarning.objects.count() == 2
        return "noted"

    return Scenario(
        stage=lambda: None,
        actors=[("one", lambda _: notes.warn(about)), ("other", lambda _: notes.warn(about))],
        holds=holds,
        twins=[
            Twin(
                without="the conflict clause of a warning",
                rewrite=cutting("ON CONFLICT DO NOTHING"),
            ),
        ],
    )


RACES = [
    claim_against_claim,
    tick_against_tick,
    publish_against_publish,
    unpark_against_work,
    version_against_version,
    floor_against_admission,
    warning_against_warning,
]
