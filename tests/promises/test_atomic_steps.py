"""Atomic steps: what they write to the database and their record are one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import DatabaseError, IntegrityError, OperationalError, connection, transaction

from durable_flows import Retries, StepError, cancel, flow, send
from durable_flows.models import Due
from durable_flows.testing import advance, crash_after, crash_at, drain
from tests.promises.staging import again, once_at, played, stored

pytestmark = pytest.mark.django_db

ALONE = pytest.mark.django_db(transaction=True)  # commits are real


def groups() -> list[str]:
    return list(Group.objects.order_by("name").values_list("name", flat=True))


def booking(work, **options: Any) -> None:
    """A flow of one atomic step and another after it."""

    @flow("booking", on="go", **options)
    def handler(step):
        return [step.run("book", work, atomic=True), step.run("after", lambda: "after")]


def book(name: str = "booked") -> str:
    Group.objects.create(name=name)
    return name


# -- both or neither -------------------------------------------------------------------------


def test_an_atomic_step_writes_and_is_recorded():
    booking(book)
    assert played().result == ["booked", "after"]
    assert groups() == ["booked"]


def test_an_atomic_step_as_decorator():
    @flow("booking", on="go")
    def handler(step):
        @step.run("book", atomic=True)
        def booked():
            return book() and connection.in_atomic_block

        return booked

    assert played().result is True
    assert groups() == ["booked"]


@pytest.mark.parametrize("place", ["step_ran", "before_atomic_commit", "step_recorded"])
@pytest.mark.parametrize("transactional", [pytest.param(True, marks=ALONE), False])
def test_whenever_the_worker_dies_its_writes_are_there_once(place, transactional):
    calls: Counter[str] = Counter()

    def work():
        calls["book"] += 1
        Group.objects.create(name=f"booked {calls['book']}")

    booking(work)
    with crash_at(place, "book") as crash:
        run = played()
    assert crash.happened
    assert len(groups()) == (place == "step_recorded")
    drain()
    assert again(run).result == [None, "after"]
    assert len(groups()) == 1


def test_other_steps_write_again_after_the_same_death():
    """The test above would pass with any step if this did not write twice."""
    flow("plain", on="go")(lambda step: step.run("book", lambda: Group.objects.create().pk))
    with crash_after("book", recorded=False):
        played()
    Group.objects.update(name="first")
    drain()
    assert groups() == ["", "first"]


def test_a_failure_rolls_back_what_was_written_and_is_an_attempt():
    calls: Counter[str] = Counter()

    def work():
        calls["book"] += 1
        book(f"booked {calls['book']}")
        if calls["book"] < 3:
            raise ConnectionError("not yet")

    booking(work, retries=2)
    run = played()
    assert (groups(), again(run).attempts) == ([], {"book": 1})
    advance("1h")
    assert again(run).state == "completed"
    assert groups() == ["booked 3"]
    assert again(run).attempts == {"book": 2}


def test_a_step_that_fails_for_good_leaves_nothing_but_its_error():
    def work():
        book()
        raise ValueError("sold out")

    booking(work, retries=0)
    run = played()
    assert (run.state, run.error["message"], groups()) == ("failed", "sold out", [])


def test_a_result_that_cannot_be_stored_rolls_back_and_fails_at_once():
    booking(lambda: book() and {1, 2})
    run = played()
    assert (run.state, run.error["name"]) == ("failed", "UnserialisableResult")
    assert (groups(), run.attempts) == ([], {})


def test_a_result_for_which_there_is_no_room_rolls_back(settings):
    settings.DURABLE_FLOWS = {"MAX_RUN_BYTES": 100}
    booking(lambda: book() and "x" * 200)
    run = played()
    assert (run.state, run.error["name"], groups()) == ("failed", "LimitExceeded", [])


def test_an_error_of_the_database_is_the_functions_own():
    calls: Counter[str] = Counter()

    def work():
        calls["book"] += 1
        if calls["book"] == 1:
            raise OperationalError("deadlock detected")
        if calls["book"] == 2:
            book("twin")
            book("twin")
        book()

    booking(work)
    run = played()
    advance("1h")
    assert (again(run).state, again(run).attempts, groups()) == (
        "completed",
        {"book": 2},
        ["booked"],
    )


def test_a_transaction_that_the_function_left_broken_is_its_failure():
    def work():
        book()
        transaction.set_rollback(True)

    booking(work, retries=0)
    run = played()
    assert (run.state, run.error["name"]) == ("failed", "TransactionManagementError")
    assert groups() == []


def test_an_error_that_the_function_swallowed_without_a_savepoint_fails_it_too():
    def work():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT no_such_column")
        except DatabaseError:
            return book()
        raise AssertionError("that column exists")

    booking(work, retries=0)
    run = played()
    if connection.vendor == "postgresql":  # it breaks the transaction there
        assert (run.state, groups()) == ("failed", [])
    else:
        assert (run.state, groups()) == ("completed", ["booked"])


@ALONE
def test_a_constraint_that_is_checked_at_the_commit_fails_the_step():
    def work():
        Permission.objects.create(name="x", codename="x", content_type_id=10**6)

    booking(work, retries=Retries(1))
    run = played()
    assert again(run).attempts == {"book": 1}
    advance("1h")
    assert again(run).state == "failed"
    assert again(run).error["name"] == IntegrityError.__name__
    assert [step.key for step in again(run).steps] == ["book"]


def test_nested_transactions_and_savepoints_work():
    def work():
        book("outer")
        with transaction.atomic():
            book("inner")
        try:
            with transaction.atomic():
                book("lost")
                raise KeyError
        except KeyError:
            return book("last")

    booking(work)
    assert played().result == ["last", "after"]
    assert groups() == ["inner", "last", "outer"]


def test_events_sent_inside_are_sent_once():
    booking(lambda: send("booked") and None)
    with crash_at("before_atomic_commit"):
        run = played()
    assert "booked" not in stored()
    drain()
    assert again(run).state == "completed"
    assert stored().count("booked") == 1


# -- callbacks of the commit -----------------------------------------------------------------


@ALONE
def test_callbacks_run_after_the_commit():
    seen: list[Any] = []

    def work():
        transaction.on_commit(lambda: seen.append(connection.in_atomic_block))
        seen.append("worked")

    booking(work)
    assert played().state == "completed"
    assert seen == ["worked", False]


@ALONE
@pytest.mark.parametrize("error", [ValueError, OperationalError, SystemExit])
def test_a_callback_that_fails_undoes_nothing(error, caplog):
    def work():
        def fail():
            raise error("too late")

        transaction.on_commit(fail)
        return book()

    booking(work)
    run = played()
    assert (run.result, run.attempts, groups()) == (["booked", "after"], {}, ["booked"])
    assert "a callback of its commit failed" in caplog.text


# -- a COMMIT without an answer --------------------------------------------------------------


@ALONE
def test_a_commit_whose_answer_was_lost_is_found_out_and_the_function_not_called_again(monkeypatch):
    calls: Counter[str] = Counter()

    def work():
        calls["book"] += 1
        return book(f"booked {calls['book']}")

    booking(work)
    commit: Callable[[], None] = connection._commit  # type: ignore[attr-defined]

    def commit_and_hang_up():
        commit()
        if calls and not calls["lost"]:
            calls["lost"] += 1
            raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(connection, "_commit", commit_and_hang_up)
    run = played()
    assert run.result == ["booked 1", "after"]
    assert (calls["book"], calls["lost"], groups()) == (1, 1, ["booked 1"])


@ALONE
def test_a_commit_that_was_none_ends_the_slice_and_the_run_is_taken_over(monkeypatch):
    calls: Counter[str] = Counter()

    def work():
        calls["book"] += 1
        return book(f"booked {calls['book']}")

    def hang_up():
        def refuse():
            monkeypatch.undo()
            raise OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(connection, "_commit", refuse)

    booking(work)
    with once_at("before_atomic_commit", hang_up):
        run = played()
    assert (again(run).activity, again(run).attempts, groups()) == ("running", {}, [])
    advance("1m")
    assert again(run).result == ["booked 2", "after"]
    assert groups() == ["booked 2"]


# -- what else holds -------------------------------------------------------------------------


def test_a_cancelled_run_keeps_what_the_step_in_hand_has_written():
    booking(book)
    send("go")
    with once_at("step_ran", lambda: Due.objects.update(state="cancelling")):
        drain()
    assert not Due.objects.exists()
    assert groups() == ["booked"]


@ALONE
def test_a_cancel_inside_an_atomic_step_is_asked_with_its_commit():
    def work():
        cancel(run_id)
        return book()

    @flow("booking")
    def handler(step):
        step.run("book", work, atomic=True)
        step.sleep("rest", "1h")
        step.run("after", book, "after")

    run_id = handler.start()
    drain()
    assert groups() == ["booked"]


def test_a_step_inside_an_atomic_step_is_refused():
    @flow("nests", on="go")
    def nests(step):
        step.run("outer", lambda: (book(), step.run("inner", book)), atomic=True)

    run = played()
    assert (run.state, run.error["name"], groups()) == ("failed", "NestedStep", [])


def test_an_atomic_step_that_failed_can_be_caught():
    @flow("catches", on="go")
    def catches(step):
        try:
            step.run("book", lambda: book() and 1 / 0, atomic=True, retries=0)
        except StepError as error:
            return error.name

    assert played().result == "ZeroDivisionError"
    assert groups() == []


@pytest.mark.parametrize("flag", [True, False])
def test_the_functions_own_atomic_must_be_passed_with_partial(flag):
    flow("save", on="go", retries=0)(
        lambda step: step.run("save", lambda atomic: atomic, atomic=flag)
    )
    assert "functools.partial" in played().error["message"]


def test_atomic_takes_a_truth_value_only():
    flow("save", on="go", retries=0)(lambda step: step.run("save", book, atomic="yes"))
    run = played()
    assert (run.error["name"], groups()) == ("InvalidOption", [])
    assert "atomic= is True or False" in run.error["message"]


def test_replay_does_not_call_it_again():
    @flow("sleeper", on="go")
    def sleeper(step):
        first = step.run("book", book, atomic=True)
        step.sleep("rest", "1h")
        return first

    run = played()
    advance("1h")
    assert (again(run).result, groups()) == ("booked", ["booked"])
