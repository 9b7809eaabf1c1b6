"""Doorbells: the only file that talks to Celery.

A bell says "there is work" and carries nothing else. It may be lost, doubled or late: whatever it
announces stands in a row, and the tick finds it. So a bell never fails and never delays its ringer:
one small daemon thread a process coalesces bells and publishes them, without retries, with short
socket timeouts, and behind a circuit breaker.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery, current_app

from durable_flows import conf
from durable_flows.rules import clock

logger = logging.getLogger(__name__)

ROUTE = "durable_flows.route"
DRAIN = "durable_flows.drain"
TICK = "durable_flows.tick"
PURGE = "durable_flows.purge"

BUCKET = 0.05  # seconds: timers that fall due within one bucket share a bell
SOCKET_TIMEOUT = 2.0  # seconds
FLUSH_AT_EXIT = 1.0  # seconds
LONGEST_BREAK = 30.0  # seconds that the circuit breaker stays open at most


@dataclass(frozen=True, slots=True)
class Bell:
    """A message for the workers of ``queue``; ``at`` is a real second since 1970, or 0 for now."""

    task: str
    queue: str
    at: float = 0.0


def route() -> None:
    """There are events to route."""
    _ring(Bell(ROUTE, default_queue()))


def route_in(seconds: float) -> None:
    """There are events to route, but not for a moment."""
    _ring(Bell(ROUTE, default_queue(), at=_bucket(seconds)))


def drain(queue: str) -> None:
    """There are due runs on this queue."""
    _ring(Bell(DRAIN, queue))


def tick() -> None:
    """It is time for the housekeeping."""
    _ring(Bell(TICK, default_queue()))


def purge() -> None:
    """There may be rows whose time is over."""
    _ring(Bell(PURGE, default_queue()))


def drain_at(queue: str, moment: datetime) -> None:
    """A run of this queue falls due at ``moment``: ring then, if that is before the next tick.

    What lies further ahead is left to the ticks to come: a broker holds no timer for long.
    """
    seconds = clock.real_seconds_until(moment)
    if seconds <= 0:
        drain(queue)
    elif seconds <= conf.settings().TICK_SECONDS:
        _ring(Bell(DRAIN, queue, at=_bucket(seconds)))


def _bucket(seconds: float) -> float:
    """The next moment, in so many seconds, at which a bell is rung: shared by all that fall into it."""
    return (int((time.time() + seconds) / BUCKET) + 1) * BUCKET


def default_queue() -> str:
    """The queue of flows that name none, and of the engine's own tasks."""
    return conf.settings().QUEUE or str(current_app.conf.task_default_queue)


_served: frozenset[str] = frozenset()


def serve(queues: Iterable[str]) -> None:
    """This process is a worker that consumes these queues."""
    global _served
    _served = frozenset(queues)


def served() -> frozenset[str]:
    """The queues that this process consumes: none outside a worker."""
    return _served


_silent = 0


@contextmanager
def silence() -> Iterator[None]:
    """Ring for nobody inside the block: whoever is in it does the work itself."""
    global _silent
    _silent += 1
    try:
        yield
    finally:
        _silent -= 1


def is_silent() -> bool:
    """Whether somebody in this process does the work by hand."""
    return _silent > 0


def _ring(bell: Bell) -> None:
    if is_silent():
        return
    how = conf.settings().RING
    try:
        if how == "thread":
            _publisher.put(bell)
        elif how == "inline":
            _publisher.publish([bell])
    except RuntimeError as error:  # no thread can be started any more: the interpreter ends
        logger.warning("a doorbell was not rung (%s); the tick finds the work", error)


class Publisher:
    """Collects bells, each at most once, and publishes them from a thread of its own.

    Attributes:
        failures: how often in a row the broker did not take one.
    """

    def __init__(self) -> None:
        self._wanted: dict[Bell, None] = {}
        self._changed = threading.Condition()
        self._publishes = threading.Lock()  # one connection, and not for two threads at once
        self._thread: threading.Thread | None = None
        self._connection: Any = None
        self._publishing = False
        self.failures = 0
        self._open_until = 0.0

    @property
    def busy(self) -> bool:
        """Whether a bell that was rung is not published yet."""
        return self._publishing or bool(self._wanted)

    @property
    def circuit_is_open(self) -> bool:
        """Whether the broker failed a moment ago, and is left alone for a while."""
        return time.monotonic() < self._open_until

    def put(self, bell: Bell) -> None:
        """Publish soon. Never blocks for longer than it takes to note the bell."""
        with self._changed:
            if bell in self._wanted:
                return
            self._wanted[bell] = None
            if self._thread is None or not self._thread.is_alive():
                self._start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until everything is published, or for so many seconds."""
        until = time.monotonic() + seconds
        with self._changed:
            while self.busy:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    return

    def publish(self, bells: Iterable[Bell]) -> None:
        """Publish now, unless the broker failed a moment ago. Never raises."""
        with self._publishes:
            for bell in bells:
                if self.circuit_is_open:
                    return
                try:
                    self._send(bell)
                    self.failures = 0
                except Exception as error:
                    self._open_circuit(error)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="durable-flows-ring", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._publishing = False
                self._changed.notify_all()
                while not self._wanted:
                    self._changed.wait()
                # Cleared before publishing: a bell that is rung meanwhile is rung again.
                bells, self._wanted, self._publishing = list(self._wanted), {}, True
            self.publish(bells)

    def _send(self, bell: Bell) -> None:
        app: Celery = current_app._get_current_object()  # type: ignore[attr-defined]
        with app.amqp.Producer(self._connected(app)) as producer:
            app.send_task(
                bell.task,
                args=[bell.queue] if bell.task == DRAIN else [],
                queue=bell.queue,
                countdown=max(0.0, bell.at - time.time()) if bell.at else None,
                expires=10 * conf.settings().TICK_SECONDS,
                retry=False,
                ignore_result=True,
                producer=producer,
            )

    def _connected(self, app: Celery) -> Any:
        if self._connection is None:
            options = {
                **app.conf.broker_transport_options,
                "socket_timeout": SOCKET_TIMEOUT,
                "socket_connect_timeout": SOCKET_TIMEOUT,
                "max_retries": 0,
            }
            self._connection = app.connection_for_write(
                connect_timeout=SOCKET_TIMEOUT, transport_options=options
            )
        return self._connection

    def _open_circuit(self, error: Exception) -> None:
        self.failures += 1
        pause = min(LONGEST_BREAK, 2.0 ** (self.failures - 1))
        self._open_until = time.monotonic() + pause
        logger.warning(
            "the broker did not take a doorbell (%s: %s); none is rung for %d s, the tick finds the work",
            type(error).__name__, error, pause,
        )  # fmt: skip
        connection, self._connection = self._connection, None
        with suppress(Exception):
            connection.collapse() if hasattr(connection, "collapse") else connection.release()


_publisher = Publisher()


def flush(seconds: float = FLUSH_AT_EXIT) -> None:
    """Wait until the bells rung so far are published, or for so many seconds."""
    _publisher.flush(seconds)


def _renew() -> None:
    global _publisher
    _publisher = Publisher()  # threads and sockets do not survive a fork


os.register_at_fork(after_in_child=_renew)
atexit.register(flush)
