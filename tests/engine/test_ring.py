"""Doorbells never fail and never delay their ringer, whatever state the broker is in."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from celery import Celery, current_app
from django.test import override_settings

from durable_flows.engine import ring
from durable_flows.engine.ring import Bell, Publisher
from durable_flows.models import Event as Stored
from durable_flows.rules import clock
from durable_flows.testing import send

BELL = Bell(ring.ROUTE, "some-queue")


@contextmanager
def app_with(broker: str) -> Iterator[Celery]:
    """Make an app with this broker the current one."""
    before = current_app._get_current_object()  # type: ignore[attr-defined]
    app = Celery("ring-tests", broker=broker)
    app.set_default()
    app.set_current()
    try:
        yield app
    finally:
        app.close()
        before.set_default()
        before.set_current()


@contextmanager
def frozen_broker() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as server:
        yield server


def url(server: socket.socket) -> str:
    return f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def messages(app: Celery, queue: str) -> int:
    with app.connection_for_read() as connection, connection.channel() as channel:
        return int(channel._size(queue))  # type: ignore[attr-defined]


def test_a_bell_is_taken_at_once_though_the_broker_is_frozen() -> None:
    publisher = Publisher()
    with frozen_broker() as server, app_with(url(server)):
        publisher.put(BELL)
        publisher.flush(0.05)
        assert publisher.busy  # still trying, while the ringer has long gone on
    publisher.flush(10)
    assert not publisher.busy


def test_after_a_failure_bells_are_dropped_for_a_while_and_the_broker_is_left_alone() -> None:
    publisher = Publisher()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        nobody = url(server)
    with app_with(nobody):
        publisher.publish([BELL])
        assert publisher.circuit_is_open
        publisher.publish([BELL])
    assert publisher.failures == 1


def test_bells_that_are_rung_while_others_are_published_are_coalesced() -> None:
    publisher = Publisher()
    with app_with("memory://") as app:
        with publisher._changed:  # the publishing thread cannot begin before this ends
            for _ in range(10):
                publisher.put(BELL)
                publisher.put(Bell(ring.DRAIN, "some-queue"))
        publisher.flush(10)
        assert messages(app, "some-queue") == 2


@pytest.mark.django_db(transaction=True)
def test_sending_an_event_neither_fails_nor_waits_when_the_broker_is_away() -> None:
    with (
        frozen_broker() as server,
        app_with(url(server)),
        override_settings(DURABLE_FLOWS={"RING": "thread"}),
    ):
        send("a/b")
        assert ring._publisher.busy
    ring.flush(10)
    assert Stored.objects.get().name == "a/b"


def test_a_moment_after_the_next_tick_is_left_to_the_ticks_to_come() -> None:
    with app_with("memory://") as app, override_settings(DURABLE_FLOWS={"RING": "inline"}):
        ring.drain_at("far-queue", clock.now() + clock.real(3600))
        assert messages(app, "far-queue") == 0
        ring.drain_at("near-queue", clock.now() + clock.real(2))
        assert messages(app, "near-queue") == 1


def test_a_forked_child_has_a_publisher_of_its_own() -> None:
    before = ring._publisher
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"new" if ring._publisher is not before else b"old")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 3) == b"new"
    os.close(read)
    os.close(write)
