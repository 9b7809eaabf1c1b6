"""The part of a Celery worker that keeps the engine's heart beating, also when beat is dead."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from durable_flows import conf
from durable_flows.engine import execute, ring


class Heart(bootsteps.StartStopStep):
    """Tells the engine which queues this worker serves, and rings for a tick each interval."""

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self._entry: Any = None
        execute.stopping.clear()
        ring.serve(worker.app.amqp.queues.consume_from)

    def start(self, worker: Any) -> None:
        """Ring for the first tick at once: it finds what waited while no worker was there."""
        ring.tick()
        self._entry = worker.timer.call_repeatedly(conf.settings().TICK_SECONDS, ring.tick)

    def stop(self, worker: Any) -> None:
        """Claim nothing more; what executes goes on to its end."""
        execute.stopping.set()
        if self._entry is not None:
            self._entry.cancel()
