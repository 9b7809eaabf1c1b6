"""Three reports are asked for: one is there at once, one after ten minutes, one too late."""

from __future__ import annotations

from django.db import transaction

from durable_flows.testing import advance, send
from example_project.request_reply.models import Report


def play() -> None:
    """Three quarters of an hour with three reports."""
    for subject, minutes in (("tea", 0), ("coffee", 10), ("everything", 45)):
        request(subject, minutes)
    advance("45m")


@transaction.atomic
def request(subject: str, minutes: int) -> Report:
    """What the page does that asks for a report: the row and the event are one commit."""
    report = Report.objects.create(subject=subject)
    send("report/requested", {"report_id": report.pk, "subject": subject, "minutes": minutes})
    return report


ENDED = [
    *["get-report completed (ask, reply, save)"] * 2,
    "get-report completed (ask, reply, note-late)",
    *["write-report completed (think, write, reply)"] * 3,
]
