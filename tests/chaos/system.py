"""What a team runs: PostgreSQL, Redis, a web server, Celery workers and beat, each a real process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from durable_flows.rules import clock
from tests.chaos import ledger
from tests.servers import PostgresServer, RedisServer, free_port, postgres_server, redis_server

ROOT = Path(__file__).parents[2]
PATIENCE = 150.0  # seconds


class System:
    """Everything that a team runs, each part a process group of its own."""

    def __init__(
        self, directory: Path, postgres: PostgresServer, broker: RedisServer, speed: float
    ) -> None:
        self.directory = directory
        self.postgres = postgres
        self.broker = broker
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "PYTHONPATH": str(ROOT),
            "EXAMPLE_PGHOST": postgres.host,
            "EXAMPLE_PGPORT": str(postgres.port),
            "EXAMPLE_PGUSER": postgres.user,
            "EXAMPLE_PGDATABASE": postgres.dbname,
            "CELERY_BROKER_URL": f"redis://{broker.host}:{broker.port}/0",
            ledger.PLACE: str(directory),
            clock.VARIABLE: f"{time.time()!r}:{speed!r}",
        }

    def run(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", *arguments], env=self.environment, cwd=ROOT, check=True
        )

    def run_python(self, code: str) -> None:
        subprocess.run([sys.executable, "-c", code], env=self.environment, cwd=ROOT, check=True)

    def start(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_worker(self, name: str) -> None:
        self.start(
            name,
            *("celery", "-A", "example_project", "worker", "-c", "2", "-n", f"{name}@%h"),
            *("--without-gossip", "--without-mingle", "-l", "info"),
        )

    def start_web(self) -> None:
        self.start(
            "web",
            *("gunicorn", "example_project.wsgi", "-w", "2", "--threads", "2"),
            *("-b", f"127.0.0.1:{self.port}"),
        )

    def start_beat(self) -> None:
        self.start("beat", "celery", "-A", "example_project", "beat")

    def kill(self, name: str) -> None:
        part = self.parts.pop(name)
        os.killpg(part.pid, signal.SIGKILL)
        part.wait()

    def stop(self) -> None:
        for part in self.parts.values():
            part.terminate()
        for part in self.parts.values():
            try:
                part.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(part.pid, signal.SIGKILL)
                part.wait()
        self.parts.clear()

    def clear(self) -> None:
        """Forget all events and runs, and what the broker has."""
        with psycopg.connect(self.postgres.dsn) as connection:
            found = connection.execute(
                "SELECT tablename FROM pg_tables WHERE tablename LIKE 'durable_flows_%'"
            )
            tables = ", ".join(name for (name,) in found.fetchall())
            connection.execute(f"TRUNCATE {tables}".encode())
        self.broker.restart()

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.postgres.dsn) as connection:
            return connection.execute(sql).fetchall()

    def count(self, sql: str) -> int:
        return int(str(self.query(f"SELECT count(*) FROM {sql}")[0][0]))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Look until it is so; nobody waits longer than needed."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"not within {PATIENCE} s: {what}\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.directory.glob("*.log")
        )


@contextlib.contextmanager
def running(directory: Path, *, speed: float) -> Iterator[System]:
    """A database with its tables and a broker; nothing else is started yet."""
    with postgres_server() as postgres, redis_server() as broker:
        system = System(directory, postgres, broker, speed)
        system.run("migrate", "-v0")
        try:
            yield system
        finally:
            system.stop()
