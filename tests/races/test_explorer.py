"""The explorer tries what it should, and sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.db import connection

from durable_flows.engine import sql
from tests.races.company import Company
from tests.races.explorer import Explorer
from tests.races.scenario import Scenario, Twin, cutting
from tests.races.steps import Step, end_of, independent, statement

pytestmark = [pytest.mark.two_writers, pytest.mark.races]

Part = Callable[[Any], object]


@pytest.fixture
def toy(company: Company) -> Iterator[None]:
    """Two tables of a number each."""
    with connection.cursor() as cursor:
        for table in ("races_left", "races_right"):
            cursor.execute(f"CREATE TABLE {table} (number int)")
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE races_left, races_right")


def _reset() -> None:
    with connection.cursor() as cursor:
        for table in ("races_left", "races_right"):
            cursor.execute(f"DELETE FROM {table}; INSERT INTO {table} VALUES (0)")


def _numbers(_: object, __: Sequence[object]) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT l.number, r.number FROM races_left l, races_right r")
        return str(cursor.fetchone())


def _in_turn(*tables: str) -> Part:
    """Change these, one after the other, in one transaction."""

    def change(_: object) -> None:
        with sql.atomic():
            for table in tables:
                sql.execute(f"UPDATE races_{table} SET number = number + 1")

    return change


def _read_and_write(lock: str = "") -> Part:
    def add(_: object) -> None:
        with sql.atomic():
            ((number,),) = sql.execute(f"SELECT number FROM races_left {lock}")
            sql.execute("UPDATE races_left SET number = %(next)s", {"next": number + 1})

    return add


def _scenario(*parts: Part, holds: Callable[[Any, Sequence[Any]], str] = _numbers) -> Scenario:
    return Scenario(
        stage=_reset,
        actors=[(f"number {index}", part) for index, part in enumerate(parts)],
        holds=holds,
        twins=[],
    )


@pytest.mark.usefixtures("toy")
class TestToys:
    def test_all_merges_are_tried_and_of_those_that_nobody_can_tell_apart_one(
        self, company: Company
    ) -> None:
        explorer = Explorer(company, _scenario(_in_turn("left"), _in_turn("right")))
        assert explorer.all(reduced=False).schedules == 6  # 2 + 2 steps: 4! / 2! 2!
        assert explorer.all().schedules == 1

    def test_a_lost_update_is_found(self, company: Company) -> None:
        explorer = Explorer(company, _scenario(_read_and_write(), _read_and_write()))
        assert set(explorer.all().outcomes) == {"(1, 0)", "(2, 0)"}

    def test_and_none_where_a_lock_protects_from_it(self, company: Company) -> None:
        locked = _read_and_write("FOR UPDATE")
        found = Explorer(company, _scenario(locked, locked)).all()
        assert set(found.outcomes) == {"(2, 0)"}
        assert found.waits

    def test_a_deadlock_is_found(self, company: Company) -> None:
        crossed = _scenario(_in_turn("left", "right"), _in_turn("right", "left"))
        found = Explorer(company, crossed).all()
        assert {bad.why for bad in found.bad} == {"a deadlock"}
        assert found.outcomes["(2, 2)"]

    def test_and_none_where_locks_are_taken_in_one_order(self, company: Company) -> None:
        sorted_ = _scenario(_in_turn("left", "right"), _in_turn("left", "right"))
        assert not Explorer(company, sorted_).all().bad

    @pytest.mark.parametrize(
        "parts",
        [
            [_read_and_write(), _read_and_write("FOR UPDATE")],
            [_read_and_write(), _read_and_write(), _in_turn("left")],
            [_in_turn("left", "right"), _in_turn("right", "left")],
        ],
    )
    def test_what_can_come_out_of_all_merges_comes_out_of_those_that_are_tried(
        self, parts: list[Part], company: Company
    ) -> None:
        explorer = Explorer(company, _scenario(*parts))
        every, few = explorer.all(reduced=False), explorer.all()
        assert set(every.outcomes) == set(few.outcomes)
        assert {bad.why for bad in every.bad} == {bad.why for bad in few.bad}
        assert few.schedules < every.schedules

    def test_what_a_statement_alone_does_is_not_committed_in_the_same_moment(
        self, company: Company
    ) -> None:
        """Two workers' claims overlap in time, though each is one statement."""

        def add(_: object) -> None:
            sql.execute("UPDATE races_left SET number = number + 1")

        found = Explorer(company, _scenario(add, add)).all()
        assert found.waits
        assert set(found.outcomes) == {"(2, 0)"}

    def test_orders_drawn_by_chance_are_different_ones_and_the_same_from_one_seed(
        self, company: Company
    ) -> None:
        explorer = Explorer(company, _scenario(_read_and_write(), _read_and_write()))
        one, other = explorer.some(12, seed=1), explorer.some(12, seed=1)
        assert one.schedules == 12
        assert one.outcomes == other.outcomes

    def test_an_error_of_an_actor_is_one_of_its_schedule(self, company: Company) -> None:
        def fail(_: object) -> None:
            sql.execute("SELECT number FROM races_left")
            raise ValueError("no")

        found = Explorer(company, _scenario(fail, fail)).all()
        assert [bad.why for bad in found.bad] == ["number 0: ValueError: no"]

    def test_a_twin_that_breaks_nothing_is_an_error(self, company: Company) -> None:
        twin = Twin(without="what is not there", rewrite=cutting("FOR SHARE"))
        explorer = Explorer(company, _scenario(_in_turn("left"), _in_turn("left")), twin)
        with pytest.raises(AssertionError, match="nothing to break: what is not there"):
            explorer.all()


def test_a_statement_is_read_for_what_it_looks_at_locks_and_shows() -> None:
    text = (
        "WITH mine AS (SELECT 1 FROM durable_flows_due WHERE lease = 1 FOR SHARE) "
        "INSERT INTO durable_flows_step SELECT nextval('durable_flows_arrival') FROM mine"
    )
    step = statement(text)
    assert step.reads == {"durable_flows_due", "durable_flows_step", "durable_flows_arrival"}
    assert step.locks == {"durable_flows_due", "durable_flows_step"}
    assert step.shows == {"durable_flows_arrival"}


def test_a_locking_clause_of_an_alias_locks_that_table_alone() -> None:
    step = statement(
        "SELECT 1 FROM durable_flows_run r JOIN durable_flows_event e ON true FOR UPDATE OF r"
    )
    assert step.locks == {"durable_flows_run"}


def test_a_read_notices_a_commit_and_no_statement_before_it() -> None:
    read, write = statement("SELECT 1 FROM races_left"), statement("UPDATE races_left SET x = 1")
    assert independent(read, write)
    assert not independent(read, end_of("COMMIT", write.locks))
    assert not independent(write, write)
    assert independent(Step("a", reads=frozenset("x")), Step("b", reads=frozenset("x")))
