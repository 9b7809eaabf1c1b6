"""Whatever fails for good is kept, and the team is told of it once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.core import mail

from durable_flows.models import Run
from durable_flows.rules import clock
from durable_flows.testing import advance, crash_at, drain, run_of, send, sent
from example_project.dead_letters.flows import review_due
from example_project.dead_letters.models import DeadLetter
from example_project.dead_letters.story import monday_after

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def test_what_fails_is_kept_with_its_event_its_step_and_the_error() -> None:
    event = send("meter/read", {"meter": 4, "reading": "l204"})
    drain()
    letter = DeadLetter.objects.get()
    assert (letter.flow, str(letter.run), letter.step) == ("read-meter", run_of(event).id, "check")
    assert letter.event["data"] == {"meter": 4, "reading": "l204"}
    assert letter.error == "NonRetriableError: 'l204' is no reading"


def test_failures_of_every_flow_are_kept_though_none_of_them_knows() -> None:
    send("order/placed", {"order_id": 404, "email": "nobody@orders.example"})
    advance("1h")
    assert "process-order" in DeadLetter.objects.values_list("flow", flat=True)


def test_what_succeeds_is_not_kept() -> None:
    send("meter/read", {"meter": 1, "reading": "1204"})
    drain()
    assert not DeadLetter.objects.exists()
    assert sent("flows/function.failed") == []


@pytest.mark.parametrize("place", ["before_end_commit", "ends_announced", "runs_admitted"])
def test_a_letter_is_kept_once_whoever_dies_over_it(place: str) -> None:
    send("meter/read", {"meter": 1, "reading": "?"})
    with crash_at(place) as crash:
        drain()
    assert crash.happened
    drain()
    assert DeadLetter.objects.count() == 1


def test_the_team_is_told_each_monday_of_what_is_new() -> None:
    send("meter/read", {"meter": 1, "reading": "?"})
    drain()
    monday = monday_after(clock.now())
    send(review_due(monday))
    send(review_due(monday))  # whoever deploys twice
    advance(monday - clock.now() + timedelta(minutes=1))
    (told,) = mail.outbox
    assert told.subject == "Dead letters: 1"
    assert "read-meter, step check: NonRetriableError: '?' is no reading" in told.body
    advance("7 days")
    assert len(mail.outbox) == 1
    send("meter/read", {"meter": 2, "reading": "!"})
    advance("7 days")
    assert [message.subject for message in mail.outbox] == ["Dead letters: 1"] * 2
    assert Run.objects.filter(flow="review-dead-letters").count() == 3


def test_a_monday_is_the_next_one() -> None:
    wednesday = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert monday_after(wednesday) == datetime(2026, 7, 6, 9, tzinfo=UTC)
    assert monday_after(monday_after(wednesday)) == datetime(2026, 7, 13, 9, tzinfo=UTC)
