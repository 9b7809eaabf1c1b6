"""Of four meters two are misread; on Monday the team is told, and a week later there is nothing to tell."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from durable_flows.rules import clock
from durable_flows.testing import advance, send
from example_project.dead_letters.flows import review_due


def play() -> None:
    """Two Mondays."""
    for meter, reading in enumerate(["1204", "l204", "", "311"]):
        send("meter/read", {"meter": meter, "reading": reading})
    first = monday_after(clock.now())
    send(review_due(first))
    advance(first - clock.now() + timedelta(days=7))


def monday_after(moment: datetime) -> datetime:
    """Nine o'clock on the next Monday."""
    day = moment + timedelta(days=7 - moment.weekday())
    return datetime.combine(day, time(9), tzinfo=moment.tzinfo)


ENDED = [
    *["read-meter completed (check)"] * 2,
    *["read-meter failed (check)"] * 2,
    *["keep-dead-letter completed (keep)"] * 2,
    "review-dead-letters completed (fetch, tell-team, note-reviewed, next-week)",
    "review-dead-letters completed (fetch, next-week)",
]
