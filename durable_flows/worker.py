"""The part of a Celery worker that keeps the engine's heart beating, also when beat is dead."""

from __future__ import annotations

from typing import Any

from celery import bootsteps, signals

from durable_flows import conf
from durable_flows.engine import deployments, ring
from durable_flows.engine.stop import stopping


class Heart(bootsteps.StartStopStep):
    """Tells the engine which queues this worker serves and which flows it has; rings for ticks."""

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self._entry: Any = None
        stopping.clear()
        deployments.take_part()  # before the pool forks
        ring.serve(worker.app.amqp.queues.consume_from)

    def start(self, worker: Any) -> None:
        """Ring for the first tick at once: it finds what waited while no worker was there."""
        deployments.keep_publishing()
        ring.tick()
        self._entry = worker.timer.call_repeatedly(conf.settings().TICK_SECONDS, ring.tick)

    def stop(self, worker: Any) -> None:
        """Begin nothing more: the step in hand ends and is recorded, then its run is handed back."""
        deployments.stop_publishing()
        stopping.set()
        if self._entry is not None:
            self._entry.cancel()

    def terminate(self, worker: Any) -> None:
        """The same; Celery ends what executes, and its leases end by themselves."""
        self.stop(worker)


@signals.worker_shutting_down.connect
def _stop_at_once(**_: Any) -> None:
    """From the signal handler: a solo worker comes to `Heart.stop` only when its task has ended."""
    stopping.set()
