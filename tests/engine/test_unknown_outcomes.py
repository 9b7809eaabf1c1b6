"""A connection that breaks while something is written: nobody knows whether it was; then it is, once."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from django.db import connection
from django.test import override_settings

from durable_flows import Event, Fixed, Retries, Step, StepError, flow, send_signal
from durable_flows.engine import execute, ring, sql
from durable_flows.engine.route import route
from durable_flows.models import Due, Run
from durable_flows.models import Event as Stored
from durable_flows.testing import advance, run_of, send

pytestmark = [pytest.mark.two_writers, pytest.mark.django_db(transaction=True)]

READY = (
    b"Z\x00\x00\x00\x05"  # how an answer ends: the server has done what it was asked, and committed
)


class Proxy:
    """Stands between client and server, and breaks the connection once, at a chosen statement.

    Attributes:
        cut: whether it has.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._awaited: list[bytes] = []
        self._answered = False
        self.cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, texts: list[str], *, answered: bool) -> None:
        """Break at the last of these texts, once they were sent in this order.

        Args:
            texts: parts of statements.
            answered: let the server do it, and swallow its answer; otherwise it never hears of it.
        """
        self._awaited, self._answered = [text.encode() for text in texts], answered

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                swallow = threading.Event()
                for call in (self._ask, self._answer):
                    args = (client, server, swallow)
                    threading.Thread(target=call, args=args, daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self._is_time(data):
                    self.cut = True
                    if not self._answered:
                        break
                    swallow.set()
                server.sendall(data)
        _shut(client, server)

    def _answer(
        self, client: socket.socket, server: socket.socket, swallow: threading.Event
    ) -> None:
        answer = b""
        with suppress(OSError):
            while data := server.recv(65536):
                if not swallow.is_set():
                    client.sendall(data)
                    continue
                answer += data
                if READY in answer:
                    break
        _shut(client, server)

    def _is_time(self, data: bytes) -> bool:
        if not self._awaited or self._awaited[0] not in data:
            return False
        self._awaited.pop(0)
        return not self._awaited


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Between this thread's connection and the server."""
    place = connection.settings_dict
    before = {"HOST": place["HOST"], "PORT": place["PORT"]}
    proxy = Proxy(place["HOST"] or "127.0.0.1", int(place["PORT"]))
    connection.close()
    place.update(HOST="127.0.0.1", PORT=proxy.port)
    try:
        yield proxy
    finally:
        connection.close()
        place.update(before)
        proxy.close()


#: What is written → the statements after which, or at the last of which, the connection breaks.
WRITES = {
    "a step": ["INSERT INTO durable_flows_step"],
    "a step that sends, at its events": ["INSERT INTO durable_flows_event "],
    "a step that sends, at its record": [
        "INSERT INTO durable_flows_event ",
        "INSERT INTO durable_flows_step",
    ],
    "a step that sends, at its commit": ["INSERT INTO durable_flows_event ", "COMMIT"],
    "an attempt": ["INSERT INTO durable_flows_attempt"],
    "a signature": ["INSERT INTO durable_flows_signature"],
    "a wait": ["INSERT INTO durable_flows_wait"],
    "the end of a wait": ["INSERT INTO durable_flows_wait", "SET settled_at", "COMMIT"],
    "a suspension": ["CASE WHEN nudged"],
    "an end, in the middle": ["DELETE FROM durable_flows_due"],
    "an end, at its commit": ["DELETE FROM durable_flows_due", "COMMIT"],
}


def declare(calls: Counter[str]) -> None:
    def call(name: str) -> str:
        calls[name] += 1
        return name

    def ask() -> str:
        send("a/replied")
        route()
        return call("ask")

    def falter() -> str:
        if call("falter") and calls["falter"] == 1:
            raise ConnectionError("not yet")
        return "done"

    @flow("journey", on="a/began", retries=Retries(2, backoff=Fixed("10s")))
    def journey(step: Step) -> list[object]:
        step.run("charge", call, "charge")
        step.send_event("tell", Event("a/told"))
        step.run("ask", ask)
        reply = step.wait_for_event("reply", event="a/replied", timeout="1h")
        step.sleep("rest", "1h")
        return [step.run("falter", falter), reply is not None]


@pytest.mark.parametrize("answered", [False, True], ids=["not executed", "answer lost"])
@pytest.mark.parametrize("written", WRITES)
def test_what_got_no_answer_is_written_once_and_the_slice_goes_on(
    written: str, answered: bool, proxy: Proxy
) -> None:
    calls: Counter[str] = Counter()
    declare(calls)
    event = send("a/began")
    route()
    proxy.arm(WRITES[written], answered=answered)
    execute.drain(ring.default_queue())
    advance("2h")
    assert proxy.cut
    run = run_of(event)
    assert (run.state, run.result) == ("completed", ["done", True]), run
    assert calls == {"charge": 1, "ask": 1, "falter": 2}
    assert run.step_keys == ["charge", "tell", "ask", "reply", "rest", "falter"]
    assert run.attempts == {"falter": 1}
    assert Stored.objects.filter(name="a/told").count() == 1
    assert str(Stored.objects.get(name="a/told").pk) == run.step("tell").output[0]
    assert Run.objects.get(pk=run.id).lease == 3, "no slice lost its lease for it"


@pytest.mark.parametrize("answered", [False, True], ids=["not executed", "answer lost"])
def test_a_wait_for_a_signal_that_got_no_answer_is_not_taken_by_itself(
    answered: bool, proxy: Proxy
) -> None:
    @flow("asks", on="a/b")
    def asks(step: Step) -> str:
        found = step.wait_for_signal("door", "door", timeout="1h")
        return "timeout" if found is None else "opened"

    event = send("a/b")
    route()
    proxy.arm(WRITES["a wait"], answered=answered)
    execute.drain(ring.default_queue())
    assert proxy.cut
    assert run_of(event).activity == "waiting"
    send_signal("door")
    advance("1m")
    assert run_of(event).result == "opened"


def test_a_backend_that_is_terminated_costs_a_new_connection_and_nothing_else() -> None:
    calls: Counter[str] = Counter()
    declare(calls)
    event = send("a/began")
    route()
    with terminated_at("INSERT INTO durable_flows_step") as done:
        execute.drain(ring.default_queue())
    assert done
    assert calls["charge"] == 1
    advance("2h")
    assert run_of(event).state == "completed"
    assert Run.objects.get(pk=run_of(event).id).lease == 3


@contextmanager
def terminated_at(statement: str) -> Iterator[list[int]]:
    """The server ends the connection's backend, just before the statement is sent."""
    done: list[int] = []

    def terminate(text: str) -> None:
        if statement in text and not done:
            done.append(connection.connection.info.backend_pid)
            place = connection.get_connection_params()
            parameters = {name: place[name] for name in ("dbname", "user", "host", "port")}
            with psycopg.connect(**parameters) as other:
                other.execute("SELECT pg_terminate_backend(%s)", done)

    sql.observers.append(terminate)
    try:
        yield done
    finally:
        sql.observers.remove(terminate)


@override_settings(DURABLE_FLOWS={"RING": "off", "LEASE_SECONDS": 0.3})
def test_a_slice_gives_up_when_its_lease_is_over_and_tells_the_handler_nothing() -> None:
    seen: list[type[BaseException]] = []
    gone = [True]

    def refuse(text: str) -> None:
        if gone and "INSERT INTO durable_flows_step" in text:
            connection.close()
            raise psycopg.OperationalError("still gone")

    @flow("stubborn", on="a/b")
    def stubborn(step: Step) -> str:
        try:
            return step.run("x", lambda: "done")
        except (StepError, Exception) as error:
            seen.append(type(error))
            raise

    event = send("a/b")
    route()
    sql.observers.append(lambda text: translated(refuse, text))
    try:
        execute.drain(ring.default_queue())
    finally:
        sql.observers.pop()
    assert run_of(event).activity == "running"
    assert not seen
    gone.clear()
    advance("1m")
    assert run_of(event).result == "done"
    assert Due.objects.count() == 0


def translated(call: object, text: str) -> None:
    """As Django's own cursor would say it."""
    with connection.wrap_database_errors:
        call(text)  # type: ignore[operator]
