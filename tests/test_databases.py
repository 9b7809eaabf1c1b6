"""The suite runs on the database that was asked for, and says what it left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.django_db(transaction=True)
def test_the_database_is_the_one_asked_for() -> None:
    asked = os.environ.get("DURABLE_FLOWS_TEST_DATABASE") or "sqlite"
    assert connection.vendor == {"sqlite": "sqlite", "postgres": "postgresql"}[asked]
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA journal_mode")
            assert cursor.fetchone() == ("wal",)
            assert connection.settings_dict["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
        else:
            cursor.execute("SHOW transaction_isolation")
            assert cursor.fetchone() == ("read committed",)


@pytest.mark.two_writers
@pytest.mark.django_db(transaction=True)
def test_two_writer_tests_run_on_postgresql() -> None:
    assert connection.vendor == "postgresql"


@pytest.mark.parametrize("processes", ["0", "2"])
def test_two_writer_tests_are_counted_where_they_are_left_out(
    processes: str, tmp_path: Path
) -> None:
    (tmp_path / "test_example.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.two_writers\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_left_out(n):\n"
        "    raise AssertionError\n\n"
        "def test_stays():\n"
        "    pass\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DURABLE", "PYTEST"))}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", processes]
        + ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 two-writer tests run on PostgreSQL only" in result.stdout
    assert "1 passed" in result.stdout
