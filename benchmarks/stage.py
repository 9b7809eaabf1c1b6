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

import django
from django.core.management import call_command

from tests.servers import postgres_server, redis_server

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 30


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
        yield postgres.dsn


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
