"""Admits runs: the only creator of runs and of due rows, and what makes a failed run go on.

Everything is keyed: a run's id is made of its flow and its event, so that admitting twice adds
nothing; due rows and cancel waits are written for those runs only that were new.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from durable_flows.engine import failpoints, inherit, notes, signatures, sql, stored
from durable_flows.engine.inherit import Inheritance
from durable_flows.engine.stored import Routed
from durable_flows.errors import IllegalTransition, UnknownRun
from durable_flows.flows import Flow
from durable_flows.models import Admission, Due, Run, Wait
from durable_flows.registry import registry
from durable_flows.rules import causality, clock, deadlines, events, keys, payload, replays
from durable_flows.rules.equalities import Condition
from durable_flows.rules.events import Event
from durable_flows.rules.options import CancelOn
from durable_flows.rules.states import DueState, RunState, Verdict, WaitKind, check_move

MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Done:
    """A run that is to be done again: its flow, its event, and from where its waits look back."""

    flow_id: str
    event_id: uuid.UUID
    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run that is asked for.

    Attributes:
        run_id: its id, the same however often what asks for it is routed.
        flow: None if no flow of this id is known here.
        queue: on which it will execute.
        trigger: the event that the handler finds.
        asked: what asks for the run: its trigger, or the command to do a run again.
        origin: the run that it does again.
        since: that one's mark, if its first steps are taken over.
    """

    run_id: uuid.UUID
    flow_id: str
    flow: Flow | None
    queue: str
    trigger: Routed
    asked: Routed
    origin: uuid.UUID | None = None
    since: int | None = None

    @property
    def parent(self) -> uuid.UUID | None:
        """The run that invokes it."""
        return self.asked.sender if self.asked.name == events.INVOKE else None

    @property
    def inheritance(self) -> Inheritance | None:
        """What it takes over from the run that it does again, if it is to go on from a step of it."""
        if self.origin is None:
            return None
        return Inheritance.of(self.run_id, self.origin, self.asked)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for its end, or may still come to: by its key."""
        asked = self.asked
        return asked.name == events.INVOKE or (asked.name == events.START and bool(asked.key))

    @classmethod
    def of(cls, flow_id: str, trigger: Routed, default_queue: str) -> Start:
        """What this event asks of this flow."""
        return cls._of(flow_id, trigger, trigger, default_queue)

    @classmethod
    def again(cls, done: Done, trigger: Routed, command: Routed, default_queue: str) -> Start:
        """What this command asks for: another run of the flow of an earlier one, with this trigger."""
        origin = uuid.UUID(command.target)
        since = done.mark if inherit.is_asked(command) else None
        return cls._of(done.flow_id, trigger, command, default_queue, origin=origin, since=since)

    @classmethod
    def _of(
        cls, flow_id: str, trigger: Routed, asked: Routed, default_queue: str, **more: Any
    ) -> Start:
        flow = registry.find(flow_id)
        return cls(
            run_id=keys.flow_run_id(flow_id, asked.id),
            flow_id=flow_id,
            flow=flow,
            queue=(flow and flow.queue) or default_queue,
            trigger=trigger,
            asked=asked,
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWait:
    """What a run's cancel rule asks for."""

    run_id: uuid.UUID
    generation: int
    number: int
    rule: CancelOn
    asked: Condition
    match: uuid.UUID
    newer_than: tuple[datetime, int]

    @property
    def paths(self) -> tuple[str, ...]:
        """The signature under which it waits."""
        return self.asked.paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """An event that does not start a flow that listens to it, and why."""

    event_id: uuid.UUID
    flow_id: str
    reason: str

    @classmethod
    def of(cls, start: Start, reason: str) -> Skip:
        """Why this run is not admitted."""
        return cls(event_id=start.asked.id, flow_id=start.flow_id, reason=reason)


def start_runs(starts: Sequence[Start]) -> None:
    """Admit what is new of these."""
    new = set(_insert_runs(starts))
    admitted = [start for start in starts if start.run_id in new]
    inherited = {start.run_id: found for start in admitted if (found := start.inheritance)}
    for found in inherited.values():
        inherit.take_over(found)
    # With a lease of its own, what is taken over is a history: the first slice reads it.
    _insert_due([(s.run_id, s.queue, int(s.run_id in inherited), s.flow) for s in admitted])
    _insert_cancel_waits([wait for start in admitted for wait in _first_cancel_waits(start)])
    notes.warn({about: why for start in admitted for about, why in _rules_without_value(start)})
    failpoints.reach("runs_admitted")


def cancel_signatures(starts: Sequence[Start]) -> set[tuple[str, tuple[str, ...]]]:
    """Event names and paths that the cancel rules of these runs will compare."""
    flows = {start.flow_id: start.flow for start in starts if start.flow is not None}
    return {
        (rule.event, rule.condition().paths) for flow in flows.values() for rule in flow.cancel_on
    }


def note_skips(skips: Sequence[Skip]) -> None:
    """Note why events did not start flows; once for each, however often they are routed."""
    now = clock.now()
    sql.insert(
        Admission,
        {
            "event_id": [skip.event_id for skip in skips],
            "flow": [skip.flow_id for skip in skips],
            "verdict": [Verdict.SKIP.value] * len(skips),
            "reason": [skip.reason for skip in skips],
            "decided_at": [now] * len(skips),
        },
    )


def reruns(commands: Sequence[Routed], default_queue: str) -> list[Start]:
    """What these commands ask for, as far as the runs that they are about are still there."""
    if not commands:
        return []
    found = _done([uuid.UUID(command.target) for command in commands])
    edited = {
        command.id: uuid.UUID(command.event.data["event"])
        for command in commands
        if "event" in command.event.data
    }
    triggers = stored.by_id([*(done.event_id for done in found.values()), *edited.values()])
    starts = []
    for command in commands:
        done = found.get(uuid.UUID(command.target))
        trigger = triggers.get(edited.get(command.id, done.event_id)) if done else None
        if done is not None and trigger is not None:
            starts.append(Start.again(done, trigger, command, default_queue))
    return starts


def _done(run_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Done]:
    rows = sql.execute(
        "SELECT id, flow, event_id, coalesce(since, mark) FROM durable_flows_run "
        # So that no purge takes away what is done again before it has been taken over.
        f"WHERE {sql.among('id', 'runs')} ORDER BY id FOR KEY SHARE",
        {"runs": list(run_ids)},
    )
    return {sql.uid(row[0]): Done(row[1], sql.uid(row[2]), row[3]) for row in rows}


def check_rerun(command: Routed) -> None:
    """Raise `UnknownRun` if this command has started nothing, since what it is about is gone."""
    if not reruns([command], ""):
        raise UnknownRun(f"there is no run {command.target}, or its event is no longer kept")


def go_on(run_id: uuid.UUID, command: Routed) -> None:
    """Let a failed run go on from the step that failed.

    The failing step's row is deleted, its attempts stay; the fencing token goes on from where it was;
    cancel rules hold again, for what is newer than the command, and deadlines count anew.

    Raises:
        UnknownRun: there is no such run.
        IllegalTransition: the run has not failed, or what asks for it is too deep in a chain of runs.
    """
    rows = sql.execute(
        "SELECT r.state, r.error, r.generation, r.lease, r.queue, r.flow, r.version, "
        f"{stored.columns('e')} FROM durable_flows_run r "
        "JOIN durable_flows_event e ON e.id = r.event_id WHERE r.id = %(run)s FOR UPDATE OF r",
        {"run": run_id},
    )
    if not rows:
        raise UnknownRun(f"there is no run {run_id}")
    state, error, generation, lease, queue, flow_id, version, *event = rows[0]
    check_move(state, RunState.QUEUED)
    if causality.is_too_deep(command.depth):
        raise IllegalTransition(state, RunState.QUEUED, causality.TOO_DEEP)
    _forget_failed_step(run_id, error)
    sql.execute(
        "UPDATE durable_flows_run SET state = 'queued', generation = generation + 1, depth = %(depth)s, "
        "started_at = NULL, ended_at = NULL, error = NULL, reason = '' WHERE id = %(run)s",
        {"run": run_id, "depth": command.depth},
    )
    flow = registry.find(flow_id, version)
    # Above the lease of the end: that end, repeated since its answer was lost, must not end this one.
    _insert_due([(run_id, queue, lease + 1, flow)])
    newer_than = (command.deliver_at, command.arrival)
    waits = _cancel_waits(run_id, flow, stored.event(event), generation + 1, newer_than)
    signatures.write((wait.rule.event, wait.paths) for wait in waits)
    _insert_cancel_waits(waits)


def _insert_runs(starts: Sequence[Start]) -> list[uuid.UUID]:
    now = clock.now()
    rows = sql.insert(
        Run,
        {
            "id": [start.run_id for start in starts],
            "flow": [start.flow_id for start in starts],
            "version": [start.flow and start.flow.version for start in starts],
            "event_id": [start.trigger.id for start in starts],
            "parent_id": [start.parent for start in starts],
            "origin": [start.origin for start in starts],
            "subject_type_id": [s.trigger.subject and s.trigger.subject.type_id for s in starts],
            "subject_id": [s.trigger.subject and s.trigger.subject.id for s in starts],
            "awaited": [start.is_awaited for start in starts],
            "state": [RunState.QUEUED.value] * len(starts),
            "queue": [start.queue for start in starts],
            "mark": [start.asked.routed for start in starts],
            "since": [start.since for start in starts],
            "generation": [0] * len(starts),
            "depth": [start.asked.depth for start in starts],
            "lease": [0] * len(starts),
            "reason": [""] * len(starts),
            "created_at": [now] * len(starts),
        },
        suffix="ON CONFLICT DO NOTHING RETURNING id",
    )
    return [sql.uid(row[0]) for row in rows]


def _insert_due(runs: Sequence[tuple[uuid.UUID, str, int, Flow | None]]) -> None:
    """Due now, in this order: a microsecond apart, none of them in the future."""
    now = clock.now()
    moments = [now - MICROSECOND * (len(runs) - index) for index in range(len(runs))]
    sql.insert(
        Due,
        {
            "run_id": [run_id for run_id, *_ in runs],
            "queue": [queue for _, queue, *_ in runs],
            "wake_at": moments,
            "deadline_at": [
                deadlines.to_begin(flow.timeouts if flow else None, now) for *_, flow in runs
            ],
            "due_since": moments,
            "state": [DueState.QUEUED.value] * len(runs),
            "lease": [lease for _, _, lease, _ in runs],
            "claims": [0] * len(runs),
            "nudged": [False] * len(runs),
        },
    )


def _first_cancel_waits(start: Start) -> list[CancelWait]:
    if start.flow is None or not start.flow.cancel_on:
        return []
    newer_than = (start.asked.deliver_at, start.asked.arrival)
    return _cancel_waits(start.run_id, start.flow, start.trigger.event, 0, newer_than)


def _rules_without_value(start: Start) -> Iterator[tuple[tuple[uuid.UUID, str], str]]:
    """The cancel rules that nothing can match, since the run's own event lacks a value."""
    if start.flow is None or not start.flow.cancel_on:
        return
    own = start.trigger.event.as_dict()
    for number, rule in enumerate(start.flow.cancel_on):
        if missing := rule.condition().missing(own):
            about = (start.run_id, notes.cancel_rule(number))
            yield about, notes.nothing_matches(start.trigger.name, missing)


def _cancel_waits(
    run_id: uuid.UUID,
    flow: Flow | None,
    event: Event,
    generation: int,
    newer_than: tuple[datetime, int],
) -> list[CancelWait]:
    found = []
    own = event.as_dict()
    for number, rule in enumerate(flow.cancel_on if flow else ()):
        asked = rule.condition()
        match = signatures.hash_for(rule.event, asked, own)
        if match is None:  # the run's own event lacks the value: missing equals nothing
            continue
        wait = CancelWait(
            run_id=run_id,
            generation=generation,
            number=number,
            rule=rule,
            asked=asked,
            match=match,
            newer_than=newer_than,
        )
        found.append(wait)
    return found


def _insert_cancel_waits(waits: Sequence[CancelWait]) -> None:
    now = clock.now()
    columns: dict[str, list[Any]] = {
        # No step's id has a control character: this is the id of no step's wait.
        "id": [keys.wait_id(w.run_id, f"\0cancel:{w.number}", w.generation) for w in waits],
        "run_id": [w.run_id for w in waits],
        "key": [str(w.number) for w in waits],
        "kind": [WaitKind.CANCEL.value] * len(waits),
        "event_name": [w.rule.event for w in waits],
        "paths": [json.dumps(w.paths) for w in waits],
        "criteria": [", ".join(filter(None, [*w.paths, w.asked.residual])) for w in waits],
        "expression": [w.asked.residual for w in waits],
        "match": [w.match for w in waits],
        "received_since": [w.newer_than[0] for w in waits],
        "eligible_from": [w.newer_than[1] for w in waits],
        "expires_at": [now + _timeout(w.rule) for w in waits],
        "created_at": [now] * len(waits),
        "outcome": [""] * len(waits),
    }
    sql.insert(Wait, columns)


def _forget_failed_step(run_id: uuid.UUID, error: str | None) -> None:
    """What failed is tried again; and what was undone because of it."""
    key = payload.loads(error or "{}").get("step", "")
    sql.execute(
        "DELETE FROM durable_flows_step WHERE run_id = %(run)s AND key = %(key)s "
        "AND state = 'failed'",
        {"run": run_id, "key": key},
    )
    sql.execute(
        "DELETE FROM durable_flows_step WHERE run_id = %(run)s "
        "AND EXISTS (SELECT 1 FROM durable_flows_step undone "
        "WHERE undone.run_id = %(run)s AND undone.kind = 'undo') "
        f"AND (kind IN ('intent', 'undo') OR key LIKE '%%{replays.UNDO}' "
        f"OR key || '{replays.INTENT}' IN (SELECT intent.key FROM durable_flows_step intent "
        "WHERE intent.run_id = %(run)s AND intent.kind = 'intent'))",
        {"run": run_id},
    )


def _timeout(rule: CancelOn) -> timedelta:
    assert isinstance(rule.timeout, timedelta)  # made one by CancelOn
    return rule.timeout
