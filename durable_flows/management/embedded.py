"""A Celery worker inside this process, in threads, on a broker that is its memory."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from celery import current_app
from celery.worker import WorkController
from celery.worker import state as worker_state
from django.db import Error as DatabaseError

from durable_flows.engine import deployments, ring, sql
from durable_flows.engine.stop import stopping
from durable_flows.management.overrides import flows_settings
from durable_flows.models import Due
from durable_flows.registry import registry

logger = logging.getLogger(__name__)

MEMORY = "memory://"
POLL_SECONDS = 0.05  # how late a bell or a timer may be noticed; Celery's defaults are 1 s
TICK_SECONDS = 1.0  # what other processes send is found by the tick alone
PATIENCE = 3.0  # real seconds that a step in hand gets when the worker is to stop


class Worker:
    """A worker in a thread of its own, which has threads of its own for tasks.

    Attributes:
        ready: set once it takes work.
        told: set once it is to stop.
    """

    def __init__(self, threads: int) -> None:
        self.ready = threading.Event()
        self._threads = threads
        self.told = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flows-worker", daemon=True)

    def start(self) -> None:
        """Start, and return at once."""
        worker_state.should_stop = None
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing more, and let the steps in hand end, for at most `PATIENCE`."""
        self.told.set()
        stopping.set()
        worker_state.should_stop = os.EX_OK  # type: ignore[assignment]
        ring.tick()  # any message ends the consumer's wait for one
        self._thread.join(PATIENCE)

    def is_alive(self) -> bool:
        """Whether it is still at work: after `stop`, because a step has not come to its end."""
        return self._thread.is_alive()

    def _run(self) -> None:
        if self._tables_are_there():
            with suppress(DatabaseError):  # the worker publishes too
                # What is edited here is the newest, also if it was there a moment ago.
                deployments.publish(anew=True)
                sql.connection().close()
            self._controller().start()

    def _tables_are_there(self) -> bool:
        """Wait for ``migrate``, if that has not been run; False if told to stop meanwhile."""
        try:
            while not tables_exist():
                if self.told.wait(1.0):
                    return False
            return True
        finally:
            sql.connection().close()  # this thread will need it no more

    def _controller(self) -> WorkController:
        return WorkController(
            app=current_app._get_current_object(),  # type: ignore[attr-defined]
            pool_cls="threads",
            concurrency=self._threads,
            queues=queues(),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            ready_callback=lambda consumer: self.ready.set(),
            loglevel=logging.WARNING,
        )


@contextmanager
def worker(threads: int) -> Iterator[Worker]:
    """A worker that executes every flow of this process while the block runs."""
    ring_in_memory()
    embedded = Worker(threads)
    with flows_settings(RING="thread", TICK_SECONDS=TICK_SECONDS):
        embedded.start()
        try:
            yield embedded
        finally:
            embedded.stop()
            if not embedded.is_alive():
                stopping.clear()
                worker_state.should_stop = None


def ring_in_memory() -> None:
    """Let the memory of this process be its broker, whatever the project or the environment says."""
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        os.environ[name] = MEMORY  # Celery looks there first
    current_app.conf.update(
        broker_url=MEMORY,
        broker_read_url=MEMORY,
        broker_write_url=MEMORY,
        broker_use_ssl=None,
        broker_transport_options={"polling_interval": POLL_SECONDS},
        worker_timer_precision=POLL_SECONDS,
        worker_enable_remote_control=False,
        task_always_eager=False,
    )


def queues() -> list[str]:
    """Every queue of the project and of its flows."""
    of_flows = {flow.queue for flow in registry if flow.queue}
    return sorted({*current_app.amqp.queues.consume_from, ring.default_queue(), *of_flows})


def tables_exist() -> bool:
    """Whether ``migrate`` has made the app's tables. Raises no error if the database is away."""
    with suppress(DatabaseError):
        return Due._meta.db_table in sql.connection().introspection.table_names()
    return False
