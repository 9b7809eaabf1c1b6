"""The whole system with real parts: PostgreSQL, Redis, gunicorn, two Celery workers and beat."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import requests

from durable_flows.rules import clock
from tests.chaos import ledger
from tests.servers import PostgresServer, RedisServer, free_port, postgres_server, redis_server

ROOT = Path(__file__).parents[2]
SPEED = 1800.0  # a day is 48 seconds
PATIENCE = 150.0  # seconds
HELD = "held@example.com"
PRODUCT = "stoneware-mug"

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]


class System:
    """Everything that a team runs, each part a process group of its own."""

    def __init__(self, directory: Path, postgres: PostgresServer, broker: RedisServer) -> None:
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
            clock.VARIABLE: f"{time.time()!r}:{SPEED!r}",
        }

    def run(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", *arguments], env=self.environment, cwd=ROOT, check=True
        )

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

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.postgres.dsn) as connection:
            return connection.execute(sql).fetchall()

    def count(self, sql: str) -> int:
        return int(str(self.query(f"SELECT count(*) FROM {sql}")[0][0]))

    def log(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.directory.glob("*.log")
        )


class Visitor:
    """Somebody with a browser."""

    def __init__(self, url: str, email: str) -> None:
        self.url = url
        self.email = email
        self.session = requests.Session()

    def post(self, path: str, **fields: str) -> None:
        if "csrftoken" not in self.session.cookies:
            self.session.get(f"{self.url}/sign-up/")
        response = self.session.post(
            self.url + path,
            data={**fields, "csrfmiddlewaretoken": self.session.cookies["csrftoken"]},
            allow_redirects=False,
        )
        assert response.status_code == 302, (path, response.status_code, response.text[:2000])

    def add_to_cart(self) -> None:
        self.post(f"/cart/add/{PRODUCT}/", email=self.email)

    def check_out(self) -> None:
        self.post("/check-out/", email=self.email)

    def sign_up(self) -> None:
        self.post("/sign-up/", name="Somebody", email=self.email, password="six-wool-blankets")

    def write_post(self) -> None:
        self.post("/posts/new/", title="A first post", body="With something in it.")


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with postgres_server() as postgres, redis_server() as broker:
        running = System(tmp_path, postgres, broker)
        running.run("migrate", "-v0")
        try:
            running.start(
                "web",
                *("gunicorn", "example_project.wsgi", "-w", "2", "--threads", "2"),
                *("-b", f"127.0.0.1:{running.port}"),
            )
            running.start_worker("first")
            running.start_worker("second")
            running.start("beat", "celery", "-A", "example_project", "beat")
            until(lambda: answers(running.url), "the shop answers", running)
            yield running
        finally:
            running.stop()


def answers(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(url, timeout=5).ok
    return False


def until(condition: Callable[[], bool], what: str, system: System) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}\n{system.log()}"
        time.sleep(0.05)


def test_a_killed_worker_and_a_flushed_redis_lose_nothing_and_repeat_only_the_step_in_hand(
    system: System,
) -> None:
    shoppers = [Visitor(system.url, f"shopper{n}@example.com") for n in range(100)]
    members = [Visitor(system.url, f"member{n}@example.com") for n in range(99)]
    for shopper in shoppers:
        shopper.add_to_cart()
    for member in members:
        member.sign_up()
    (system.directory / "hold").write_text(HELD)
    held = Visitor(system.url, HELD)
    held.sign_up()
    members.append(held)

    until(lambda: in_hand(system) is not None, "a worker is in the middle of the held step", system)
    assert system.count("durable_flows_due") == 200
    killed = kill_the_worker_of(in_hand(system), system)
    redis.Redis(host=system.broker.host, port=system.broker.port).flushall()
    (system.directory / "hold").unlink()
    system.start_worker("third")

    buyers, authors = shoppers[:50], members[:50]
    for buyer in buyers:
        buyer.check_out()
    for author in authors:
        author.write_post()

    until(lambda: system.count("durable_flows_due") == 0, "every run has ended", system)
    assert dict(system.query("SELECT state, count(*) FROM durable_flows_run GROUP BY 1")) == {
        "completed": 200
    }
    by_subject = delivered(system)
    assert [len(to) for to in by_subject.values()] == [100, 50, 50], by_subject.keys()
    welcome, *reminders = by_subject.values()
    assert welcome == {member.email for member in members}
    assert {frozenset(to) for to in reminders} == {
        frozenset(s.email for s in shoppers if s not in buyers),
        frozenset(m.email for m in members if m not in authors),
    }
    explained = {(line.to, line.subject) for line in killed}
    assert {repeated for repeated, n in begun(system).items() if n > 1} <= explained
    assert max(begun(system).values()) == 2
    assert begun(system)[next(key for key in begun(system) if key[0] == HELD)] == 2


def in_hand(system: System) -> ledger.Line | None:
    """The held delivery that has begun."""
    found = [line for line in ledger.lines(system.directory) if line.to == HELD]
    return found[0] if found else None


def kill_the_worker_of(line: ledger.Line | None, system: System) -> list[ledger.Line]:
    """Kill -9 the worker with all its processes. Returns the last delivery that each had begun."""
    assert line is not None
    group = os.getpgid(line.pid)
    name = next(name for name, part in system.parts.items() if part.pid == group)
    pids = set(children(group))
    system.kill(name)
    last = {entry.pid: entry for entry in ledger.lines(system.directory) if entry.pid in pids}
    return list(last.values())


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(found) for found in re.findall(r"\d+", listed.stdout)]


def delivered(system: System) -> dict[str, set[str]]:
    """Subject → addresses, the most frequent first."""
    found: dict[str, set[str]] = {}
    for line in ledger.lines(system.directory):
        if line.what == "end":
            found.setdefault(line.subject, set()).add(line.to)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def begun(system: System) -> Counter[tuple[str, str]]:
    return Counter(
        (line.to, line.subject) for line in ledger.lines(system.directory) if line.what == "begin"
    )
