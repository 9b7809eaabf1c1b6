"""Which processes route: those whose flows appeared last, among the deployments that are alive.

While a new version is rolled out, workers of the old one are still there. An event that an old worker
routes starts the flows which that worker knows, and none that are new: it would be lost for them. So
every worker publishes its flows, and only those of the newest deployment route. When the last process
of that one has been silent for a while, the one before it goes on: that is a roll-back.

A process that takes no part, a shell or a test for instance, publishes nothing and routes whatever
there is.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from durable_flows import conf
from durable_flows.engine import audience, clocksync, native, notes, sql
from durable_flows.registry import registry
from durable_flows.rules import clock, endings

logger = logging.getLogger(__name__)

SHORTEST_SILENCE = 30.0  # real seconds, at least, after which a deployment is thought gone
SILENT_TICKS = 6

_takes_part = False
_appeared: dict[str, datetime] = {}  # digest → when it appeared, as this process published it
LOOK = 0.5  # real seconds between two looks at whether to stop


class _Publisher:
    """Publishes now and with each tick, from a thread that no user code holds up.

    Attributes:
        told: set once it is to stop.
        ended: set once it has.
    """

    def __init__(self) -> None:
        self.told = self.ended = False

    def work(self) -> None:
        try:
            while not self.told:
                self._publish()
                self._rest(conf.settings().TICK_SECONDS)
        finally:
            self.ended = True

    def _publish(self) -> None:
        try:
            publish()
        except Exception as error:
            logger.warning("this deployment could not be published (%s); trying again", error)
        finally:
            sql.connection().close()  # it is used too seldom to be kept

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.told and (left := until - time.monotonic()) > 0:
            native.sleep(min(left, LOOK))


_publisher: _Publisher | None = None


def take_part() -> None:
    """This process, and those that it forks, are part of a deployment: they may not route for others."""
    global _takes_part
    _takes_part = True


def leave() -> None:
    """Take no part any more: the end of a test."""
    global _takes_part
    stop_publishing()
    _takes_part = False
    _appeared.clear()


def publish(*, anew: bool = False) -> None:
    """Say that these flows are there, and alive; nothing if there are none.

    Args:
        anew: they appear now, whoever has seen them before: what runs now is the newest.
    """
    if not len(registry):
        return
    clocksync.synchronise()
    now = clock.now()
    digest = registry.digest
    rows = sql.execute(
        "INSERT INTO durable_flows_deployment AS known (digest, flows, first_seen_at, alive_at) "
        "VALUES (%(digest)s, %(flows)s, %(appeared)s, %(now)s) "
        "ON CONFLICT (digest) DO UPDATE SET alive_at = %(now)s, first_seen_at = CASE "
        # What was gone appears anew, but for a process that has been there all the time, and that
        # only the database did not hear of: its first appearance still counts.
        f"WHEN %(anew)s OR NOT ({_alive('known')}) THEN %(appeared)s::timestamptz "
        "ELSE known.first_seen_at END RETURNING first_seen_at",
        {
            "digest": digest,
            "flows": json.dumps(registry.described, sort_keys=True),
            "appeared": now if anew else _appeared.get(digest, now),
            "now": now,
            "anew": anew,
            **_bounds(now),
        },
    )
    audience.expect(filter(registry.hears, endings.NAMES), now + silence())
    _appeared[digest] = sql.moment(rows[0][0])


def announce() -> None:
    """Publish if this process never has: nobody routes before it has said what it knows."""
    if _takes_part and registry.digest not in _appeared:
        publish()


def keep_publishing() -> None:
    """Publish now and every ``TICK_SECONDS``, from a small thread, until `stop_publishing`."""
    global _publisher
    take_part()
    if _publisher is None:
        _publisher = _Publisher()
        native.start(_publisher.work)


def stop_publishing() -> None:
    """Say no more; the thread ends by itself."""
    global _publisher
    if _publisher is not None:
        _publisher.told = True
    _publisher = None


@contextmanager
def published() -> Iterator[None]:
    """Publish for the length of the block."""
    keep_publishing()
    try:
        yield
    finally:
        stop_publishing()


def may_route() -> tuple[str, dict[str, Any]]:
    """An SQL condition, with its parameters: these flows are those of the newest live deployment.

    To be asked in the very statement that reads events: an event that it sees was sent after
    everything that it sees of the deployments, or at the same time.
    """
    if not _takes_part:
        return "true", {}
    digest, params = newest()
    return f"{digest} = %(digest)s", params


def newest() -> tuple[str, dict[str, Any]]:
    """The digest of the newest live deployment as an SQL expression, with its parameters.

    To a process that takes no part its own is the newest.
    """
    if not _takes_part:
        return "%(digest)s", {"digest": registry.digest}
    found = (
        f"SELECT d.digest FROM durable_flows_deployment d WHERE {_alive('d')} "
        "ORDER BY d.first_seen_at DESC, d.digest DESC LIMIT 1"
    )
    return f"coalesce(({found}), %(digest)s)", {"digest": registry.digest, **_bounds(clock.now())}


def known_flows() -> set[tuple[str, int]]:
    """The ids and versions of all flows that some live process knows, and of those known here."""
    rows = sql.execute(
        f"SELECT d.flows FROM durable_flows_deployment d WHERE {_alive('d')}", _bounds(clock.now())
    )
    described = [registry.described, *(json.loads(flows) for (flows,) in rows)]
    return {
        (flow_id, int(version))
        for flows in described
        for flow_id, versions in flows.items()
        for version in versions
    }


def warn_if_unknown(run_id: uuid.UUID, key: str, flow_id: str) -> None:
    """Note on a run that the flow it has asked for is nobody's: its author may have misspelt it."""
    if registry.find(flow_id) is None and not any(flow_id == one for one, _ in known_flows()):
        notes.warn({(run_id, key): notes.unknown_flow(flow_id)})


def silence() -> timedelta:
    """How long a deployment may be silent, in clock time, before it is thought gone."""
    return clock.real(max(SHORTEST_SILENCE, SILENT_TICKS * conf.settings().TICK_SECONDS))


def _alive(alias: str) -> str:
    """Heard of lately, and not in a future that the clock was put back from."""
    return f"{alias}.alive_at > %(silent_since)s AND {alias}.alive_at < %(ahead)s"


def _bounds(now: datetime) -> dict[str, datetime]:
    return {"silent_since": now - silence(), "ahead": now + silence()}


def _forget() -> None:
    global _publisher
    _publisher = None  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget)
