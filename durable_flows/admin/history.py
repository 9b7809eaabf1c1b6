"""What a run has done and waits for, read for its page: a fixed number of statements, and cut to size.

Steps and attempts have composite primary keys, which the admin can neither register nor inline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from django.db.models.functions import Left, Length

from durable_flows import conf
from durable_flows.admin import showing
from durable_flows.models import Attempt, Run, RunWarning, Step, Wait
from durable_flows.rules import clock
from durable_flows.rules.states import ACTIONS, TERMINAL, StepKind, WaitKind, WaitOutcome

MOST_STEPS = 1_000
MOST_ATTEMPTS = 100
MOST_WAITS = 200
MOST_CHILDREN = 200
MOST_WARNINGS = 100


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a run's page.

    Attributes:
        rows: ready for the template.
        more: whether there are others that are not shown.
    """

    rows: list[dict[str, Any]]
    more: bool


def steps(run: Run) -> Part:
    """The recorded steps, in order."""
    found = (
        Step.objects.using(conf.settings().DATABASE)
        .filter(run=run)
        .order_by("seq")
        .values(
            "seq",
            "key",
            "kind",
            "state",
            "error",
            "until",
            "attempt",
            "started_at",
            "ended_at",
            text=Left("output", showing.ROW_CHARACTERS),
            length=Length("output"),
        )
    )
    over = run.state in TERMINAL
    return _part((_step(row, over=over) for row in found[: MOST_STEPS + 1]), MOST_STEPS)


def attempts(run: Run) -> Part:
    """The failed attempts, the newest first."""
    found = (
        Attempt.objects.using(conf.settings().DATABASE)
        .filter(run=run)
        .order_by("-failed_at")
        .values("key", "n", "generation", "error", "failed_at", "next_at")
    )
    return _part((_attempt(row) for row in found[: MOST_ATTEMPTS + 1]), MOST_ATTEMPTS)


def waits(run: Run) -> Part:
    """The waits, in order, those that could cancel the run included."""
    found = (
        Wait.objects.using(conf.settings().DATABASE)
        .filter(run=run)
        .order_by("created_at", "key")
        .values(
            "key",
            "kind",
            "event_name",
            "criteria",
            "expires_at",
            "settled_at",
            "outcome",
            "match",
            "event_id",
        )
    )
    rows = (_wait(row, run.ended_at) for row in found[: MOST_WAITS + 1])
    return _part(rows, MOST_WAITS)


def warnings(run: Run) -> Part:
    """What went otherwise than the author of the flow may think, in order."""
    found = (
        RunWarning.objects.using(conf.settings().DATABASE)
        .filter(run=run)
        .order_by("warned_at", "about")
        .values("about", "message", "warned_at")
    )
    return _part((_warning(row) for row in found[: MOST_WARNINGS + 1]), MOST_WARNINGS)


def children(run: Run) -> Part:
    """The runs that it has invoked, in order."""
    found = (
        Run.objects.using(conf.settings().DATABASE)
        .filter(parent=run)
        .order_by("created_at", "pk")
        .values("pk", "flow", "state", "created_at", "reason")
    )
    return _part((_run(row) for row in found[: MOST_CHILDREN + 1]), MOST_CHILDREN)


def _run(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "page": showing.run_link(row["pk"], row["flow"]),
        "badge": showing.badge(row["state"]),
        "when": showing.moment(row["created_at"]),
        "reason": showing.one_line(row["reason"]),
    }


def _part(rows: Iterable[dict[str, Any]], most: int) -> Part:
    shown = list(islice(rows, most + 1))
    return Part(rows=shown[:most], more=len(shown) > most)


def _step(row: Mapping[str, Any], *, over: bool) -> dict[str, Any]:
    asleep = row["kind"] == StepKind.SLEEP and not over and row["until"] > clock.now()
    left_out = max(0, (row["length"] or 0) - showing.ROW_CHARACTERS)
    output = showing.pretty(row["text"], showing.ROW_CHARACTERS, left_out=left_out)
    return {
        **row,
        "badge": showing.badge("sleeping" if asleep else row["state"]),
        "when": showing.moment(row["ended_at"]),
        # only actions take time: sleeps and waits are recorded in a moment
        "took": showing.duration(row["started_at"], row["ended_at"])
        if row["kind"] in ACTIONS
        else "",
        "timed_out": row["kind"] == StepKind.WAIT and output in ("", "null"),
        "until": showing.moment(row["until"]) if row["until"] else "",
        "output": output,
        "is_short": len(output) <= showing.ONE_LINE and "\n" not in output,
        "failure": showing.failure(row["error"], showing.ROW_CHARACTERS),
    }


def _attempt(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "where": _place(row["key"]),
        "when": showing.moment(row["failed_at"]),
        "next": showing.moment(row["next_at"]) if row["next_at"] else "no further attempt",
        "failure": showing.failure(row["error"], showing.ROW_CHARACTERS),
    }


def _place(key: str) -> str:
    """A step, or the code after one (key ``after:<last key>``)."""
    if not key.startswith("after:"):
        return key
    last = key.removeprefix("after:")
    return f"code after {last}" if last else "code before the first step"


def _wait(row: Mapping[str, Any], run_ended: datetime | None) -> dict[str, Any]:
    event = row["event_id"] and showing.event_link(row["event_id"], "the event")
    if row["kind"] == WaitKind.CHILD:  # it is the run's end that ends it
        event = showing.run_link(row["match"], "the run")
    if row["kind"] == WaitKind.ITEM:  # of which many have yet to begin
        event = showing.run_link(row["match"], "the run") if row["settled_at"] else ""
    went_on = run_ended is None or (row["settled_at"] or run_ended) < run_ended
    ended_by = "no longer waited for" if went_on else "the run ended first"
    return {
        **row,
        "purpose": purpose(row["kind"], row["key"], cancels="would cancel the run"),
        "until": showing.moment(row["expires_at"]),
        "settled": showing.moment(row["settled_at"]) if row["settled_at"] else "",
        "badge": showing.badge(
            row["outcome"] or "pending",
            ended_by if row["outcome"] == WaitOutcome.CLOSED else _ended_by(row["outcome"]),
        ),
        "event": event or "",
    }


def purpose(kind: str, key: str, *, cancels: str) -> str:
    """What comes of the end of a wait."""
    if kind == WaitKind.CANCEL:
        return cancels
    return f"an item of {key.rpartition('[')[0]}" if kind == WaitKind.ITEM else f"resumes {key}"


def _warning(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "about": showing.cut(row["about"], showing.ROW_CHARACTERS),
        "message": showing.cut(row["message"], showing.ROW_CHARACTERS),
        "when": showing.moment(row["warned_at"]),
    }


def _ended_by(outcome: str) -> str:
    words = {
        "": "pending",
        WaitOutcome.EVENT: "event",
        WaitOutcome.TIMEOUT: "timed out",
        WaitOutcome.CUT: "skipped",
    }
    return words.get(outcome, outcome)
