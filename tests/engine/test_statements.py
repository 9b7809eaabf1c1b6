"""A step costs one statement and one commit: counted where the database is spoken to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from durable_flows import Step, flow
from durable_flows.engine import clocksync, execute, ring, sql, stored
from durable_flows.engine.route import route
from durable_flows.rules import clock
from durable_flows.testing import advance, drain, run_of, send
from tests.wire import Wire, traced

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_minute_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is not asked for the time in between."""
    monkeypatch.setattr(clocksync, "SAMPLE_SECONDS", math.inf)


def told(steps: int) -> Wire:
    """What the database is told to execute a run of so many steps, from its claim to its end."""

    @flow(f"steps-{steps}", on=f"steps/{steps}")
    def some(step: Step) -> None:
        for number in range(steps):
            step.run(f"s{number}", int)

    event = send(f"steps/{steps}")
    route()
    with counted() as wire:
        execute.drain(ring.default_queue())
    assert len(run_of(event).steps) == steps
    return wire


@contextmanager
def counted() -> Iterator[Wire]:
    if connection.vendor == "postgresql":
        with traced(connection) as wire:
            yield wire
        return
    wire = Wire()
    statements: list[str] = []
    connection.ensure_connection()
    connection.connection.set_trace_callback(statements.append)
    try:
        yield wire
    finally:
        connection.connection.set_trace_callback(None)
    # Outside BEGIN … COMMIT each statement is a transaction of its own.
    inside = 0
    for statement in statements:
        wire.statements += 1
        inside += statement.startswith("BEGIN")
        inside -= statement.startswith("COMMIT")
        wire.commits += not inside


def test_a_step_is_one_statement_and_one_commit() -> None:
    told(3)  # what is sent once in the life of a connection is not a step's
    few, many = told(10), told(30)
    assert many.statements - few.statements == 20
    assert many.commits - few.commits == 20


def told_at_replay(steps: int) -> Wire:
    """The same for a slice that replays so many steps, and then ends."""

    @flow(f"resumed-{steps}", on=f"resumed/{steps}")
    def some(step: Step) -> None:
        for number in range(steps):
            step.run(f"s{number}", int)
        step.sleep("rest", "1h")

    event = send(f"resumed/{steps}")
    drain()
    advance("1h", play=False)
    with counted() as wire:
        execute.drain(ring.default_queue())
    assert run_of(event).state == "completed"
    return wire


def test_a_replay_costs_the_same_statements_however_much_is_recorded() -> None:
    told_at_replay(1)
    few, many = told_at_replay(3), told_at_replay(30)
    assert many == few


@pytest.mark.two_writers
def test_plans_of_statements_on_many_rows_are_kept_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kept() -> int:
        for _ in range(sql.PREPARE_AFTER + 1):
            stored.any_unrouted(clock.now())
        rows = sql.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE %(text)s",
            {"text": "SELECT true FROM durable_flows_event%"},
        )
        return int(rows[0][0])

    connection.close()
    assert kept() == 1
    monkeypatch.setattr(sql, "PLAN_SECONDS", 1e6)  # another period
    assert kept() == 2
    connection.close()
    monkeypatch.setattr(sql, "PLAN_SECONDS", 1e-9)  # each execution is in one of its own
    assert kept() == 0
