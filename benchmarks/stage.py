"""What the questions are asked on: servers of our own, and Django on top of them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import django
import psycopg
from django.core.management import call_command

from tests.servers import postgres_server, redis_server

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 30
EMPTY, CROWDED = "default", "crowded"  # the aliases of two databases with the same tables
NOTHING_LEFT = (
    "NOT EXISTS (SELECT 1 FROM durable_flows_event WHERE routed_at IS NULL) "
    "AND NOT EXISTS (SELECT 1 FROM durable_flows_due)"
)


@contextmanager
def stage(*, broker: bool) -> Iterator[str]:
    """Start PostgreSQL, and Redis if a broker is wanted, with default durability; prepare Django.

    To be entered once in a process: Django is set up once.

    Yields:
        The conninfo of the database, which has the app's tables.
    """
    with ExitStack() as servers:
        postgres = servers.enter_context(postgres_server())
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            "BENCHMARKS_POSTGRES_HOST": postgres.host,
            "BENCHMARKS_POSTGRES_PORT": str(postgres.port),
            "BENCHMARKS_POSTGRES_USER": postgres.user,
            "BENCHMARKS_POSTGRES_NAME": postgres.dbname,
        }
        if broker:
            os.environ["BENCHMARKS_BROKER"] = servers.enter_context(redis_server()).url
        # Before Django, as Celery asks: it becomes the application through which bells are rung.
        importlib.import_module("benchmarks.celery")
        django.setup()
        call_command("migrate", verbosity=0)
        _copy_database(postgres.dsn)
        yield postgres.dsn


def _copy_database(conninfo: str) -> None:
    """Make the second database, like the first; nobody may be connected to that meanwhile."""
    from django.db import connections

    connections.close_all()
    source, copy = (connections[alias].settings_dict["NAME"] for alias in (EMPTY, CROWDED))
    with psycopg.connect(conninfo, dbname="template1", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{source}"')


def clear(*aliases: str) -> None:
    """Empty the app's tables in these databases; default both."""
    from django.apps import apps
    from django.db import connections

    models = apps.get_app_config("durable_flows").get_models()
    tables = ", ".join(model._meta.db_table for model in models)
    for alias in aliases or (EMPTY, CROWDED):
        with connections[alias].cursor() as cursor:
            cursor.execute(f"TRUNCATE {tables}")


def finish_filling(alias: str) -> None:
    """Let the database come to rest after many rows were written: what autovacuum would do later."""
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")


@contextmanager
def alone(database: str = EMPTY, **others: Any) -> Iterator[None]:
    """Let the engine work in this process and on this database: no bell is rung, nobody comes to help.

    Args:
        database: the alias.
        others: further settings of the app.
    """
    from django.conf import settings
    from django.test import override_settings

    changed = {"RING": "off", "DATABASE": database, **others}
    with override_settings(DURABLE_FLOWS={**settings.DURABLE_FLOWS, **changed}):
        yield


@contextmanager
def snapshot(alias: str) -> Iterator[None]:
    """Hold a snapshot of this database open, as a dump or a long report does."""
    from django.db import connections

    parameters = connections[alias].get_connection_params()
    parameters = {name: parameters[name] for name in ("host", "port", "user", "dbname")}
    with psycopg.connect(**parameters) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM durable_flows_due")
        yield


@contextmanager
def worker(processes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Celery worker with a prefork pool, as a team would start it, in a process of its own."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "--app", "benchmarks.celery", "worker"]
            + ["--pool", "prefork", "--concurrency", str(processes), "--loglevel", "WARNING"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(condition: str, *, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask the database every 10 ms until the SQL condition holds.

    Raises:
        RuntimeError: the process has ended, or the time is over.
    """
    from django.db import connection

    until = time.monotonic() + seconds
    with connection.cursor() as cursor:
        while True:
            cursor.execute(f"SELECT {condition}")
            if cursor.fetchone()[0]:
                return
            if process.poll() is not None:
                raise RuntimeError(f"the worker has ended with status {process.returncode}")
            if time.monotonic() > until:
                raise RuntimeError(f"after {seconds} s there is still no end: NOT {condition}")
            time.sleep(0.01)
