"""The housekeeping that makes every doorbell dispensable: finds what a lost one left behind."""

from __future__ import annotations

from datetime import timedelta

from durable_flows import conf
from durable_flows.engine import (
    clocksync,
    deadlines,
    deployments,
    execute,
    failpoints,
    floors,
    paced,
    purge,
    ring,
    sql,
    stored,
)
from durable_flows.engine.route import route
from durable_flows.models import Due
from durable_flows.rules import clock, keys

THE_ROW = 1
UNPARKED_AT_ONCE = 1_000


def tick() -> bool:
    """Ring for everything that is due, or will be before the next tick.

    Returns:
        False if another tick has just done it.
    """
    clocksync.synchronise()
    if not _take_turn():
        return False
    failpoints.reach("tick_taken")
    deadlines.serve()
    unpark_known()
    if keep_floor_of_events():
        ring.route()
    for queue in queues():
        keep_floor(queue)
        _ring_ahead(queue)
    paced.carry_on()
    if purge.is_due():
        ring.purge()
    return True


def turn_by_hand() -> int:
    """Route everything and execute everything that is due, here and now, without a broker.

    Returns:
        The number of events routed and slices executed.
    """
    count = paced.carry_on()
    keep_floor_of_events()
    count += route().events
    deadlines.serve()
    unpark_known()
    for queue in queues():
        keep_floor(queue)
        count += execute.drain(queue)
    return count


def queues() -> list[str]:
    """The queues on which unfinished runs wait: one index probe each, not a scan of all runs."""
    rows = sql.execute(
        "WITH RECURSIVE found(queue) AS ("
        "SELECT min(queue) FROM durable_flows_due WHERE wake_at IS NOT NULL UNION ALL "
        "SELECT (SELECT min(d.queue) FROM durable_flows_due d "
        "WHERE d.wake_at IS NOT NULL AND d.queue > found.queue) "
        "FROM found WHERE found.queue IS NOT NULL) "
        "SELECT queue FROM found WHERE queue IS NOT NULL"
    )
    return [row[0] for row in rows]


def keep_floor_of_events() -> bool:
    """See to it that routers find every event that is to be routed, and little else. Is there one?"""
    oldest = stored.oldest_unrouted(clock.now())
    floors.keep(floors.EVENTS, oldest)
    return oldest is not None


def keep_floor(queue: str) -> None:
    """See to it that claims find everything that is due on this queue, and little else."""
    rows = sql.execute(
        "SELECT min(wake_at) FROM durable_flows_due WHERE queue = %(queue)s AND wake_at <= %(now)s",
        {"queue": queue, "now": clock.now()},
    )
    (oldest,) = rows[0]
    floors.keep(queue, oldest and sql.moment(oldest))


def unpark_known() -> None:
    """Let runs go on whose flow nobody knew, once a process that is alive knows it.

    And those that the code could not go on with, once the newest that is alive is another.
    """
    for keeps in _overcome():
        while _unpark_some(keeps) == UNPARKED_AT_ONCE:
            pass
    failpoints.reach("unparked")


def _overcome() -> list[str]:
    """What keeps parked runs no longer: one index probe for each thing that keeps any."""
    newest, params = deployments.newest()
    rows = sql.execute(
        "WITH RECURSIVE found(keeps) AS ("
        "SELECT min(parked_by) FROM durable_flows_due WHERE wake_at IS NULL UNION ALL "
        "SELECT (SELECT min(d.parked_by) FROM durable_flows_due d "
        "WHERE d.wake_at IS NULL AND d.parked_by > found.keeps) "
        "FROM found WHERE found.keeps IS NOT NULL) "
        f"SELECT keeps, {newest} FROM found WHERE keeps IS NOT NULL",
        params,
    )
    if not rows:
        return []
    flows = deployments.known_flows()
    known = {
        keys.unknown_flow(flow_id, number)
        for flow_id, version in flows
        for number in (version, None)
    }
    return [
        keeps
        for keeps, digest in rows
        if (keeps in known if keeps.startswith(keys.UNKNOWN_FLOW) else keeps != digest)
    ]


def _unpark_some(keeps: str) -> int:
    """Let runs go on that this has kept. Returns how many."""
    rows = sql.execute(
        "WITH next AS MATERIALIZED (SELECT d.run_id FROM durable_flows_due d "
        "WHERE d.wake_at IS NULL AND d.parked_by = %(keeps)s "
        "ORDER BY d.run_id LIMIT %(most)s FOR UPDATE SKIP LOCKED) "
        "UPDATE durable_flows_due SET state = 'queued', wake_at = %(now)s::timestamptz, "
        "parked_by = '' WHERE run_id IN (SELECT run_id FROM next) RETURNING run_id",
        {"now": clock.now(), "keeps": keeps, "most": UNPARKED_AT_ONCE},
    )
    return len(rows)


def _take_turn() -> bool:
    """The row of the tick: whoever moves it on does the work of this interval."""
    now = clock.now()
    interval = conf.settings().TICK_SECONDS
    rows = sql.execute(
        "INSERT INTO durable_flows_tick AS last (id, ticked_at) VALUES (%(row)s, %(now)s) "
        "ON CONFLICT (id) DO UPDATE SET ticked_at = %(now)s "
        "WHERE last.ticked_at <= %(before)s OR last.ticked_at > %(ahead)s RETURNING id",
        {
            "now": now,
            "row": THE_ROW,
            "before": now - clock.real(interval * 0.8),
            "ahead": now + clock.real(interval),  # the clock was put back
        },
    )
    return bool(rows)


def _ring_ahead(queue: str) -> None:
    """One bell for each moment of the coming interval at which a run of this queue falls due."""
    horizon = clock.now() + clock.real(conf.settings().TICK_SECONDS)
    moments = (
        Due.objects.using(conf.settings().DATABASE)
        .filter(queue=queue, wake_at__lte=horizon)
        .order_by("wake_at")
        .values_list("wake_at", flat=True)[:LOOK_AHEAD]
    )
    last = clock.now() - timedelta(days=1)
    for moment in moments:
        assert moment is not None
        if moment - last >= clock.real(ring.BUCKET):
            ring.drain_at(queue, moment)
            last = max(moment, clock.now())


LOOK_AHEAD = 2_000  # due runs looked at: beyond that a drain is at work all the interval anyway
