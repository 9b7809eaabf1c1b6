"""The part of a Celery worker that keeps the engine's heart beating, also when beat is dead."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from durable_flows import conf
from durable_flows.engine import deployments, execute, ring


class Heart(bootsteps.StartStopStep):
    """Tells the engine which queues this worker serves and which flows it has; rings for ticks."""

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self._entry: Any = None
        execute.stopping.clear()
        deployments.take_part()  # before the pool forks
        ring.serve(worker.app.amqp.queues.consume_from)

    def start(self, worker: Any) -> None:
        """Ring for the first tick at once: it finds what waited while no worker was there."""
        deployments.keep_publishing()
        ring.tick()
        self._entry = worker.timer.call_repeatedly(conf.settings().TICK_SECONDS, ring.tick)

    def stop(self, worker: Any) -> None:
        """Claim nothing more; what executes goes on to its end."""
        deployments.stop_publishing()
        execute.stopping.set()
        if self._entry is not None:
            self._entry.cancel()
