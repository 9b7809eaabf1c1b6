"""Steps: executed once, recorded, and answered from the record after that."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from durable_flows import Event, StepError, flow
from durable_flows.engine import leases, ring
from durable_flows.engine.claim import claim
from durable_flows.errors import InvalidOption
from durable_flows.models import Due
from durable_flows.models import Step as StoredStep
from durable_flows.testing import advance, crash_after, drain
from tests.promises.staging import again, now, played

pytestmark = pytest.mark.django_db


# -- results ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        None,
        True,
        0,
        "",
        [],
        {},
        "é\U0001f6d2",
        2**63 - 1,
        {"zeta": 1, "y": 1e22, "x": -0.0, "alpha": {"b": 1, "a": [1.0, 1]}},
        {"é": [0.1, 1e-300, 123456789.123456789]},
    ],
)
def test_a_result_is_the_same_to_the_last_bit_whenever_it_is_replayed(result):
    seen: list[str] = []

    @flow("keeps", on="go")
    def keeps(step):
        seen.append(json.dumps(step.run("make", lambda: result)))
        step.sleep("night", "12h")

    played()
    advance("12h")
    assert seen == [json.dumps(result)] * 2  # first time and replayed; repr would hide -0.0


def test_a_tuple_comes_back_as_a_list_the_first_time_too():
    seen: list[Any] = []

    @flow("keeps", on="go")
    def keeps(step):
        seen.append(step.run("make", lambda: {"pair": (1, 2)}))
        step.sleep("night", "12h")

    played()
    advance("12h")
    assert seen == [{"pair": [1, 2]}] * 2


def test_a_result_changed_by_the_handler_is_replayed_unchanged():
    seen: list[Any] = []

    @flow("keeps", on="go")
    def keeps(step):
        basket = step.run("make", lambda: ["a"])
        seen.append(list(basket))
        basket.append("b")
        step.sleep("night", "12h")

    played()
    advance("12h")
    assert seen == [["a"], ["a"]]


def test_a_result_does_not_share_anything_with_what_its_function_returned():
    original = {"items": [1]}

    @flow("keeps", on="go")
    def keeps(step):
        result = step.run("make", lambda: original)
        original["items"].append(2)
        return result

    assert played().result == {"items": [1]}


def test_a_recorded_step_is_not_executed_again():
    calls: Counter[str] = Counter()

    @flow("counts", on="go")
    def counts(step):
        step.run("a", lambda: calls.update("a"))
        step.sleep("one", "1h")
        step.run("b", lambda: calls.update("b"))
        step.sleep("two", "1h")
        step.run("c", lambda: calls.update("c"))

    run = played()
    advance("3h")  # the second hour begins when the step before it is over
    assert again(run).state == "completed"
    assert calls == {"a": 1, "b": 1, "c": 1}
    assert again(run).step_keys == ["a", "one", "b", "two", "c"]


def test_arguments_are_passed_on():
    def add(one: int, *more: int, times: int = 1) -> int:
        return (one + sum(more)) * times

    @flow("adds", on="go")
    def adds(step):
        return step.run("add", add, 1, 2, 3, times=10)

    assert played().result == 60


def test_a_step_as_decorator_binds_its_result():
    @flow("decorated", on="go")
    def decorated(step):
        @step.run("charge")
        def receipt():
            return {"paid": (1, 2)}

        return receipt

    run = played()
    assert run.result == {"paid": [1, 2]}
    assert run.step_keys == ["charge"]


def test_a_step_as_decorator_takes_retries():
    calls: list[int] = []

    @flow("decorated", on="go", retries=4)
    def decorated(step):
        @step.run("charge", retries=0)
        def receipt():
            calls.append(1)
            raise ConnectionError("refused")

    assert played().state == "failed"
    assert calls == [1]


def test_the_journal_notes_when_a_step_began_and_ended():
    @flow("timed", on="go")
    def timed(step):
        step.run("work", lambda: advance("5m", play=False))

    played()
    kept = StoredStep.objects.get()
    assert 300 <= (kept.ended_at - kept.started_at).total_seconds() < 310
    assert (kept.seq, kept.attempt, kept.state, kept.kind) == (1, 1, "done", "run")


# -- results that cannot be recorded ---------------------------------------------------------


class Order:
    """Not JSON."""


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Order(), "Order"),
        ({1, 2}, "set"),
        (timedelta(days=1), "total_seconds"),
        (math.nan, "nan"),
        ("nul \0", "NUL"),
        (2**64, "64 bits"),
        (b"bytes", "decode"),
        ({7: "seven"}, "str(key)"),
    ],
)
def test_an_unserialisable_result_fails_its_step_without_a_retry_and_names_type_and_path(
    value, says
):
    calls: list[int] = []
    caught: list[StepError] = []

    @flow("returns", on="go")
    def returns(step):
        def make():
            calls.append(1)
            return {"rows": [{"value": value}]}

        try:
            step.run("make", make)
        except StepError as error:
            caught.append(error)
            raise

    run = played()
    assert run.state == "failed"
    assert calls == [1]
    (error,) = caught
    assert error.step == "make"
    assert "'make'" in error.message
    assert "/rows/0/value" in error.message
    assert says in error.message
    assert run.step("make").state == "failed"


def test_an_oversized_result_fails_its_step_without_a_retry_and_names_the_limit(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_RESULT_BYTES": 1_000}
    calls: list[int] = []

    @flow("returns", on="go")
    def returns(step):
        def make():
            calls.append(1)
            return "é" * 500  # 1,002 bytes as JSON

        step.run("make", make)

    run = played()
    assert run.state == "failed"
    assert calls == [1]
    assert run.error["step"] == "make"
    assert "1,000" in run.error["message"]
    assert "MAX_RESULT_BYTES" in run.error["message"]


def test_results_have_4_mib_runs_32_mib_and_1000_steps_by_default():
    from durable_flows.conf import DEFAULTS

    assert DEFAULTS.MAX_RESULT_BYTES == 4 * 1024 * 1024
    assert DEFAULTS.MAX_RUN_BYTES == 32 * 1024 * 1024
    assert DEFAULTS.MAX_STEPS == 1_000


def test_too_many_steps_fail_the_run_and_the_error_names_the_limit(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_STEPS": 3}

    @flow("many", on="go")
    def many(step):
        for n in range(10):
            step.run(f"n{n}", lambda: None)

    run = played()
    assert run.state == "failed"
    assert run.step_keys == ["n0", "n1", "n2"]
    assert "MAX_STEPS" in run.error["message"]
    assert "'n3'" in run.error["message"]


def test_the_function_of_a_step_over_the_limit_is_not_called(settings):
    """Its result could not be recorded: it would be done, and nobody would know."""
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_STEPS": 1}
    calls: list[str] = []

    @flow("many", on="go")
    def many(step):
        step.run("one", lambda: calls.append("one"))
        step.run("two", lambda: calls.append("two"))

    assert played().state == "failed"
    assert calls == ["one"]


def test_sleeps_and_waits_count_as_steps(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_STEPS": 2}

    @flow("many", on="go")
    def many(step):
        step.sleep("nap", 0)
        step.wait_for_event("reply", event="replied", timeout=0)
        step.send_event("tell", Event("told"))

    run = played()
    assert run.state == "failed"
    assert "MAX_STEPS" in run.error["message"]


@pytest.mark.parametrize("letter", ["x", "é"])
def test_too_much_state_fails_the_run_and_the_error_names_the_limit(settings, letter):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_RUN_BYTES": 1_000}
    size = 300 // len(letter.encode())

    @flow("much", on="go")
    def much(step):
        for n in range(10):
            step.run(f"n{n}", lambda: letter * size)

    run = played()
    assert run.state == "failed"
    assert run.step_keys == ["n0", "n1", "n2"]
    assert "MAX_RUN_BYTES" in run.error["message"]


def test_what_earlier_slices_recorded_counts_too(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_RUN_BYTES": 1_000}

    @flow("much", on="go")
    def much(step):
        for n in range(10):
            step.run(f"n{n}", lambda: "x" * 300)
            step.sleep(f"nap{n}", "1m")

    run = played()
    advance("1h")
    assert again(run).state == "failed"
    assert "MAX_RUN_BYTES" in again(run).error["message"]


# -- ids -------------------------------------------------------------------------------------


def test_a_repeated_id_is_a_step_of_its_own():
    @flow("repeats", on="go")
    def repeats(step):
        return [step.run("charge", lambda n=n: n) for n in range(3)]

    run = played()
    assert run.result == [0, 1, 2]
    assert run.step_keys == ["charge", "charge#2", "charge#3"]


def test_repetitions_keep_their_numbers_across_suspends():
    calls: list[str] = []

    def charge(n: int) -> int:
        calls.append(str(n))
        return n

    @flow("repeats", on="go")
    def repeats(step):
        found = []
        for n in range(3):
            found.append(step.run("charge", charge, n))
            step.sleep("pause", "1h")
        return found

    run = played()
    advance("4h")
    assert again(run).result == [0, 1, 2]
    assert calls == ["0", "1", "2"]
    assert again(run).step_keys == ["charge", "pause", "charge#2", "pause#2", "charge#3", "pause#3"]


def test_one_id_for_different_tools_is_repeated_as_well():
    @flow("repeats", on="go")
    def repeats(step):
        step.run("a", lambda: None)
        step.sleep("a", 0)
        step.send_event("a", Event("told"))
        step.wait_for_event("a", event="never", timeout=0)

    assert played().step_keys == ["a", "a#2", "a#3", "a#4"]


@pytest.mark.parametrize(
    "id", ["", "  ", None, 7, "x" * 201, "a\nb", "a\0", "charge#2", "after:charge"]
)
def test_an_id_that_is_none_fails_the_run_at_once_and_is_named(id):
    calls: list[int] = []

    @flow("misnamed", on="go")
    def misnamed(step):
        step.run(id, lambda: calls.append(1))

    run = played()
    assert run.state == "failed"
    assert run.error["name"] == "InvalidOption"
    assert repr(id) in run.error["message"]
    assert calls == []


@pytest.mark.parametrize("id", ["x", "x" * 200, "charge card 1", "größe", "#", "a#b", "before:x"])
def test_ids_are_free_form(id):
    @flow("named", on="go")
    def named(step):
        step.run(id, lambda: None)

    assert played().step_keys == [id]


# -- what is refused -------------------------------------------------------------------------


def test_the_functions_own_retries_must_be_passed_with_partial():
    from functools import partial

    def fetch(url: str, retries: int) -> str:
        return f"{url} {retries}"

    @flow("ambiguous", on="go", retries=0)
    def ambiguous(step):
        step.run("fetch", fetch, "here", retries=3)

    run = played()
    assert run.state == "failed"
    assert "partial" in run.error["message"]
    assert "'fetch'" in run.error["message"]
    assert run.error["name"] == "TypeError"

    @flow("clear", on="go2")
    def clear(step):
        return step.run("fetch", partial(fetch, retries=3), "here", retries=1)

    assert played("go2").state == "completed"


@pytest.mark.parametrize(
    "inner",
    [
        lambda step: step.run("inner", lambda: None),
        lambda step: step.sleep("inner", 1),
        lambda step: step.sleep_until("inner", "2020-01-01"),
        lambda step: step.wait_for_event("inner", event="x", timeout=1),
        lambda step: step.send_event("inner", Event("told")),
    ],
)
def test_a_step_inside_a_steps_function_fails_at_once(inner):
    calls: list[int] = []

    @flow("nests", on="go")
    def nests(step):
        def outer():
            calls.append(1)
            inner(step)

        step.run("outer", outer)

    run = played()
    advance("1 day")
    assert again(run).state == "failed"
    assert calls == [1]
    assert run.error["name"] == "NestedStep"
    assert "'inner'" in run.error["message"]
    assert "'outer'" in run.error["message"]
    assert run.step_keys == ["outer"]


def test_after_a_nested_step_was_refused_the_handler_can_go_on():
    @flow("nests", on="go")
    def nests(step):
        with pytest.raises(StepError, match="inner"):
            step.run("outer", lambda: step.run("inner", lambda: None))
        return step.run("next", lambda: "fine")

    assert played().result == "fine"


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize(
    "tool",
    [
        lambda step: step.run("charge", lambda: None),
        lambda step: step.sleep("charge", 1),
        lambda step: step.wait_for_event("charge", event="x", timeout=1),
        lambda step: step.send_event("charge", Event("told")),
    ],
)
def test_a_step_inside_the_handlers_own_transaction_fails_at_once(request, tool, transactional):
    if transactional:
        request.getfixturevalue("transactional_db")

    @flow("locks", on="go")
    def locks(step):
        with transaction.atomic():
            tool(step)

    run = played()
    assert run.state == "failed"
    assert run.error["name"] == "StepInTransaction"
    assert "'charge'" in run.error["message"]
    assert "atomic()" in run.error["message"]
    assert run.attempts == {}
    assert run.steps == ()


def test_a_steps_function_may_use_transactions():
    def charge() -> str:
        with transaction.atomic(), transaction.atomic():
            return "charged"

    @flow("charges", on="go")
    def charges(step):
        with transaction.atomic():
            pass
        return step.run("charge", charge)

    assert played().result == "charged"


# -- the code may change ---------------------------------------------------------------------


def test_a_recorded_step_that_the_code_no_longer_reaches_does_no_harm():
    code: list[Any] = []

    @flow("changes", on="go")
    def changes(step):
        return code[-1](step)

    def before(step):
        step.run("old", lambda: "old")
        step.sleep("night", "12h")

    def after(step):
        step.sleep("night", "12h")
        return step.run("new", lambda: "new")

    code.append(before)
    run = played()
    code.append(after)
    advance("12h")
    assert again(run).result == "new"
    assert again(run).step_keys == ["old", "night", "new"]


def test_a_new_step_before_recorded_ones_is_executed():
    code: list[Any] = []

    @flow("changes", on="go")
    def changes(step):
        return code[-1](step)

    def before(step):
        step.sleep("night", "12h")

    def after(step):
        new = step.run("new", lambda: "new")
        step.sleep("night", "12h")
        return new

    code.append(before)
    run = played()
    code.append(after)
    advance("12h")
    assert again(run).result == "new"


# -- a worker that dies ----------------------------------------------------------------------


def test_a_recorded_step_is_not_executed_again_after_a_crash():
    calls: Counter[str] = Counter()

    @flow("crashes", on="go")
    def crashes(step):
        return [step.run("charge", work, "charge"), step.run("ship", work, "ship")]

    def work(what: str) -> str:
        calls[what] += 1
        return f"{what} done"

    with crash_after("charge") as crash:
        run = played()
    assert crash.happened
    assert run.step_keys == ["charge"]
    drain()
    assert again(run).result == ["charge done", "ship done"]
    assert calls == {"charge": 1, "ship": 1}


def test_an_unrecorded_step_is_executed_again_after_a_crash():
    calls: Counter[str] = Counter()

    @flow("crashes", on="go")
    def crashes(step):
        return step.run("charge", work)

    def work() -> str:
        calls["charge"] += 1
        return "charged"

    with crash_after("charge", recorded=False, times=2):
        run = played()
        drain()
    assert run.steps == ()
    drain()
    assert again(run).result == "charged"
    assert calls == {"charge": 3}
    assert again(run).attempts == {}, "a kill is no attempt"


def test_a_worker_that_was_thought_dead_records_nothing_once_its_run_was_taken_over():
    calls: list[str] = []

    def charge() -> int:
        calls.append("charge")
        if len(calls) == 1:
            Due.objects.update(wake_at=now())  # its lease has ended, and another one claims
            (taken,) = claim(ring.default_queue(), 1)
            assert taken.lease == 2
            leases.release(taken.run_id, taken.lease)  # and dies
        return len(calls)

    @flow("slow", on="go")
    def slow(step):
        step.run("charge", charge)
        step.run("ship", lambda: calls.append("ship"))
        return "done"

    run = played()
    assert again(run).steps == ()
    assert calls == ["charge"]
    advance("1m")  # the lease of the other one ends
    assert again(run).result == "done"
    assert calls == ["charge", "charge", "ship"]
    assert again(run).step("charge").output == 2


def test_the_idempotency_key_is_stable_across_a_crash_and_an_attempt():
    seen: list[str] = []

    @flow("keyed", on="go", retries=1)
    def keyed(step):
        def charge():
            seen.append(step.idempotency_key)
            if len(seen) == 2:
                raise ConnectionError("refused")

        step.run("charge", charge)

    with crash_after("charge", recorded=False):
        run = played()
    advance("10m")
    assert again(run).state == "completed"
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_idempotency_keys_differ_by_run_step_and_repetition():
    seen: list[str] = []

    @flow("keyed", on="go")
    def keyed(step):
        for id in ("charge", "charge", "ship"):
            step.run(id, lambda: seen.append(step.idempotency_key))

    played()
    played()
    assert len(set(seen)) == len(seen) == 6


def test_the_idempotency_key_is_refused_outside_a_steps_function():
    @flow("keyed", on="go")
    def keyed(step):
        step.run("first", lambda: None)
        with pytest.raises(InvalidOption, match="inside"):
            _ = step.idempotency_key

    assert played().state == "completed"
