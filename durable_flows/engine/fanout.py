"""``step.map``: a child run for each item, so many at once, and one entry in the parent's journal.

All children are asked for, and waited for, in one transaction; but the commands of those for which there
is no room yet are to be delivered in a far future. When children end, the router brings as many commands
forward, under the parent's due row, and wakes the parent when the last one has ended.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime

from durable_flows.engine import children, deployments, failpoints, ingest, ring, sql
from durable_flows.engine.arguments import Mapped
from durable_flows.engine.history import Child, Claim, Progress
from durable_flows.engine.history import children as read_children
from durable_flows.engine.senders import Sender
from durable_flows.errors import LeaseLost
from durable_flows.models import Fanout, Wait
from durable_flows.rules import clock, durations, keys
from durable_flows.rules.states import WaitKind

# -- the slice's side ------------------------------------------------------------------------


def begin(claim: Claim, key: str, asked: Mapped, *, sender: Sender) -> Progress:
    """Ask for all children, or see how far they have come, if they have been asked for.

    Raises:
        InvalidEvent: what one of them is to be given cannot be stored; nothing was asked for.
        LeaseLost: the run was taken over; nothing was asked for.
        CancelAsked: it is being cancelled; nothing was asked for.
    """
    known = look(claim, key)
    if known is not None:
        return known
    now = clock.now()
    with sql.atomic():
        event_ids = ingest.invoke_all(
            asked.flow_id,
            asked.items,
            later=[number >= asked.most for number in range(len(asked.items))],
            sender=sender,
        )
        children.check_lease(claim)
        if not sql.insert(
            Fanout,
            {
                "id": [keys.wait_id(claim.run_id, key, claim.generation)],
                "run_id": [claim.run_id],
                "key": [key],
                "generation": [claim.generation],
                "total": [len(asked.items)],
                "started": [min(asked.most, len(asked.items))],
                "ended": [0],
                "created_at": [now],
            },
            suffix="ON CONFLICT DO NOTHING RETURNING id",
        ):  # by an earlier try whose COMMIT was still going on: no second children must begin
            raise LeaseLost(f"run {claim.run_id} maps {key!r} already")
        _insert_waits(claim, key, asked, event_ids, now)
        failpoints.reach("before_map_commit", key)
    deployments.warn_if_unknown(claim.run_id, key, asked.flow_id)
    ring.route()
    return Progress(len(asked.items), 0)


def look(claim: Claim, key: str) -> Progress | None:
    """How far the children of this step have come; None if they have not been asked for."""
    rows = sql.execute(
        "SELECT total, ended FROM durable_flows_fanout WHERE id = %(id)s",
        {"id": keys.wait_id(claim.run_id, key, claim.generation)},
    )
    return Progress(*rows[0]) if rows else None


def ends(claim: Claim, key: str, count: int) -> list[Child]:
    """What has become of the children, in the order of the items."""
    ids = [keys.wait_id(claim.run_id, _item(key, n), claim.generation) for n in range(count)]
    found = {child.id: child for _, child in read_children(ids)}
    return [found[id_] for id_ in ids]


def _insert_waits(
    claim: Claim, key: str, asked: Mapped, event_ids: Sequence[uuid.UUID], now: datetime
) -> None:
    names = [_item(key, number) for number in range(len(event_ids))]
    runs = [keys.flow_run_id(asked.flow_id, event_id) for event_id in event_ids]
    count = len(names)
    sql.insert(
        Wait,
        {
            "id": [keys.wait_id(claim.run_id, name, claim.generation) for name in names],
            "run_id": [claim.run_id] * count,
            "key": names,
            "kind": [WaitKind.ITEM.value] * count,
            "event_name": [asked.flow_id] * count,
            "event_id": list(event_ids),
            "paths": ["[]"] * count,
            "criteria": [f"run {run}" for run in runs],
            "match": runs,
            "cascade": [asked.cascade] * count,
            "eligible_from": [0] * count,
            "expires_at": [now + durations.LONGEST] * count,
            "created_at": [now] * count,
            "outcome": [""] * count,
        },
        suffix="",
    )


def _item(key: str, number: int) -> str:
    return f"{key}[{number}]"


# -- the router's side -----------------------------------------------------------------------


def advance(ended: Collection[tuple[uuid.UUID, str]]) -> list[uuid.UUID]:
    """Count these ends, by parent and wait, and let as many others begin.

    The due rows of the parents are locked, so nobody else counts.

    Returns:
        The parents of which all children have ended.
    """
    counts = Counter((run, key.rpartition("[")[0]) for run, key in ended)
    over = []
    for (run, key), count in sorted(counts.items()):
        rows = sql.execute(
            "SELECT f.id, f.total, f.started, f.ended, f.generation FROM durable_flows_fanout f "
            "JOIN durable_flows_run r ON r.id = f.run_id AND r.generation = f.generation "
            "WHERE f.run_id = %(run)s AND f.key = %(key)s",
            {"run": run, "key": key},
        )
        for fanout, total, started, known, generation in rows:
            until = min(total, started + count)
            sql.execute(
                "UPDATE durable_flows_fanout SET ended = %(ended)s, started = %(started)s "
                "WHERE id = %(id)s",
                {"id": fanout, "ended": known + count, "started": until},
            )
            _bring_forward(run, [_item(key, n) for n in range(started, until)], generation)
            if known + count >= total:
                over.append(run)
    if counts:
        failpoints.reach("map_advanced")
    return over


def _bring_forward(run: uuid.UUID, names: Sequence[str], generation: int) -> None:
    """Deliver the commands of these children now."""
    if not names:
        return
    waits = [keys.wait_id(run, name, generation) for name in names]
    sql.execute(
        "UPDATE durable_flows_event SET deliver_at = %(now)s::timestamptz, "
        "ts = %(now)s::timestamptz WHERE id IN ("
        f"SELECT event_id FROM durable_flows_wait WHERE {sql.among('id', 'waits')}) "
        "AND routed_at IS NULL",
        {"now": clock.now(), "waits": waits},
    )
    sql.on_commit(ring.route)
