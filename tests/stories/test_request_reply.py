"""Ask, and wait for the answer to this very question."""

from __future__ import annotations

import pytest

from durable_flows.testing import advance, crash_after, drain, run_of, send, sent
from example_project.request_reply.models import Report
from example_project.request_reply.story import request

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("example_flows", "own_clock"),
]


def results() -> list[dict[str, str | int]]:
    return [run_of(event.public_id, "get-report").result for event in sent("report/requested")]


def test_a_report_is_there_when_its_writer_has_replied() -> None:
    report = request("tea", minutes=10)
    advance("9m")
    assert run_of(sent("report/requested")[0].public_id).activity == "waiting"
    advance("1m")
    report.refresh_from_db()
    assert (report.text, report.late) == ("There is much to be said about tea.", False)
    assert results() == [{"status": "written", "report_id": report.pk}]


def test_each_gets_the_answer_to_its_own_question() -> None:
    tea, coffee = request("tea", minutes=20), request("coffee", minutes=10)
    advance("20m")
    for report in (tea, coffee):
        report.refresh_from_db()
        assert report.subject in report.text


def test_an_answer_that_is_faster_than_the_wait_is_not_missed() -> None:
    report = request("tea", minutes=0)
    with crash_after("ask") as crash:
        drain()
        drain()
    assert crash.happened
    assert results() == [{"status": "written", "report_id": report.pk}]


def test_after_half_an_hour_it_is_too_late() -> None:
    report = request("everything", minutes=45)
    advance("30m")
    assert results() == [{"status": "timeout", "report_id": report.pk}]
    advance("15m")
    report.refresh_from_db()
    assert (report.text, report.late) == ("", True)
    assert len(sent("report/written")) == 1


def test_the_replier_need_not_be_a_flow() -> None:
    report = Report.objects.create(subject="tea")
    facts = {"report_id": report.pk, "subject": "tea", "minutes": 60}
    send("report/requested", facts)
    drain()
    send("report/written", {"report_id": report.pk, "text": "by hand"})
    drain()
    report.refresh_from_db()
    assert report.text == "by hand"
