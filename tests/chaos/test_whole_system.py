"""The whole system with real parts: PostgreSQL, Redis, gunicorn, two Celery workers and beat."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import requests

from tests.chaos import ledger
from tests.chaos.system import System, running

SPEED = 1800.0  # a day is 48 seconds
HELD = "held@example.com"
PRODUCT = "stoneware-mug"

pytestmark = [pytest.mark.processes, pytest.mark.two_writers]


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
    with running(tmp_path, speed=SPEED) as system:
        system.start_web()
        system.start_worker("first")
        system.start_worker("second")
        system.start_beat()
        system.until(lambda: answers(system.url), "the shop answers")
        yield system


def answers(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError, requests.Timeout):
        return requests.get(url, timeout=5).ok
    return False


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

    system.until(lambda: in_hand(system) is not None, "a worker is in the held step")
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

    system.until(lambda: system.count("durable_flows_due") == 0, "every run has ended")
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
