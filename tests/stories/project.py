"""The example project as a team runs it: real commands, on a database of its own."""

from __future__ import annotations

import http.cookiejar
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 40.0
DEAD_BROKER = "redis://127.0.0.1:1/0"


class Project:
    """Commands of the example project, with a scratch database and mail folder.

    Attributes:
        environment: what its processes see.
        mails: the folder of sent mails.
    """

    def __init__(self, directory: Path, database: dict[str, str]) -> None:
        self.mails = directory / "mails"
        strange = ("EXAMPLE_", "DURABLE_FLOWS_", "DJANGO_", "CELERY_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(strange)}
        self.environment = {
            **inherited,
            **database,
            "EXAMPLE_MAIL_DIR": str(self.mails),
            # Whoever needs no broker shall not miss this one.
            "CELERY_BROKER_URL": DEAD_BROKER,
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a management command to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def migrate(self) -> None:
        done = self.run("migrate", "-v0")
        assert done.returncode == 0, done.stderr

    def send(self, name: str, data: dict[str, Any], user: dict[str, Any]) -> None:
        """Send an event from yet another process."""
        code = f"from durable_flows import send; send({name!r}, {data!r}, user={user!r})"
        done = self.run("shell", "-c", code, CELERY_BROKER_URL="memory://")
        assert done.returncode == 0, done.stderr

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[Process]:
        """A management command that runs by the side of the block, in a process group of its own."""
        process = Process(arguments, self.environment | environment)
        try:
            yield process
        finally:
            process.kill()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What is committed in the database."""
        if "EXAMPLE_SQLITE" in self.environment:
            with closing(sqlite3.connect(self.environment["EXAMPLE_SQLITE"])) as connection:
                return connection.execute(sql).fetchall()
        with psycopg.connect(_dsn(self.environment)) as connection:
            return connection.execute(sql.encode()).fetchall()

    def run_states(self) -> list[tuple[str, str]]:
        return self.rows("SELECT flow, state FROM durable_flows_run ORDER BY id")


class Process:
    """A command under way, and what it has said so far."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self._said = Path(environment["EXAMPLE_MAIL_DIR"]).parent / f"said-{secrets.token_hex(4)}"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "manage.py", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something that the process is to bring about."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self._process.poll() is None, f"it has ended, without {what}:\n{self.said}"
            assert time.monotonic() < deadline, f"no {what} after {SECONDS:g} s:\n{self.said}"
            time.sleep(0.05)

    def press_ctrl_c(self) -> int:
        """As a terminal does: SIGINT to the whole group. Returns the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(SECONDS)

    def terminate(self) -> int:
        """As a service manager does: SIGTERM to the process. Returns the exit code."""
        self._process.terminate()
        return self._process.wait(SECONDS)

    def kill(self) -> None:
        """Leave nothing of the group behind."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()

    def has_children(self) -> bool:
        """Whether anything of the group is left."""
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class Browser:
    """A visitor of the shop, over HTTP."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._jar))

    def get(self, path: str) -> str:
        with self._opener.open(self._base + path, timeout=SECONDS) as response:
            return str(response.read().decode())

    def post(self, path: str, **facts: str) -> str:
        """Send a form, follow the redirect, and return the page."""
        token = next(cookie.value for cookie in self._jar if cookie.name == "csrftoken")
        body = urllib.parse.urlencode({"csrfmiddlewaretoken": token or "", **facts}).encode()
        with self._opener.open(self._base + path, body, timeout=SECONDS) as response:
            return str(response.read().decode())

    def answers(self) -> bool:
        try:
            self.get("/")
        except OSError:
            return False
        return True


@contextmanager
def scratch_project(directory: Path) -> Iterator[Project]:
    """The example project on an empty database of the kind that the suite runs on."""
    if os.environ.get("DURABLE_FLOWS_TEST_DATABASE") != "postgres":
        yield Project(directory, {"EXAMPLE_SQLITE": str(directory / "shop.sqlite3")})
        return
    variable = "DURABLE_FLOWS_TEST_POSTGRES_"
    server = {
        f"EXAMPLE_PG{name}": os.environ.get(variable + name, "")
        for name in ("HOST", "PORT", "USER", "PASSWORD")
    }
    database = f"shop_{secrets.token_hex(4)}"
    with psycopg.connect(_dsn(server, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
        yield Project(directory, {**server, "EXAMPLE_PGDATABASE": database})
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)".encode())


def _dsn(environment: dict[str, str], database: str = "") -> str:
    dbname = database or environment["EXAMPLE_PGDATABASE"]
    parts = {name: environment[f"EXAMPLE_PG{name.upper()}"] for name in ("host", "port", "user")}
    if password := environment["EXAMPLE_PGPASSWORD"]:
        parts["password"] = password
    return psycopg.conninfo.make_conninfo("", dbname=dbname, **parts)
