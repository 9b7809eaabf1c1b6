"""A run that was too fast for the bank goes on five minutes later; what is critical raises an alarm."""

from __future__ import annotations

import pytest
from django.core import mail

from durable_flows.models import Run
from durable_flows.testing import RunView, advance, crash_at, drain, run_of
from example_project.failure_alerts.flows import MOST_RETRIES
from example_project.failure_alerts.models import Bank, Failure, Payment
from example_project.failure_alerts.story import approve

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def bank(accepts: int) -> Bank:
    return Bank.objects.create(name="Old Mill Bank", accepts=accepts)


def run_for(flow: str) -> RunView:
    return run_of(str(Run.objects.filter(flow=flow).latest("created_at").pk))


def watchers() -> list[RunView]:
    found = Run.objects.filter(flow="watch-failures").order_by("created_at", "pk")
    return [run_of(str(run.pk)) for run in found]


def test_a_payment_that_was_too_fast_goes_through_five_minutes_later() -> None:
    approve(bank(0), 100)
    drain()
    run = run_for("critical-pay-out")
    assert (run.state, run.error["code"]) == ("failed", "RATE_LIMIT_EXCEEDED")
    Bank.objects.update(accepts=1)
    advance("4m")
    assert not Payment.objects.get().paid
    advance("1m")
    assert Payment.objects.get().paid
    assert run_of(run.id).state == "completed"
    assert Run.objects.get(pk=run.id).generation == 1
    assert [watcher.result for watcher in watchers()] == ["retried"]


def test_each_failure_of_what_is_critical_is_logged_and_raises_an_alarm() -> None:
    approve(bank(0), 100)
    drain()
    run = run_for("critical-pay-out")
    failure = Failure.objects.get()
    assert (failure.flow, str(failure.run)) == ("critical-pay-out", run.id)
    assert failure.error == "Old Mill Bank has had enough"
    (alarm,) = mail.outbox
    assert alarm.subject == "Critical: critical-pay-out failed"
    assert run.id in alarm.body


def test_what_is_not_critical_is_logged_only() -> None:
    approve(bank(1), 100, paper=False)
    drain()
    assert Failure.objects.get().flow == "print-receipt"
    assert mail.outbox == []
    assert [watcher.result for watcher in watchers()] == ["left to people"]


def test_after_some_retries_it_is_left_to_people() -> None:
    approve(bank(0), 100)
    advance("2h")
    results = [watcher.result for watcher in watchers()]
    assert results == ["retried"] * MOST_RETRIES + ["left to people"]
    assert run_for("critical-pay-out").state == "failed"
    assert Failure.objects.count() == MOST_RETRIES + 1


@pytest.mark.parametrize("place", ["before_atomic_commit", "step_recorded", "command_obeyed"])
def test_a_run_is_retried_once_whoever_dies_over_it(place: str) -> None:
    approve(bank(0), 100)
    drain()
    with crash_at(place) as crash:
        advance("6m")
        advance("6m")
    assert crash.happened
    generations = [run.generation for run in Run.objects.filter(flow="critical-pay-out")]
    assert generations == [2]
    assert [watcher.result for watcher in watchers()] == ["retried", "retried", None]


def test_a_payment_is_made_once_however_often_it_is_tried() -> None:
    one = bank(5)
    approve(one, 100)
    advance("1h")
    one.refresh_from_db()
    assert one.accepts == 4
    assert Payment.objects.get().paid
