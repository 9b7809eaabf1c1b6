from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_flows.errors import InvalidDuration
from durable_flows.rules.durations import LONGEST, humanize, instant, parse

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("7 days", timedelta(days=7)),
        ("24h", timedelta(hours=24)),
        ("1h30m", timedelta(minutes=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("1 day 2 hours", timedelta(hours=26)),
        ("1.5h", timedelta(minutes=90)),
        ("1.1h", timedelta(minutes=66)),
        ("  10 s ", timedelta(seconds=10)),
        ("0s", timedelta(0)),
    ],
)
def test_text_with_units_is_a_duration(written, meant):
    assert parse(written) == meant


@pytest.mark.parametrize(
    ("units", "length"),
    [
        ("ms", timedelta(milliseconds=1)),
        ("s sec second seconds", timedelta(seconds=1)),
        ("m min minute minutes", timedelta(minutes=1)),
        ("h hour hours", timedelta(hours=1)),
        ("d day days", timedelta(days=1)),
        ("w week weeks", timedelta(weeks=1)),
    ],
)
def test_units_have_short_and_long_names(units, length):
    assert [parse(f"3{unit}") for unit in units.split()] == [3 * length] * len(units.split())


@pytest.mark.parametrize(
    ("number", "meant"),
    [
        (90, timedelta(seconds=90)),
        (0.25, timedelta(milliseconds=250)),
        (0, timedelta(0)),
        (1e-9, timedelta(0)),
    ],
)
def test_a_number_counts_seconds(number, meant):
    assert parse(number) == meant


def test_a_timedelta_is_itself():
    assert parse(timedelta(hours=1, microseconds=7)) == timedelta(hours=1, microseconds=7)


@pytest.mark.parametrize("text", ["90", "1.5", " 7 "])
def test_a_bare_number_in_text_is_refused_with_what_to_write(text):
    number = text.strip()
    with pytest.raises(InvalidDuration, match=f'timeout: .*has no unit; write "{number}s"'):
        parse(text, what="timeout")


@pytest.mark.parametrize(
    "value",
    [
        *("", "  ", "h", "soon", "1h soon", "1h 30", "-5s", "1,5h", "5 s!", "P1D", "1h-2m", "1.s"),
        *("٣s", "5 fortnights", "5 M", "1e3s", "9" * 5000 + "s", "1s" * 3 + "\0"),
        *(
            True,
            False,
            float("nan"),
            float("inf"),
            float("-inf"),
            -1,
            -0.5,
            1e300,
            10**400,
            10**5000,
        ),
        *(timedelta(seconds=-1), None, [1], b"1h", 1j, "999999999 weeks"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_duration_is_refused_by_name(value):
    with pytest.raises(InvalidDuration, match=r"^timeout: .+[;:] .+") as refusal:
        parse(value, what="timeout")
    assert len(str(refusal.value)) < 300


def test_the_error_names_the_value_and_the_units():
    with pytest.raises(InvalidDuration, match=r"'5 fortnights'.*'fortnights'.*units are ms, s"):
        parse("5 fortnights")


def test_bounds_include_themselves():
    assert parse("1s", minimum=timedelta(seconds=1)) == timedelta(seconds=1)
    assert parse("24h", maximum=timedelta(hours=24)) == timedelta(hours=24)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("999ms", "'999ms' is too short; it must be 1s or more"),
        (86401, "86401 is too long; it must be 1d or less"),
        (1e300, "is too long; it must be 1d or less"),
    ],
)
def test_what_is_out_of_bounds_is_told_the_bound(value, problem):
    with pytest.raises(InvalidDuration, match=problem):
        parse(value, minimum=timedelta(seconds=1), maximum=timedelta(hours=24))


def test_a_bound_is_told_exactly():
    with pytest.raises(InvalidDuration, match=r"must be 3661\.5 s or less"):
        parse("2h", maximum=timedelta(hours=1, minutes=1, seconds=1.5))


def test_the_longest_is_a_leap_year():
    assert parse("366 days", maximum=LONGEST) == LONGEST


@given(st.timedeltas(min_value=timedelta(0), max_value=LONGEST))
def test_seconds_of_any_duration_are_read_as_that_duration(delta):
    assert parse(delta.total_seconds()) == delta


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(milliseconds=350), "350ms"),
        (timedelta(microseconds=350), "<1ms"),
        (timedelta(days=1, hours=2), "1d 2h"),
        (timedelta(days=1, hours=2, minutes=3, seconds=4), "1d 2h"),
        (timedelta(days=1, minutes=3), "1d"),
        (timedelta(seconds=59, milliseconds=999), "59s 999ms"),
        (timedelta(days=366), "366d"),
        (timedelta(minutes=-90), "-1h 30m"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(delta, text):
    assert humanize(delta) == text


@given(st.timedeltas(min_value=timedelta(milliseconds=1), max_value=LONGEST))
def test_what_is_told_can_be_read_and_is_never_longer(delta):
    told = parse(humanize(delta))
    assert delta * 0.95 < told <= delta


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (NOON, NOON),
        (datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2))), NOON),
        (datetime(2026, 3, 1, 13), NOON),  # noqa: DTZ001
        (date(2026, 3, 1), datetime(2026, 2, 28, 23, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 2, 28, 23, tzinfo=UTC)),
        ("2026-03-01T13:00:00", NOON),
        ("2026-03-01 13:00", NOON),
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01T14:00:00+02:00", NOON),
        (" 2026-03-01T12:00:00.000Z ", NOON),
        ("2026-07-01T14:00:00", datetime(2026, 7, 1, 12, tzinfo=UTC)),
    ],
)
def test_a_time_without_zone_is_read_in_the_zone_given(value, meant):
    moment = instant(value, what="until", tz=BERLIN)
    assert moment == meant
    assert moment.tzinfo is UTC


def test_a_local_time_that_clocks_skip_comes_after_the_gap():
    skipped = instant("2026-03-29T02:30:00", what="until", tz=BERLIN)
    assert skipped == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_a_local_time_that_clocks_repeat_is_the_first():
    repeated = instant("2026-10-25T02:30:00", what="until", tz=BERLIN)
    assert repeated == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        *("", "tomorrow", "10:00", "2026-02-30", "2026-03-01T25:00", "1772323200", "\0"),
        *(1772323200, None, True, timedelta(days=1)),
        *("0001-01-01", date.min, "9999-12-31T23:59:59-10:00"),
    ],
    ids=repr,
)
def test_what_is_no_point_in_time_is_refused_by_name(value):
    with pytest.raises(InvalidDuration, match=r"^until: .+; (write|give) .+"):
        instant(value, what="until", tz=BERLIN)
