"""The project of errands as processes on a PostgreSQL: what is sent, who works, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.errands import witness
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0  # seconds

WITNESS = "witness"
MIGRATE = ("manage.py", "migrate", "-v0")
TICK = ("manage.py", "flows", "tick", "--loop", "--interval", "0.1")
CELERY = ("-m", "celery", "-A", "tests.chaos.errands", "worker", "-l", "warning")


class Project:
    """One database of the app with that of its witness, and processes that work on them."""

    def __init__(
        self, postgres: PostgresServer, name: str, directory: Path, **environment: str
    ) -> None:
        self.postgres = postgres
        self.name = name
        self.log = directory / f"{name}.log"
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.chaos.errands.settings",
            "PYTHONPATH": str(ROOT),
            "ERRANDS_HOST": postgres.host,
            "ERRANDS_PORT": str(postgres.port),
            "ERRANDS_USER": postgres.user,
            "ERRANDS_DATABASE": name,
            **environment,
        }
        self._connections: dict[str, psycopg.Connection] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def create(self) -> None:
        """Make the databases with their tables."""
        for name in (self.name, WITNESS):
            self._administer(f"CREATE DATABASE {name}")
            with psycopg.connect(self.postgres.dsn, dbname=name) as connection:
                connection.execute(witness.TABLE)
        self.run(*MIGRATE)

    @contextmanager
    def created(self) -> Iterator[Project]:
        """For the length of the block; after it nobody works any more."""
        try:
            self.create()
            yield self
        finally:
            self.close()

    def copy(self, name: str, directory: Path) -> Project:
        """The same project once more, and the same witness; nobody may work on this one meanwhile."""
        self._administer(f"CREATE DATABASE {name} TEMPLATE {self.name}")
        return Project(self.postgres, name, directory)

    def _administer(self, sql: str) -> None:
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute(sql.encode())

    # -- processes -------------------------------------------------------------------------

    def run(self, *command: str) -> None:
        """Run a command of Python's to its end."""
        subprocess.run([sys.executable, *command], env=self.environment, cwd=ROOT, check=True)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process, the leader of a group of its own."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**self.environment, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill -9 a process that was started here, with all its children."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._processes.remove(process)

    def close(self) -> None:
        """End what still works, and every connection from here."""
        for process in list(self._processes):
            self.kill(process)
        while self._connections:
            self._connections.popitem()[1].close()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-5000:] if self.log.exists() else ""

    # -- the books -------------------------------------------------------------------------

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the app's database."""
        return self._connected(self.name).execute(sql.encode()).fetchall()

    def execute(self, sql: str) -> None:
        """Change the app's database."""
        self._connected(self.name).execute(sql.encode())

    def seen(self, columns: str = "run::text, step") -> list[tuple[Any, ...]]:
        """What the witness has seen, in order."""
        sql = f"SELECT {columns} FROM effect WHERE project = '{self.name}' ORDER BY n"
        return self._connected(WITNESS).execute(sql.encode()).fetchall()

    def _connected(self, database: str) -> psycopg.Connection:
        if database not in self._connections:
            self._connections[database] = psycopg.connect(
                self.postgres.dsn, dbname=database, autocommit=True
            )
        return self._connections[database]

    def count(self, table: str) -> int:
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])

    def unfinished(self) -> dict[str, int]:
        """What is still to be done, of each kind of which there is something."""
        (row,) = self.query(
            "SELECT (SELECT count(*) FROM durable_flows_event WHERE routed_at IS NULL), "
            "(SELECT count(*) FROM durable_flows_due), "
            "(SELECT count(*) FROM durable_flows_wait WHERE settled_at IS NULL)"
        )
        return {kind: n for kind, n in zip(("events", "runs", "waits"), row, strict=True) if n}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Look until it is so; nobody waits longer than needed."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, (
                f"not within {PATIENCE} s: {what}; left {self.unfinished()}\n{self.said()}"
            )
            time.sleep(0.05)

    def check(self, trips: int) -> None:
        """Every errand of numbers below ``trips`` has come to its right end, once."""
        assert self.unfinished() == {}
        ends = Counter(
            self.query(
                "SELECT flow, state, coalesce(result, '') FROM durable_flows_run "
                "WHERE flow <> 'newcomer'"
            )
        )
        assert ends == expected_ends(trips)
        journeys = self.steps_of("journey")
        assert {keys[: len(ALONG)] for keys in journeys} == {ALONG}
        assert {frozenset(keys[len(ALONG) :]) for keys in journeys} == {TOGETHER}
        assert self.steps_of("broken") == {("work",)}
        assert {keys[-len(BACK) :] for keys in self.steps_of("voyage")} == {BACK}
        sent = dict(self.query("SELECT name, count(*) FROM durable_flows_event GROUP BY 1"))
        failed = self.query(
            "SELECT count(*), count(DISTINCT sender) FROM durable_flows_event "
            "WHERE name = 'flows/function.failed'"
        )
        failures = ends["broken", "completed", '"mended"'] + ends["voyage", "failed", ""]
        assert failed == [(failures,) * 2], "each is told of once"
        assert sent["trip/asked"] == sent["trip/answered"] == trips
        written = self.query("SELECT run, step, count(*) FROM effect GROUP BY 1, 2")
        assert {step for _, step, _ in written} == {"write"}
        assert [n for _, _, n in written] == [1] * trips, "an atomic step's effect is there once"

    def steps_of(self, flow: str) -> set[tuple[str, ...]]:
        rows = self.query(
            "SELECT array_agg(s.key ORDER BY s.seq) FROM durable_flows_step s "
            f"JOIN durable_flows_run r ON r.id = s.run_id WHERE r.flow = '{flow}' GROUP BY r.id"
        )
        return {tuple(keys) for (keys,) in rows}

    def repeated(self) -> Counter[tuple[str, str]]:
        """How often steps were done of which no record was kept: (run, step) → times.

        A step is done once for its record, once for each failed attempt that was recorded, and
        once for each generation of its run before this one.
        """
        rows = self.query(
            "SELECT s.run_id, s.key, 1 + r.generation + (SELECT count(*) "
            "FROM durable_flows_attempt a WHERE a.run_id = s.run_id AND a.key = s.key) "
            "FROM durable_flows_step s JOIN durable_flows_run r ON r.id = s.run_id "
            "WHERE s.kind = 'run' AND s.lease > 0 AND r.flow NOT IN ('mender', 'redoer')"
        )
        recorded = {(str(run), step): int(n) for run, step, n in rows}
        done = Counter((run, step) for run, step in self.seen() if step != "mended")
        assert all(done[step] >= n for step, n in recorded.items()), "what is recorded was done"
        cancelled = self.query("SELECT id::text FROM durable_flows_run WHERE state = 'cancelled'")
        unrecorded = done.keys() - recorded.keys()
        assert {(run,) for run, _ in unrecorded} <= set(cancelled), "the others came to their end"
        return Counter({step: n - recorded.get(step, 0) for step, n in done.items()})

    def in_hand(self, pids: Collection[int]) -> Counter[tuple[str, str]]:
        """What these processes did last: (run, step) → how many of them. Twins are done at once."""
        hands: dict[int, list[tuple[str, str]]] = {}
        for pid, run, step in self.seen("pid, run::text, step"):
            hand = hands.setdefault(pid, [])
            if {step, *(other for _, other in hand)} != TWINS:
                hand.clear()
            hand.append((run, step))
        return Counter(step for pid, hand in hands.items() if pid in pids for step in hand)


#: The steps of a journey: one after the other, and then those whose order is anybody's guess.
ALONG = ("pack", "falter", "ask", "answer", "rest", "silence", "write")
TWINS = {"fold", "parallel[1]/wash"}
TOGETHER = frozenset({*TWINS, "dry", "race[1]/evening", "race", "unpack"})
#: The last steps of a voyage.
BACK = ("sink", "saga#undo", "task[1]/hotel#undo", "task[1]/flight#undo")


def expected_ends(trips: int) -> Counter[tuple[Any, ...]]:
    """How the runs of errands of numbers below ``trips`` end."""
    ends = Counter[tuple[Any, ...]]()
    ends["called", "completed", "-1"] = 1 if trips else 0  # which all callers have joined
    for trip in range(trips):
        ends["heavy", "completed", "null"] += 1
        ends["journey", "completed", json.dumps(["done", trip, None], separators=(",", ":"))] += 1
        ends["voyage", "failed", ""] += 1
        ends["answerer", "completed", "null"] += 1
        ends["crowd", "completed", "true"] += 1
        ends["ringer", "completed", "null"] += 1
        ends["caller", "completed", f'[{trip},-1,"timeout"]'] += 1
        ends["called", "completed", str(trip)] += 4
        if trip % 2 == 0:
            ends["broken", "completed", '"mended"'] += 1
            ends["broken/on-failure", "completed", "null"] += 1
            ends["mender", "completed", "null"] += 1
            ends["asker", "completed", "true"] += 1
        else:
            ends["redone", "completed", str(trip)] += 2
            ends["redoer", "completed", "null"] += 1
            ends["superfluous", "cancelled", ""] += 1
        if trip % 3 == 0:
            ends["doomed", "cancelled", ""] += 1
            ends["late", "cancelled", ""] += 1
            ends["quitter", "cancelled", ""] += 1
            ends["lost", "cancelled", ""] += 1
    return ends
