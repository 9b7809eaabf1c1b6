from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_flows.errors import InvalidDuration, InvalidOption
from durable_flows.rules.backoff import Delays, Exponential, Fixed, Retries, delay, retry_after
from durable_flows.rules.durations import parse

NONSENSE: Any = object()


def pauses(policy, attempts):
    return [delay(policy, attempt, spread=0) for attempt in range(1, attempts + 1)]


def seconds(*numbers):
    return [timedelta(seconds=number) for number in numbers]


# -- backoffs --------------------------------------------------------------------------------


def test_a_fixed_delay_stays_the_same():
    assert pauses(Retries(backoff=Fixed("10s")), 3) == seconds(10, 10, 10)


def test_the_last_of_a_list_of_delays_repeats():
    assert pauses(Retries(backoff=Delays(["1s", "1m"])), 4) == seconds(1, 60, 60, 60)


def test_exponential_delays_double_up_to_the_longest():
    policy = Retries(backoff=Exponential(min="1s", max="5m"))
    assert pauses(policy, 10) == seconds(1, 2, 4, 8, 16, 32, 64, 128, 256, 300)


def test_the_factor_of_exponential_delays_is_ones_own():
    assert pauses(Retries(backoff=Exponential("1s", "1h", 3)), 4) == seconds(1, 3, 9, 27)
    assert pauses(Retries(backoff=Exponential("2s", "1h", 1)), 3) == seconds(2, 2, 2)


@pytest.mark.parametrize("factor", [2.0, 1e300, 1.5])
@pytest.mark.parametrize("attempt", [1000, 100_000, 10**400], ids=["1e3", "1e5", "1e400"])
def test_exponential_delays_do_not_overflow(factor, attempt):
    policy = Retries(backoff=Exponential("1s", "366 days", factor))
    assert delay(policy, attempt, spread=0.99) == timedelta(days=366)


def test_durations_may_be_written_in_any_form():
    assert Exponential(min=1, max=timedelta(minutes=5)) == Exponential(min="1s", max="300s")
    assert Fixed(10) == Fixed("10s")
    assert Delays([1, "1m"]) == Delays((timedelta(seconds=1), 60.0))


def test_what_was_written_is_kept_as_timedeltas():
    assert Exponential("1s", "5m").max == timedelta(minutes=5)
    assert Fixed("0s").delay == timedelta(0)
    assert Delays(["1s"]).delays == (timedelta(seconds=1),)
    assert Retries(jitter="5s").jitter == timedelta(seconds=5)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Fixed("10"), 'Fixed: delay: .* write "10s"'),
        (lambda: Fixed("367 days"), "too long; it must be 366d or less"),
        (lambda: Fixed(-1), "is negative; it must be zero or more"),
        (lambda: Fixed(NONSENSE), "Fixed: delay: .* is of type object; write"),
        (lambda: Delays([]), "the list is empty; write"),
        (lambda: Delays("1s"), "is not a list; write"),
        (lambda: Delays(NONSENSE), "is not a list; write"),
        (lambda: Delays(["1s", "soon"]), r"Delays\[1\]: 'soon' is not a duration; write"),
        (lambda: Exponential("0s", "5m"), r"min is zero.*; use Fixed"),
        (lambda: Exponential("5m", "1s"), "max '1s' is less than min '5m'; swap"),
        (lambda: Exponential("1s", "5m", 0.5), "factor 0.5 must be 1 or more; use 2.0"),
        (lambda: Exponential("1s", "5m", float("nan")), "must be 1 or more; use"),
        (lambda: Exponential("1s", "5m", float("inf")), "must be 1 or more; use"),
        (lambda: Exponential("1s", "5m", True), "factor True is not a number; use"),
        (lambda: Exponential("1s", "5m", NONSENSE), "factor .* is not a number; use"),
        (lambda: Exponential("1s", "later"), "Exponential: max: 'later'"),
    ],
)
def test_a_backoff_out_of_range_is_refused_with_a_remedy(make, problem):
    with pytest.raises(InvalidOption, match=problem):
        make()


# -- retries ---------------------------------------------------------------------------------


def test_there_are_four_retries_after_any_exception():
    assert Retries().limit == 4
    assert Retries().on == (Exception,)


def test_the_delays_nobody_chose_grow_to_two_hours():
    told = "15s 30s 1m 2m 5m 10m 20m 40m 1h 2h 2h"
    assert pauses(Retries(20), 11) == [parse(text) for text in told.split()]


def test_jitter_is_half_a_minute_only_with_the_default_backoff():
    assert Retries().jitter == timedelta(seconds=30)
    assert Retries(20).jitter == timedelta(seconds=30)
    assert Retries(backoff=Fixed("1s")).jitter == timedelta(0)
    assert Retries(backoff=Fixed("1s"), jitter="3s").jitter == timedelta(seconds=3)
    assert Retries(jitter=0).jitter == timedelta(0)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 21))
def test_jitter_only_adds_and_never_more_than_it_may(spread, attempt):
    policy = Retries(jitter="10s")
    extra = delay(policy, attempt, spread=spread) - delay(policy, attempt, spread=0)
    assert abs(extra.total_seconds() - 10 * spread) < 1e-5
    assert timedelta(0) <= extra <= timedelta(seconds=10)


@pytest.mark.parametrize("limit", [0, 1, 20])
def test_up_to_twenty_retries_may_be_asked_for(limit):
    assert Retries(limit).limit == limit


@pytest.mark.parametrize("limit", [-1, 21, True, False, 1.0, "3", None])
def test_other_limits_are_refused_with_the_range(limit):
    with pytest.raises(InvalidOption, match="use 0 to 20"):
        Retries(limit)


def test_one_class_of_errors_may_stand_alone():
    assert Retries(on=TimeoutError).on == (TimeoutError,)
    assert Retries(on=(TimeoutError, OSError)).on == (TimeoutError, OSError)


@pytest.mark.parametrize(
    "on", [(), "TimeoutError", (int,), (TimeoutError("x"),), [TimeoutError], None]
)
def test_what_is_no_class_of_errors_is_refused(on):
    with pytest.raises(InvalidOption, match=r"Retries: on .*; use|Retries: on is empty; use"):
        Retries(on=on)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"backoff": "10s"}, "backoff '10s' is not a backoff; use"),
        ({"backoff": Fixed}, "is not a backoff; use"),
        ({"jitter": "10"}, 'Retries: jitter: .* write "10s"'),
        ({"jitter": -1}, "Retries: jitter: -1 is negative"),
    ],
)
def test_a_policy_out_of_range_is_refused_with_a_remedy(options, problem):
    with pytest.raises(InvalidOption, match=problem):
        Retries(**options)


def test_policies_are_frozen_and_changed_by_copy():
    policy = Retries(backoff=Fixed("1s"))
    for value, name in [
        (policy, "limit"),
        (Fixed(1), "delay"),
        (Delays([1]), "delays"),
        (Exponential(1, 2), "max"),
    ]:
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 9)
    assert replace(policy, limit=9) == Retries(9, backoff=Fixed("1s"))
    assert hash(replace(policy)) == hash(policy)


def test_a_number_stands_for_the_limit_of_the_default():
    default = Retries(7, backoff=Fixed("1s"))
    assert Retries.of(0, default) == Retries(0, backoff=Fixed("1s"))
    assert Retries.of(2, default) == Retries(2, backoff=Fixed("1s"))
    assert Retries.of(None, default) is default
    assert Retries.of(Retries(1), default) == Retries(1)


@pytest.mark.parametrize("value", [21, True, "3", Fixed("1s")])
def test_an_option_that_is_no_policy_is_refused(value):
    with pytest.raises(InvalidOption, match="use 0 to 20"):
        Retries.of(value, Retries())


@pytest.mark.parametrize(("attempt", "spread"), [(0, 0), (-1, 0), (1, 1), (1, -0.1), (1, 2)])
def test_attempts_and_spread_out_of_range_are_refused(attempt, spread):
    with pytest.raises(ValueError, match="attempts are counted|spread must be"):
        delay(Retries(), attempt, spread=spread)


# -- what a RetryAfterError asks for ---------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("30s", "30s"),
        (90, "90s"),
        (timedelta(minutes=2), "2m"),
        ("1s", "1s"),
        ("24h", "24h"),
        ("10ms", "1s"),
        ("0s", "1s"),
        (0, "1s"),
        (-5, "1s"),
        (timedelta(days=-5), "1s"),
        ("3 days", "24h"),
        (10**400, "24h"),
        (1e300, "24h"),
        (float("inf"), "24h"),
        (float("-inf"), "1s"),
        (timedelta.max, "24h"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_delay_an_error_asks_for_is_kept_within_a_second_and_a_day(asked, kept):
    assert retry_after(asked) == parse(kept)


@pytest.mark.parametrize("asked", ["120", "later", float("nan"), True, False, None])
def test_a_delay_that_cannot_be_read_is_refused(asked):
    with pytest.raises(InvalidDuration, match="RetryAfterError: delay: "):
        retry_after(asked)
