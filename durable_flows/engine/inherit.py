"""What a run that goes on from a step of another one takes over from it: what is recorded before.

In the transaction that admits the new run, by statements that see what is committed then. What lies
before the step is told by places in the old run's record, noted when this was asked for: if that run
is retried meanwhile, and the step itself forgotten, they still stand.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from durable_flows.engine import failpoints, sql
from durable_flows.engine.stored import Routed
from durable_flows.models import Step, Wait
from durable_flows.rules import clock, keys
from durable_flows.rules.replays import INPUT, INTENT, UNDO
from durable_flows.rules.states import StepKind, StepState

#: The lease of steps that no slice of this run has recorded, but which were taken over or given.
TAKEN_OVER = 0

_STEPS = (  # the end of each of a step's several waits is recorded too, and is forgotten with it
    "INSERT INTO durable_flows_step (run_id, key, seq, kind, state, output, error, until, mark, "
    "lease, attempt, started_at, ended_at) "
    "SELECT %(run)s::uuid, key, row_number() OVER (ORDER BY seq, ended_at, key), kind, state, output, "
    "error, until, mark, %(lease)s, attempt, started_at, ended_at FROM durable_flows_step "
    "WHERE run_id = %(origin)s AND seq < %(before)s "
    f"AND key NOT IN (%(key)s::text, %(key)s::text || '{INTENT}', %(key)s::text || '{INPUT}') "
    "AND kind <> 'undo' AND NOT ({parts}) "
    # What was undone is to be done again.
    f"AND CASE WHEN kind = 'intent' THEN replace(key, '{INTENT}', '{UNDO}') ELSE key || '{UNDO}' END "
    "NOT IN (SELECT u.key FROM durable_flows_step u WHERE u.run_id = %(origin)s "
    "AND u.state = 'done') ON CONFLICT DO NOTHING RETURNING key"
)
#: What the steps taken over have used up must not be used again by waits of the same kind.
_USED = (
    "SELECT id, key FROM durable_flows_wait w WHERE run_id = %(origin)s AND kind = 'step' "
    "AND outcome = 'event' AND EXISTS (SELECT 1 FROM durable_flows_step s "
    "WHERE s.run_id = %(run)s AND s.key = w.key) ORDER BY key, created_at"
)
_COPIED = (
    "key, kind, event_name, paths, criteria, expression, cascade, eligible_from, routed_since, "
    "received_since, expires_at, created_at, settled_at, outcome, event_id"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """What a run takes over.

    Attributes:
        run_id: the new run.
        origin: the old one.
        mark: the new one's.
        key: the step from which on it executes anew.
        before: this step's place in the old run's record.
        kind: the step's, if what it has come to is given.
        output: that, as JSON text.
        input: what it is given, as JSON text; None: what the code says.
        parts: the keys of its several waits, if it has such.
    """

    run_id: uuid.UUID
    origin: uuid.UUID
    mark: int
    key: str
    before: int
    kind: str = ""
    output: str | None = None
    input: str | None = None
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, run_id: uuid.UUID, origin: uuid.UUID, command: Routed) -> Inheritance | None:
        """What this command to do a run again says of it, if it does."""
        asked = command.event.data
        if "from_step" not in asked:
            return None
        return cls(
            run_id=run_id,
            origin=origin,
            mark=command.routed,
            key=asked["from_step"],
            before=asked["before"],
            kind=asked.get("kind", ""),
            output=asked.get("output"),
            input=asked.get("input"),
            parts=tuple(asked.get("parts", ())),
        )


def is_asked(command: Routed) -> bool:
    """Whether this command to do a run again begins at a step."""
    return "from_step" in command.event.data


def take_over(found: Inheritance) -> None:
    """Copy what is recorded before the step, and record what the step is said to have come to."""
    whose = {"run": found.run_id, "origin": found.origin, "key": found.key}
    steps = sql.execute(
        _STEPS.format(parts=sql.among("key", "parts")),
        {**whose, "before": found.before, "lease": TAKEN_OVER, "parts": list(found.parts)},
    )
    used = sql.execute(_USED, whose)
    _copy_waits(found.run_id, [(sql.uid(wait_id), key) for wait_id, key in used])
    if found.kind:
        _give(found, found.key, found.kind, found.output, seq=len(steps) + 1)
    if found.input is not None:
        _give(found, found.key + INPUT, StepKind.INPUT, found.input, seq=len(steps) + 1)
    failpoints.reach("history_taken_over")


def _copy_waits(run_id: uuid.UUID, waits: list[tuple[uuid.UUID, str]]) -> None:
    if not waits:
        return
    numbers = [[key for _, key in waits[:index]].count(key) for index, (_, key) in enumerate(waits)]
    source, columns = sql.table(
        Wait,
        "t",
        {
            "match": [wait_id for wait_id, _ in waits],
            "id": [
                keys.wait_id(run_id, key, n) for (_, key), n in zip(waits, numbers, strict=True)
            ],
        },
    )
    copied = ", ".join(f"w.{column}" for column in _COPIED.split(", "))
    sql.execute(
        f"INSERT INTO durable_flows_wait (id, run_id, match, {_COPIED}) "
        f"SELECT t.id, %(run)s::uuid, w.match, {copied} FROM {source} "
        "JOIN durable_flows_wait w ON w.id = t.match WHERE true ON CONFLICT DO NOTHING",
        {"run": run_id, **columns},
    )


def _give(found: Inheritance, key: str, kind: str, output: str | None, *, seq: int) -> None:
    now = clock.now()
    sql.insert(
        Step,
        {
            "run_id": [found.run_id],
            "key": [key],
            "seq": [seq],
            "kind": [str(kind)],
            "state": [StepState.DONE.value],
            "output": [output],
            "mark": [found.mark],
            "lease": [TAKEN_OVER],
            "attempt": [1],
            "started_at": [now],
            "ended_at": [now],
        },
    )
