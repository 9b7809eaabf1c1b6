"""Tells of the ends of runs by events, in the transaction that ends them, where somebody listens.

An end is told once for each kind of event: its id is made of the run, the generation and the name. Runs
that such an event has started end untold, and so do those that they invoke or start: else whoever listens
would be told of itself without end.

A wait may ask for what has ended before anybody listened. So the first wait for a name makes up for that:
it says that it listens, sees to it that whoever did not know has committed, and tells of what it finds.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from durable_flows import conf, signals
from durable_flows.engine import audience, failpoints, ingest, observed, settle, sql, stored
from durable_flows.engine.history import Claim, Waiting
from durable_flows.engine.senders import Sender, sending_as
from durable_flows.engine.subjects import Subject
from durable_flows.models import Run
from durable_flows.rules import causality, clock, endings, envelopes, events, keys, payload
from durable_flows.rules.states import ACTIONS

AT_ONCE = 100  # ends told by one statement
LONGEST_CHAIN = 100  # runs that invoke or start each other, looked through for one that was told

_MOMENTS = ("created_at", "started_at", "ended_at")

#: The ends of these runs, but for those that come of being told: from run to run up the chain of those
#: that have invoked or started each other.
_ENDS = (
    "WITH RECURSIVE up(run_id, event_id, n) AS ("
    "SELECT r.id, r.event_id, 1 FROM durable_flows_run r WHERE {runs} UNION ALL "
    "SELECT up.run_id, above.event_id, up.n + 1 FROM up "
    "JOIN durable_flows_event asked ON asked.id = up.event_id AND asked.target <> '' "
    "JOIN durable_flows_run above ON above.id = asked.sender "
    f"WHERE up.n < {LONGEST_CHAIN}), "
    "told AS (SELECT up.run_id FROM up JOIN durable_flows_event e ON e.id = up.event_id "
    "WHERE {names}) "
    "SELECT r.id, r.flow, r.version, r.generation, r.state, r.reason, r.error, "
    "CASE WHEN length(r.result) <= %(most)s THEN r.result END, "
    "r.depth, r.subject_type_id, r.subject_id, r.created_at, r.started_at, r.ended_at, {event} "
    "FROM durable_flows_run r JOIN durable_flows_event e ON e.id = r.event_id "
    "WHERE {runs} AND r.ended_at IS NOT NULL AND r.id NOT IN (SELECT run_id FROM told) "
    "ORDER BY r.ended_at, r.id"
)


def ends(heard: Mapping[uuid.UUID, Collection[str]]) -> None:
    """Tell of the ends of these runs, each by those of the events that are named with it."""
    told = [end for some in _batches(list(heard)) for end in _told(some, heard)]
    ingest.tell_of_ends(told)
    if told:
        failpoints.reach("ends_announced")


#: What observers learn of an end, each a column of the run.
_FACTS = ("flow", "version", "generation", "state", "event_id", *_MOMENTS)


def to_observers(run_ids: Sequence[uuid.UUID]) -> None:
    """Tell observers of these ends when they are committed; what they send then, these runs send."""
    if not run_ids:
        return
    rows = sql.execute(
        "SELECT r.id, r.depth, r.subject_type_id, r.subject_id, "
        "(SELECT e.context FROM durable_flows_event e WHERE e.id = r.event_id), "
        f"{', '.join(_FACTS)} FROM durable_flows_run r WHERE {sql.among('r.id', 'runs')} ORDER BY r.id",
        {"runs": list(run_ids)},
    )
    told, senders = [], {}
    for run_id, depth, subject_type, subject_id, context, *values in rows:
        facts = dict(zip(_FACTS, values, strict=True))
        facts |= {name: facts[name] and sql.moment(facts[name]) for name in _MOMENTS}
        facts |= {"run_id": str(sql.uid(run_id)), "event_id": str(sql.uid(facts["event_id"]))}
        told.append(facts)
        moments = [facts[name] for name in _MOMENTS]
        subject = Subject.read(subject_type, subject_id)
        sender = _sender(sql.uid(run_id), depth, facts["generation"], moments, subject)
        captured = payload.loads(context) if context else {}
        senders[facts["run_id"]] = replace(sender, context=captured)
    observed.tell(
        signals.run_ended,
        Run,
        told,
        around=lambda facts: sending_as(senders[facts["run_id"]]),
    )


def look_back(claim: Claim, wait: Waiting) -> Waiting:
    """As `settle.look_back`; for what tells of ends also for those that nobody listened to."""
    if wait.event_name in endings.NAMES:
        _make_up(claim, wait)
    return settle.look_back(claim, wait)


def _make_up(claim: Claim, wait: Waiting) -> None:
    """See to it that what ended since the wait's position was told, and that what ends now will be."""
    name, until = wait.event_name, wait.expires_at + audience.SLACK
    since = _position(claim, wait)
    if wait.expires_at <= clock.now() or audience.is_told(name, since, until):
        return
    audience.expect([name], until)
    if audience.is_told(name, since, until):
        return
    audience.await_deaf()
    for some in _batches(audience.ended_since(name, since)):
        with sql.atomic():
            ingest.tell_of_ends(list(_told(some, dict.fromkeys(some, (name,)))))
    failpoints.reach("ends_made_up_for")
    audience.note_told_since(name, since)


def _position(claim: Claim, wait: Waiting) -> datetime:
    """From when on a wait may see events; rather too early than too late."""
    if wait.received_since is not None:
        return wait.received_since
    rows = sql.execute(
        "SELECT min(started_at) FROM durable_flows_step "
        f"WHERE run_id = %(run)s AND {sql.among('kind', 'actions')} AND mark >= %(from)s",
        {
            "run": claim.run_id,
            "actions": sorted(ACTIONS),
            "from": wait.eligible_from,
        },
    )
    began = rows[0][0]
    if began is None or wait.eligible_from <= claim.mark:
        began = claim.created_at
    return max(sql.moment(began), wait.routed_since or claim.created_at)


def _batches(run_ids: Sequence[uuid.UUID]) -> Iterator[Sequence[uuid.UUID]]:
    for start in range(0, len(run_ids), AT_ONCE):
        yield run_ids[start : start + AT_ONCE]


def _told(
    run_ids: Sequence[uuid.UUID], heard: Mapping[uuid.UUID, Collection[str]]
) -> Iterator[tuple[uuid.UUID, events.Encoded, Sender]]:
    """The events that tell of these ends, with their ids and who sends them."""
    if not run_ids:
        return
    most = conf.settings().MAX_EVENT_BYTES
    rows = sql.execute(
        _ENDS.format(
            runs=sql.among("r.id", "runs"),
            names=sql.among("e.name", "names"),
            event=stored.columns("e"),
        ),
        {"runs": list(run_ids), "names": list(endings.NAMES), "most": most},
    )
    for row in rows:
        end, sender, ended_at = _end(row)
        data = endings.document(end, most=most)
        encoded = events.Encoded(
            name="", data=data, user=None, key="", ts=ended_at, v="", context=_context(row)
        )
        run_id = sql.uid(row[0])
        for name in endings.names(end.state):
            if name in heard[run_id]:
                event_id = keys.end_event_id(run_id, end.generation, name, ended_at)
                yield event_id, replace(encoded, name=name), sender


def _end(row: sql.Row) -> tuple[endings.End, Sender, datetime]:
    """An end as it was read, who tells of it, and when it was."""
    id_, flow_id, version, generation, state, reason, error, result, depth, *rest = row
    subject_type, subject_id, *rest = rest
    run_id, ended_at = sql.uid(id_), sql.moment(rest[2])
    created_at, started_at = sql.moment(rest[0]), rest[1] and sql.moment(rest[1])
    end = endings.End(
        flow_id=flow_id,
        version=version,
        run_id=str(run_id),
        generation=generation,
        state=state,
        started=started_at is not None or generation > 0,
        reason=reason,
        event=_as_text(rest[3:]),
        error=error,
        result=_short(result),
    )
    moments = (created_at, started_at, ended_at)
    subject = Subject.read(subject_type, subject_id)
    return end, _sender(run_id, depth, generation, moments, subject), ended_at


def _sender(
    run_id: uuid.UUID,
    depth: int,
    generation: int,
    moments: Sequence[Any],
    subject: Subject | None,
) -> Sender:
    """A run that has ended, as the sender of what tells of that."""
    created_at, started_at, ended_at = moments
    since = (started_at or ended_at) if generation else created_at
    sent_at_depth = causality.depth_of_sent(depth, since=since, now=ended_at)
    return Sender(run_id=run_id, depth=sent_at_depth, subject=subject)


def _short(result: str | None) -> str | None:
    """A result that is not in a file: that is too long for an event."""
    if result is None or envelopes.is_plain(result):
        return result
    plain, _ = envelopes.without_rows(result)
    return plain if envelopes.is_plain(plain) else None


def _context(row: sql.Row) -> str:
    """What was captured where the run's trigger was sent: what tells of its end has that, too."""
    return str(row[-1])


def _as_text(row: Sequence[object]) -> str:
    return json.dumps(stored.event(row).as_dict(), ensure_ascii=False, separators=(",", ":"))
