"""What happens after a failure: attempts, their delays, and the end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from durable_flows import (
    Delays,
    Event,
    Exponential,
    Fixed,
    NonRetriableError,
    Retries,
    RetryAfterError,
    StepError,
    flow,
    send,
)
from durable_flows.models import Attempt
from durable_flows.testing import advance, drain, run_of
from tests.promises.staging import again, now, played

pytestmark = pytest.mark.django_db

NO_WAIT = Retries(limit=4, backoff=Fixed(0))


class Charge:
    """A function that fails so many times, or always."""

    def __init__(self, fails: float = float("inf"), error: Exception | None = None) -> None:
        self.calls: list[Any] = []
        self.fails = fails
        self.error = error or ConnectionError("refused")

    def __call__(self) -> str:
        self.calls.append(now())
        if len(self.calls) <= self.fails:
            raise self.error
        return "charged"


def charging(charge: Charge, retries: Any = None, step_retries: Any = None) -> None:
    @flow("charging", on="go", retries=retries)
    def handler(step):
        return step.run("charge", charge, retries=step_retries)


# -- how often -------------------------------------------------------------------------------


def test_a_step_has_four_retries_by_default():
    charge = Charge()
    charging(charge)
    run = played()
    advance("1 day")
    assert len(charge.calls) == 5
    assert again(run).state == "failed"
    assert again(run).attempts == {"charge": 4}


def test_a_step_that_succeeds_in_its_last_attempt_has_succeeded():
    charge = Charge(fails=4)
    charging(charge)
    run = played()
    advance("1 day")
    assert again(run).result == "charged"
    assert again(run).step("charge").error is None


@pytest.mark.parametrize("limit", [0, 1, 20])
def test_a_flow_says_how_often(limit):
    charge = Charge()
    charging(charge, retries=limit)
    played()
    advance("30 days")
    assert len(charge.calls) == 1 + limit


@pytest.mark.parametrize("limit", [0, 2, 20])
def test_a_step_says_how_often_and_overrides_its_flow(limit):
    charge = Charge()
    charging(charge, retries=7, step_retries=limit)
    played()
    advance("30 days")
    assert len(charge.calls) == 1 + limit


def test_each_step_has_attempts_of_its_own():
    one, other = Charge(fails=2), Charge(fails=2)

    @flow("two", on="go", retries=Retries(2, backoff=Fixed(0)))
    def two(step):
        return [step.run("one", one), step.run("other", other)]

    run = played()
    advance("1s")
    assert again(run).result == ["charged", "charged"]
    assert again(run).attempts == {"one": 2, "other": 2}


def test_a_number_for_a_step_keeps_the_delays_of_its_flow():
    charging(Charge(), retries=Retries(1, backoff=Fixed("1h")), step_retries=3)
    run = played()
    assert delays() == [timedelta(hours=1)]
    assert again(run).activity == "waiting"


@pytest.mark.parametrize("retries", [-1, 21, "4", 1.5, True])
def test_a_step_with_impossible_retries_fails_the_run_at_once_and_is_named(retries):
    charge = Charge(fails=0)
    charging(charge, step_retries=retries)
    run = played()
    assert run.state == "failed"
    assert charge.calls == []
    assert run.error["name"] == "InvalidOption"
    assert "0 to 20" in run.error["message"]
    assert "'charge'" in run.error["message"]


# -- when ------------------------------------------------------------------------------------


def delays() -> list[timedelta]:
    """What the journal says lies between each failure and the next attempt."""
    attempts = Attempt.objects.order_by("n").values_list("failed_at", "next_at")
    return [
        # the failure is noted a moment after the delay began
        timedelta(seconds=round((next_at - failed_at).total_seconds(), 1))
        for failed_at, next_at in attempts
        if next_at is not None
    ]


def test_the_default_delays_grow_and_are_jittered_by_up_to_30_seconds():
    charging(Charge(), retries=10)
    played()
    advance("1 day")
    base = [15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200]
    found = [delay.total_seconds() for delay in delays()]
    assert len(found) == 10
    for delay, expected in zip(found, base, strict=True):
        assert expected - 0.1 <= delay <= expected + 30


def test_jitter_spreads_the_attempts_of_many_runs():
    charging(Charge(), retries=1)
    for _ in range(20):
        send("go")
    drain()
    assert len(set(delays())) > 10


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Fixed("10s"), [10, 10, 10, 10]),
        (Fixed(0), [0, 0, 0, 0]),
        (Delays(["1s", "1m"]), [1, 60, 60, 60]),
        (Exponential(min="1s", max="5s"), [1, 2, 4, 5]),
        (Exponential(min="1s", max="5m", factor=10), [1, 10, 100, 300]),
    ],
)
@pytest.mark.parametrize("level", ["flow", "step"])
def test_every_backoff_waits_as_long_as_it_says(backoff, expected, level):
    policy = Retries(4, backoff=backoff)
    charge = Charge()
    if level == "flow":
        charging(charge, retries=policy)
    else:
        charging(charge, step_retries=policy)
    played()
    advance("1h")
    assert delays() == [timedelta(seconds=seconds) for seconds in expected]
    pairs = zip(charge.calls, charge.calls[1:], strict=False)
    waited = [(later - earlier).total_seconds() for earlier, later in pairs]
    assert all(real >= wanted for real, wanted in zip(waited, expected, strict=True))


def test_no_attempt_is_made_before_its_time():
    charge = Charge(fails=1)
    charging(charge, retries=Retries(1, backoff=Fixed("1h")))
    run = played()
    advance("59m 55s")
    assert len(charge.calls) == 1
    assert again(run).activity == "waiting"
    advance("10s")
    assert len(charge.calls) == 2


def test_an_attempt_is_not_made_sooner_because_something_else_woke_the_run():
    from durable_flows.models import Due

    charge = Charge(fails=1)
    charging(charge, retries=Retries(1, backoff=Fixed("1h")))
    run = played()
    Due.objects.update(wake_at=now())
    drain()
    assert len(charge.calls) == 1
    assert again(run).activity == "waiting"
    advance("1h")
    assert len(charge.calls) == 2


def test_jitter_of_ones_own_lies_within_its_bound():
    charging(Charge(), retries=Retries(20, backoff=Fixed("1m"), jitter="10s"))
    played()
    advance("1h")
    found = [delay.total_seconds() for delay in delays()]
    assert len(found) == 20
    assert all(59.9 <= seconds <= 70 for seconds in found)
    assert max(found) - min(found) > 1


# -- which errors ----------------------------------------------------------------------------


def test_an_error_that_is_not_listed_fails_at_once():
    charge = Charge(error=KeyError("no such cart"))
    charging(charge, retries=Retries(4, on=(ConnectionError, TimeoutError)))
    run = played()
    assert (run.state, len(charge.calls)) == ("failed", 1)


def test_an_error_that_is_listed_is_tried_again():
    charge = Charge(error=ConnectionResetError("gone"))  # a subclass of what is listed
    charging(charge, retries=Retries(2, backoff=Fixed(0), on=ConnectionError))
    played()
    advance("1s")
    assert len(charge.calls) == 3


def test_a_non_retriable_error_fails_at_once():
    charge = Charge(error=NonRetriableError("card was stolen"))
    charging(charge)
    run = played()
    assert (run.state, len(charge.calls)) == ("failed", 1)
    assert run.error["message"] == "card was stolen"
    assert run.error["step"] == "charge"


def test_a_subclass_of_it_does_too():
    class CardStolen(NonRetriableError):
        """Says itself what happened."""

    charge = Charge(error=CardStolen())
    charging(charge)
    run = played()
    assert len(charge.calls) == 1
    assert (run.error["name"], run.error["message"]) == ("CardStolen", "Says itself what happened.")


# -- RetryAfterError -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        ("10m", 600),
        (90, 90),
        (timedelta(minutes=2), 120),
        ("120", 120),
        (0.01, 1),
        (-5, 1),
        ("3 days", 86_400),
        (10**9, 86_400),
    ],
)
def test_an_error_says_itself_when_to_try_again_from_a_second_to_a_day(delay, seconds):
    charge = Charge(error=RetryAfterError(delay, "slow down"), fails=1)
    charging(charge, retries=Retries(1, backoff=Fixed("1 week")))
    run = played()
    assert delays() == [timedelta(seconds=seconds)]
    advance(seconds - 0.9)
    assert len(charge.calls) == 1
    advance(2)
    assert again(run).result == "charged"


def test_the_delay_it_asks_for_still_consumes_an_attempt():
    charge = Charge(error=RetryAfterError("1m"))
    charging(charge, retries=2)
    run = played()
    advance("1 day")
    assert (again(run).state, len(charge.calls)) == ("failed", 3)


def test_an_error_that_asks_for_time_is_tried_again_whatever_the_policy_lists():
    charge = Charge(error=RetryAfterError("1m"), fails=1)
    charging(charge, retries=Retries(1, on=TimeoutError))
    run = played()
    advance("2m")
    assert again(run).result == "charged"


def test_a_delay_that_cannot_be_read_fails_the_step_and_says_so():
    charge = Charge(error=RetryAfterError("soon"))
    charging(charge)
    run = played()
    advance("1 day")
    assert again(run).state == "failed"
    assert "'soon'" in again(run).error["message"]
    assert again(run).error["step"] == "charge"


def test_code_between_steps_may_ask_for_time_too():
    calls: list[Any] = []

    @flow("between", on="go")
    def between():
        calls.append(now())
        if len(calls) == 1:
            raise RetryAfterError("10m")
        return "done"

    run = played()
    assert delays() == [timedelta(minutes=10)]
    advance("10m")
    assert again(run).result == "done"


def test_a_delay_that_cannot_be_read_between_steps_fails_its_run_and_no_other():
    @flow("between", on="go")
    def between(event):
        if event.data.get("bad"):
            raise RetryAfterError("soon")
        return "done"

    (bad,) = send("go", {"bad": True})
    (good,) = send("go")
    drain()
    advance("1 day")
    assert run_of(good).result == "done"
    assert run_of(bad).state == "failed"
    assert "'soon'" in run_of(bad).error["message"]


# -- StepError -------------------------------------------------------------------------------


class Declined(Exception):
    """An error with a code, as payment providers have them."""

    code = "card_declined"


def test_a_failed_step_raises_step_error_where_it_was_called():
    caught: list[StepError] = []

    @flow("catches", on="go", retries=0)
    def catches(step):
        try:
            step.run("charge", Charge(error=Declined("no money")))
        except StepError as error:
            caught.append(error)
            return step.run("apologise", lambda: "sorry")

    run = played()
    assert run.result == "sorry"
    (error,) = caught
    assert (error.step, error.name, error.message) == ("charge", "Declined", "no money")
    assert error.code == "card_declined"
    assert "test_retries.py" in error.stack
    assert "charge" in str(error)
    assert "Declined" in str(error)


def test_a_failure_is_recorded_once_and_its_function_not_called_again_on_replay():
    charge = Charge()
    caught: list[StepError] = []

    @flow("catches", on="go", retries=0)
    def catches(step):
        try:
            step.run("charge", charge)
        except StepError as error:
            caught.append(error)
        step.sleep("night", "12h")
        return "slept"

    run = played()
    advance("12h")
    assert again(run).result == "slept"
    assert len(charge.calls) == 1
    first, replayed = caught
    assert first.as_dict() == replayed.as_dict()
    assert again(run).step_keys == ["charge", "night"]
    assert again(run).step("charge").state == "failed"


def test_a_step_error_that_nobody_catches_fails_the_run_and_names_the_step():
    charging(Charge(error=Declined("no money")), retries=0)
    run = played()
    assert run.state == "failed"
    assert run.error == {
        "name": "Declined",
        "message": "no money",
        "stack": run.step("charge").error["stack"],
        "code": "card_declined",
        "step": "charge",
    }
    assert "no money" in run.reason
    assert run.result is None


def test_a_step_error_is_not_tried_again_as_code_between_steps():
    charge = Charge()
    charging(charge, retries=Retries(3, backoff=Fixed(0)))
    run = played()
    advance("1 day")
    assert len(charge.calls) == 4
    assert again(run).attempts == {"charge": 3}


def test_what_a_handler_makes_of_a_step_error_is_tried_again():
    tries: list[int] = []

    @flow("wraps", on="go", retries=Retries(2, backoff=Fixed(0)))
    def wraps(step):
        try:
            step.run("charge", Charge(), retries=0)
        except StepError as error:
            tries.append(1)
            raise RuntimeError("could not charge") from error

    run = played()
    advance("1s")
    assert again(run).state == "failed"
    assert again(run).error["name"] == "RuntimeError"
    assert len(tries) == 3


def test_an_error_of_any_text_can_be_recorded():
    charging(Charge(error=ValueError("nul \0, half \ud800, " + "x" * 100_000)), retries=0)
    run = played()
    assert run.state == "failed"
    assert run.error["message"].startswith("nul")
    assert len(run.error["message"]) < 20_000


class Unspeakable(Exception):
    """Fails again when it is asked what happened."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("where", ["step", "between"])
def test_an_error_that_cannot_be_shown_still_fails_its_run_and_no_other(where):
    @flow("mute", on="go", retries=0)
    def mute(event, step):
        if not event.data.get("bad"):
            return "done"
        if where == "step":
            step.run("charge", Charge(error=Unspeakable()))
        raise Unspeakable

    bad, good = send([Event("go", {"bad": True}), Event("go")])
    drain()
    advance("1 day")
    assert run_of(bad).state == "failed"
    assert run_of(bad).error["name"] == "Unspeakable"
    assert run_of(good).result == "done"


# -- code between steps ----------------------------------------------------------------------


def test_code_between_steps_is_tried_again_under_the_key_of_the_step_before_it():
    calls: list[str] = []

    @flow("between", on="go", retries=Retries(2, backoff=Fixed("1m")))
    def between(step):
        step.run("first", lambda: calls.append("first"))
        calls.append("between")
        if calls.count("between") < 3:
            raise ConnectionError("not yet")
        return step.run("second", lambda: "done")

    run = played()
    assert run.activity == "waiting"
    advance("10m")
    assert again(run).result == "done"
    assert again(run).attempts == {"after:first": 2}
    assert calls == ["first", "between", "between", "between"]


def test_code_before_the_first_step_has_the_key_after_nothing():
    @flow("between", on="go", retries=Retries(1, backoff=Fixed("1m")))
    def between():
        raise ConnectionError("never")

    run = played()
    advance("10m")
    assert again(run).state == "failed"
    assert again(run).attempts == {"after:": 1}
    assert again(run).error["message"] == "never"


def test_each_stretch_between_steps_has_attempts_of_its_own():
    failures: dict[str, int] = {"before": 0, "behind": 0}

    def falter(where: str) -> None:
        if failures[where] < 2:
            failures[where] += 1
            raise ConnectionError(where)

    @flow("between", on="go", retries=Retries(2, backoff=Fixed(0)))
    def between(step):
        falter("before")
        step.run("first", lambda: None)
        falter("behind")
        return "done"

    run = played()
    advance("1s")
    assert again(run).result == "done"
    assert again(run).attempts == {"after:": 2, "after:first": 2}


def test_code_between_steps_is_not_tried_before_its_time():
    from durable_flows.models import Due

    calls: list[int] = []

    @flow("between", on="go", retries=Retries(1, backoff=Fixed("1h")))
    def between():
        calls.append(1)
        raise ConnectionError("never")

    played()
    Due.objects.update(wake_at=now())
    drain()
    advance("59m")
    assert calls == [1]
    advance("2m")
    assert calls == [1, 1]


@pytest.mark.parametrize("error", [NonRetriableError("no"), KeyError("no")])
def test_code_between_steps_knows_errors_that_end_the_run(error):
    calls: list[int] = []

    @flow("between", on="go", retries=Retries(3, on=ConnectionError))
    def between():
        calls.append(1)
        raise error

    assert played().state == "failed"
    assert calls == [1]


def test_recorded_steps_are_not_repeated_when_the_code_after_them_is():
    calls: list[str] = []

    @flow("between", on="go", retries=NO_WAIT)
    def between(step):
        step.run("a", lambda: calls.append("a"))
        step.run("b", lambda: calls.append("b"))
        raise ConnectionError("never")

    played()
    advance("1s")
    assert calls == ["a", "b"]
