"""Tables as they are after years, filled in seconds: by SQL of our own, not through the engine.

Each row is what the engine would have written, as far as what is measured can tell. Ids of one kind
rise, as the engine's do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

BEFORE_ALL = 1  # a place in the order of routing before every event's
AT_ONCE = 10_000  # runs that are handled by one statement

#: Series that must not get in each other's way: the first digits of their ids.
_EVENT, _RUN, _WAIT, _SLEEPER, _HANDLED = "e0", "a0", "b0", "c0", "d0"


def waits(alias: str, count: int, *, event_name: str) -> None:
    """Suspended runs that wait for an event of this name, each with another key."""
    _run(
        alias,
        f"INSERT INTO durable_flows_wait (id, run_id, key, kind, event_name, paths, criteria, match, "
        "eligible_from, expires_at, created_at, outcome) "
        f"SELECT {_id(_WAIT)}, {_id(_SLEEPER)}, 'awaited', 'step', %(name)s, '[\"data.key\"]', "
        "'data.key = ' || n, gen_random_uuid(), 1, now() + interval '1 day', now(), '' "
        "FROM generate_series(1, %(count)s) n",
        {"name": event_name, "count": count},
    )
    sleepers(alias, count)


def sleepers(alias: str, count: int) -> None:
    """Suspended runs whose timers fall due within a month from now."""
    _run(
        alias,
        "INSERT INTO durable_flows_due "
        "(run_id, queue, wake_at, due_since, state, lease, claims, nudged) "
        f"SELECT {_id(_SLEEPER)}, %(queue)s, moment, moment, 'waiting', 1, 0, false "
        "FROM generate_series(1, %(count)s) n, LATERAL "
        "(SELECT now() + interval '1 day' + n * interval '29 days' / %(count)s) t(moment)",
        {"queue": _queue(), "count": count},
    )


def due(alias: str, count: int) -> None:
    """Runs that have been started and are due, for an hour at most, with their events."""
    params = {"queue": _queue(), "count": count}
    _run(
        alias,
        "INSERT INTO durable_flows_event (id, arrival, mark, name, data, key, ts, received_at, "
        "deliver_at, v, target, depth, routed, routed_at, error) "
        f"SELECT {_id(_EVENT)}, n, 1, 'benchmarks/three.steps', '{{}}', '', now(), now(), now(), "
        "'', '', 0, n + 1, now(), '' FROM generate_series(1, %(count)s) n",
        params,
    )
    _run(
        alias,
        "INSERT INTO durable_flows_run "
        "(id, flow, event_id, state, queue, mark, generation, lease, reason, created_at) "
        f"SELECT {_id(_RUN)}, 'three-steps', {_id(_EVENT)}, 'queued', %(queue)s, n + 1, 0, 0, '', "
        "now() FROM generate_series(1, %(count)s) n",
        params,
    )
    _run(
        alias,
        "INSERT INTO durable_flows_due "
        "(run_id, queue, wake_at, due_since, state, lease, claims, nudged) "
        f"SELECT {_id(_RUN)}, %(queue)s, moment, moment, 'queued', 0, 0, false "
        "FROM generate_series(1, %(count)s) n, LATERAL "
        "(SELECT now() - interval '1 hour' + n * interval '1 hour' / %(count)s) t(moment)",
        params,
    )


def ended(alias: str, count: int, *, days: int) -> None:
    """Runs of two steps each that have completed so many days ago, and the events that started them.

    Their ids begin with the time, as the engine's do: a millisecond lies between two of them.
    """
    from durable_flows.rules import clock

    began = clock.now() - timedelta(days=days)
    params = {"queue": _queue(), "count": count, "began": began}
    times = (
        "FROM generate_series(1, %(count)s) n, LATERAL "
        "(SELECT %(began)s::timestamptz + n * interval '1 millisecond') t(moment)"
    )
    _run(
        alias,
        "INSERT INTO durable_flows_event (id, arrival, mark, name, data, key, ts, received_at, "
        "deliver_at, v, target, depth, routed, routed_at, error) "
        f"SELECT {_timed('event')}, n, 1, 'benchmarks/ended', "
        "'{\"customer\":' || n || ',\"note\":\"' || repeat('x', 80) || '\"}', '', moment, moment, moment, "
        f"'', '', 0, 1, moment, '' {times}",
        params,
    )
    _run(
        alias,
        "INSERT INTO durable_flows_run (id, flow, event_id, state, queue, mark, generation, lease, "
        "result, reason, created_at, started_at, ended_at) "
        f"SELECT {_timed('run')}, 'ended', {_timed('event')}, 'completed', %(queue)s, 1, 0, 1, 'null', "
        f"'', moment, moment, moment {times}",
        params,
    )
    for number in (1, 2):
        _run(
            alias,
            "INSERT INTO durable_flows_step (run_id, key, seq, kind, state, output, mark, lease, attempt, "
            f"started_at, ended_at) SELECT {_timed('run')}, 's{number}', {number}, 'run', 'done', "
            f"'\"' || repeat('y', 80) || '\"', 1, 1, 1, moment, moment {times}",
            params,
        )


def handled(alias: str, count: int) -> None:
    """Runs that were started, claimed and ended between two hours ago and one: nothing is left of them.

    Nothing but what cannot be cleaned away while an older snapshot is open.
    """
    for first in range(1, count + 1, AT_ONCE):
        span = {"first": first, "last": min(count, first + AT_ONCE - 1), "count": count}
        _run(
            alias,
            "INSERT INTO durable_flows_due "
            "(run_id, queue, wake_at, due_since, state, lease, claims, nudged) "
            f"SELECT {_id(_HANDLED)}, %(queue)s, moment, moment, 'queued', 0, 0, false "
            "FROM generate_series(%(first)s, %(last)s) n, LATERAL "
            "(SELECT now() - interval '2 hours' + n * interval '1 hour' / %(count)s) t(moment)",
            {"queue": _queue(), **span},
        )
        _run(
            alias,
            "UPDATE durable_flows_due SET state = 'running', lease = 1, claims = 1, "
            "wake_at = wake_at + interval '30 seconds'",
        )
        _run(alias, "DELETE FROM durable_flows_due")


def signature(alias: str, *, event_name: str, paths: Sequence[str]) -> None:
    """The signature of waits that are as old as the first event."""
    from durable_flows.engine.signatures import signature_id

    _run(
        alias,
        "INSERT INTO durable_flows_signature (id, event_name, paths, complete_from) "
        "VALUES (%(id)s, %(name)s, %(paths)s, %(from)s)",
        {
            "id": signature_id(event_name, tuple(paths)),
            "name": event_name,
            "paths": json.dumps(list(paths)),
            "from": BEFORE_ALL,
        },
    )


def events(alias: str, count: int, *, event_name: str) -> None:
    """Routed events of this name, each with another key, and what they match."""
    _run(
        alias,
        "INSERT INTO durable_flows_event (id, arrival, mark, name, data, key, ts, received_at, "
        "deliver_at, v, target, depth, routed, routed_at, error) "
        f"SELECT {_id(_EVENT)}, nextval('durable_flows_arrival'), 1, %(name)s, "
        "'{\"key\":' || n || '}', '', now(), now(), now(), '', '', 0, "
        "nextval('durable_flows_routed'), now(), '' FROM generate_series(1, %(count)s) n",
        {"name": event_name, "count": count},
    )
    _run(
        alias,
        "INSERT INTO durable_flows_eventmatch (match, routed, event_id) "
        "SELECT gen_random_uuid(), routed, id FROM durable_flows_event WHERE name = %(name)s",
        {"name": event_name},
    )


def steps(alias: str, count: int) -> None:
    """Recorded steps of other runs, a thousand each."""
    _run(
        alias,
        _STEPS.format(run=_id(_RUN, "(n / 1000)"), number="n %% 1000", seq="n %% 1000 + 1"),
        {"count": count},
    )


def recorded(alias: str, run_id: str, count: int) -> None:
    """Steps s0, s1, … of a run that earlier slices have recorded."""
    _run(
        alias,
        _STEPS.format(run="%(run)s::uuid", number="n", seq="n + 1"),
        {"run": run_id, "count": count},
    )
    _run(
        alias,
        "UPDATE durable_flows_due SET lease = lease + 1 WHERE run_id = %(run)s",
        {"run": run_id},
    )


_STEPS = (
    "INSERT INTO durable_flows_step "
    "(run_id, key, seq, kind, state, output, mark, lease, attempt, started_at, ended_at) "
    "SELECT {run}, 's' || {number}, {seq}, 'run', 'done', 'null', 1, 1, 1, now(), now() "
    "FROM generate_series(0, %(count)s - 1) n"
)


def _id(kind: str, number: str = "n") -> str:
    """An id made of a number, as SQL."""
    return f"('{kind}' || lpad(to_hex({number}), 30, '0'))::uuid"


def _timed(kind: str) -> str:
    """An id that begins with the ``moment``, as SQL."""
    milliseconds = "(extract(epoch FROM moment) * 1000)::bigint"
    rest = f"substr(md5('{kind}' || n), 1, 20)"
    return f"(lpad(to_hex({milliseconds}), 12, '0') || {rest})::uuid"


def _queue() -> str:
    from durable_flows.engine import ring

    return ring.default_queue()


def _run(alias: str, statement: str, params: dict[str, Any] | None = None) -> None:
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(statement, params)
