import json
from datetime import timedelta

import pytest

from durable_flows.errors import (
    InvalidDuration,
    InvalidInput,
    MissingMatch,
    NestedStep,
    NonRetriableError,
    RetryAfterError,
    StepError,
)
from durable_flows.rules.backoff import Fixed, Retries
from durable_flows.rules.outcomes import GiveUp, Retry, after_failure, describe

POLICY = Retries(limit=2, backoff=Fixed("1m"))


def verdict(error, policy=POLICY, failures=1, spread=0.0):
    return after_failure(error, policy, failures=failures, spread=spread)


# -- what follows ----------------------------------------------------------------------------


def test_a_failure_is_followed_by_another_attempt_until_the_retries_are_used_up():
    error = ValueError()
    assert [verdict(error, failures=n) for n in (1, 2, 3)] == [
        Retry(timedelta(minutes=1)),
        Retry(timedelta(minutes=1)),
        GiveUp(error),
    ]


def test_without_retries_the_first_failure_is_the_last():
    error = ValueError()
    assert verdict(error, Retries(limit=0)) == GiveUp(error)


def test_jitter_is_added():
    policy = Retries(limit=1, backoff=Fixed("1m"), jitter="10s")
    assert verdict(ValueError(), policy, spread=0.5) == Retry(timedelta(seconds=65))


@pytest.mark.parametrize(
    "error",
    [
        NonRetriableError(),
        NestedStep(),
        MissingMatch(),
        InvalidInput("x"),
        StepError("charge", "ValueError", "no"),
    ],
)
def test_some_errors_are_final(error):
    assert verdict(error) == GiveUp(error)


def test_errors_that_the_policy_does_not_list_are_final():
    policy = Retries(limit=2, backoff=Fixed(0), on=(ConnectionError,))
    error = KeyError("x")
    assert verdict(error, policy) == GiveUp(error)
    assert verdict(ConnectionResetError(), policy) == Retry(timedelta(0))


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("2m", 120), (90, 90), ("120", 120), (" 7 ", 7), (0, 1), (-1, 1), ("2 days", 86_400)],
)
def test_an_error_may_say_when_from_a_second_to_a_day(delay, seconds):
    assert verdict(RetryAfterError(delay)) == Retry(timedelta(seconds=seconds))


def test_it_still_consumes_an_attempt():
    error = RetryAfterError("1m")
    assert verdict(error, failures=3) == GiveUp(error)


def test_it_is_heard_whatever_the_policy_lists():
    policy = Retries(limit=1, on=TimeoutError)
    assert verdict(RetryAfterError("1m"), policy) == Retry(timedelta(minutes=1))


@pytest.mark.parametrize("delay", ["soon", "", None, float("nan"), "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_delay_that_cannot_be_read_is_a_failure_of_its_own(delay):
    following = verdict(RetryAfterError(delay))
    assert isinstance(following, GiveUp)
    assert isinstance(following.error, InvalidDuration)


# -- how it is told --------------------------------------------------------------------------


class Declined(Exception):
    code = "card_declined"


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_an_error_is_described_by_name_message_stack_and_code():
    described = describe(raised(Declined("no money")), step="charge")
    assert described["name"] == "Declined"
    assert described["message"] == "no money"
    assert described["code"] == "card_declined"
    assert described["step"] == "charge"
    assert "test_outcomes.py" in described["stack"]
    assert "Declined: no money" in described["stack"]


def test_the_cause_is_in_the_stack():
    try:
        try:
            raise KeyError("deep")
        except KeyError as cause:
            raise ValueError("shallow") from cause
    except ValueError as error:
        stack = describe(error)["stack"]
    assert "KeyError: 'deep'" in stack
    assert "ValueError: shallow" in stack


@pytest.mark.parametrize(
    ("code", "told"), [(402, "402"), ("x", "x"), (None, ""), (object(), ""), ("c" * 300, None)]
)
def test_a_code_is_told_if_it_is_text_or_a_number(code, told):
    error = Declined()
    error.code = code
    described = describe(error)["code"]
    if told is None:
        assert len(described) < 400
    else:
        assert described == told


def test_a_step_error_is_told_as_what_it_stands_for():
    error = StepError("charge", "Declined", "no money", "stack", "card_declined")
    assert describe(error) == error.as_dict()


@pytest.mark.parametrize("message", ["nul \0", "half \ud800", "x" * 10**6, "", "é\U0001f6d2"])
def test_what_is_told_can_always_be_stored(message):
    described = describe(raised(ValueError(message)))
    text = json.dumps(described)
    assert len(text) < 100_000
    assert "\\u0000" not in text
    for value in described.values():
        value.encode()


def test_a_long_text_loses_its_middle_and_says_so():
    message = describe(ValueError("begin " + "x" * 10**6 + " end"))["message"]
    assert message.startswith("begin ")
    assert message.endswith(" end")
    assert "characters left out" in message


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def test_an_error_that_cannot_be_shown_is_described_all_the_same():
    described = describe(raised(Unspeakable()))
    assert described["name"] == "Unspeakable"
    assert isinstance(described["message"], str)
